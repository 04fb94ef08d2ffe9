"""`make cluster`: a shell on the head of a cluster, as its user; the cluster goes with the shell."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from types import FrameType

from cluster import Cluster, ClusterConfig, ClusterError, cluster, missing
from cluster.config import HEAD


def main() -> int:
    """Bring a cluster up, run a shell or one command in it, take it down; return the exit status of that."""
    arguments = _arguments()
    if reason := missing():
        print(f"make cluster: {reason}", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        began = time.monotonic()
        with cluster() as c:
            c.wait_idle()
            if arguments.command is None:
                print(_welcome(c, time.monotonic() - began), flush=True)
            status = _shell(c, arguments)
            # What ends the shell may come once more, while the cluster goes down.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return status
    except (ClusterError, KeyboardInterrupt) as error:
        print(f"make cluster: {error or 'interrupted'}", file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make cluster", description="A Slurm cluster on this machine.")
    parser.add_argument("-c", dest="command", metavar="COMMAND", help="run one command of bash instead of a shell")
    parser.add_argument("--user", default="physicist", choices=["physicist", "colleague", "root"])
    parser.add_argument("--host", default=HEAD, choices=[HEAD, *ClusterConfig().node_names])
    return parser.parse_args()


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _welcome(c: Cluster, seconds: float) -> str:
    config = c.config
    crash = ", ".join(f"{node.name}: {node.first}" for node in c.nodes)
    return "\n".join(
        [
            f"A Slurm cluster: {config.nodes} nodes, {config.gpus_per_node} pretend GPUs each, up in {seconds:.1f} s.",
            f"Partitions: {' '.join(p.name for p in config.partitions)}; QOS: {' '.join(q.name for q in config.qos)}; "
            f"your account: {config.user('physicist').account}; a folder that all nodes share: $SCRATCH.",
            f"To crash a node, kill -9 its first process from another terminal, as root ({crash}).",
            "'exit' ends the cluster, and nothing of it remains.",
        ]
    )


def _shell(c: Cluster, arguments: argparse.Namespace) -> int:
    host = c.head if arguments.host == c.head.name else c.node(arguments.host)
    shell = ["bash", "-c", arguments.command] if arguments.command is not None else ["bash", "--norc", "-i"]
    terminal = {"PS1": r"\u@\h:\w\$ ", "TERM": os.environ.get("TERM", "dumb")}
    words, environment = host.command(shell, user=arguments.user, env=terminal)
    return os.spawnvpe(os.P_WAIT, words[0], words, environment)


if __name__ == "__main__":
    sys.exit(main())
