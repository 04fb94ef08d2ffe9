"""The network of the cluster: a bridge in the head, a veth link to each node, no route to the outside."""

from __future__ import annotations

from cluster.config import HEAD_ADDRESS, node_address
from cluster.errors import ClusterError
from exatrkx_hpc.base.process import run


def make_bridge(head: int) -> None:
    """Create the bridge in the namespace of the process `head`."""
    _ip(head, "link add br0 type bridge", f"addr add {HEAD_ADDRESS}/24 dev br0", "link set br0 up")
    # Slurm 22.05 writes a message in two parts. Without immediate TCP acknowledgements, every call of the head to
    # itself takes 0.2 s.
    _ip(head, f"route replace table local local {HEAD_ADDRESS} dev lo scope host src {HEAD_ADDRESS} quickack 1")


def plug(head: int, node: int, *, number: int) -> None:
    """Link the bridge to the namespace of the process `node`, which gets the address of node `number`.

    When the node ends, the kernel removes both ends of the link.
    """
    # After a power cut, the kernel may take a moment to remove the head's end.
    _ip(head, f"link delete v{number}", may_fail=True)
    _ip(head, f"link add v{number} type veth peer name eth0 netns {node}", f"link set v{number} master br0 up")
    _ip(node, f"addr add {node_address(number)}/24 dev eth0", "link set eth0 up")


def set_link(head: int, *, number: int, up: bool) -> None:
    """Set the link of a node up or down."""
    _ip(head, f"link set v{number} {'up' if up else 'down'}")


def _ip(pid: int, *commands: str, may_fail: bool = False) -> None:
    # Enter only the network namespace: `netns` takes a PID of this machine, outside.
    done = run(["nsenter", f"--target={pid}", "--net", "--", "ip", "-batch", "-"], stdin="\n".join(commands) + "\n")
    if done.returncode and not may_fail:
        raise ClusterError(f"ip {'; '.join(commands)}: {done.complaint}")
