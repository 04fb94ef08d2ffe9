"""`make cluster`: a shell on the head of a cluster, as one of its users; the cluster ends with the shell."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from cluster import Cluster, ClusterConfig, ClusterError, Host, cluster, missing
from cluster.config import HEAD
from cluster.stale import ASKED, running

#: The time that a pretend node may take to boot on a busy machine, in seconds.
_BOOT_DEADLINE = 120.0


def main() -> int:
    """Start a cluster, run a shell or one command in it, stop the cluster; return the exit status of the command."""
    arguments = _arguments()
    if reason := missing():
        print(f"make cluster: {reason}", file=sys.stderr)
        return 1
    if arguments.join or arguments.boot:
        return _beside(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        began = time.monotonic()
        with cluster() as c:
            c.wait_idle()
            if arguments.command is None:
                print(_welcome(c, time.monotonic() - began), flush=True)
            status = _shell(c, arguments)
            # Ignore another Ctrl-C while the cluster stops.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return status
    except (ClusterError, KeyboardInterrupt) as error:
        print(f"make cluster: {error or 'interrupted'}", file=sys.stderr)
        return 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make cluster", description="A Slurm cluster on this machine.")
    parser.add_argument("-c", dest="command", metavar="COMMAND", help="run one command of bash instead of a shell")
    parser.add_argument("--join", action="store_true", help="a shell, or one command, in the cluster that is up")
    parser.add_argument("--boot", metavar="NODE", help="boot a node that has crashed in the cluster that is up")
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
            f"To crash a node, kill -9 its first process from another terminal, as root ({crash});",
            "make cluster ARGS='--boot NODE' there brings it back.",
            "'exit' ends the cluster, and nothing of it remains.",
        ]
    )


def _shell(c: Cluster, arguments: argparse.Namespace) -> int:
    host = c.head if arguments.host == c.head.name else c.node(arguments.host)
    asked = c.base / ASKED
    asked.mkdir(mode=0o700)
    words, environment = _command(host, arguments)
    shell = os.spawnvpe(os.P_NOWAIT, words[0], words, environment)
    while True:
        ended, status = os.waitpid(shell, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        for request in asked.iterdir():
            c.node(request.name).power_off()  # somebody has killed its first process
            c.node(request.name).boot()
            request.unlink()
        time.sleep(0.1)


def _command(host: Host, arguments: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    shell = ["bash", "-c", arguments.command] if arguments.command is not None else ["bash", "--norc", "-i"]
    terminal = {"PS1": r"\u@\h:\w\$ ", "TERM": os.environ.get("TERM", "dumb")}
    return host.command(shell, user=arguments.user, env=terminal)


def _beside(arguments: argparse.Namespace) -> int:
    """Run a second terminal's request in the running cluster, or in the newest one if there are several."""
    up = running()
    if not up:
        print("make cluster: no cluster is up; 'make cluster' brings one up", file=sys.stderr)
        return 1
    if arguments.boot is not None:
        return _boot(up[-1] / ASKED, arguments.boot)
    host = Host(arguments.host, config=ClusterConfig(), base=up[-1], covers=[])
    host.join()
    words, environment = _command(host, arguments)
    return os.spawnvpe(os.P_WAIT, words[0], words, environment)


def _boot(asked: Path, node: str) -> int:
    if node not in ClusterConfig().node_names:
        print(f"make cluster: no node is called {node!r}", file=sys.stderr)
        return 1
    (asked / node).touch()
    until = time.monotonic() + _BOOT_DEADLINE
    while (asked / node).exists() and time.monotonic() < until:
        time.sleep(0.1)
    return int((asked / node).exists())


if __name__ == "__main__":
    sys.exit(main())
