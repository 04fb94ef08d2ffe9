"""Spread the workers over the nodes of an allocation: one srun step, and another for lost shards."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address

from exatrkx_hpc.base.errors import ConfigError, EndpointError, LaunchError
from exatrkx_hpc.base.news import News, Tell, from_json, untold
from exatrkx_hpc.launch.slurm.environment import unused_variables
from exatrkx_hpc.launch.slurm.interactive import Allocation, allocation
from exatrkx_hpc.launch.slurm.step import nodes_of, run_step
from exatrkx_hpc.work.news import NodeSaid, WorkersSpread
from exatrkx_hpc.work.nodes import heartbeat as beat
from exatrkx_hpc.work.nodes.run import LOG, run_sharded
from exatrkx_hpc.work.nodes.shard_task import write_order
from exatrkx_hpc.work.nodes.task import STOP
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.shards import PER_NODE
from exatrkx_hpc.work.run.progress import ShowProgress
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.run import Settings


def run_on_nodes(
    settings: Settings,
    progress: ShowProgress | None = None,
    *,
    nodes: int | None = None,
    tell: Tell = untold,
) -> Report:
    """Run `work.run.run.run_clients` with `settings.workers` workers on each node of the shell's allocation.

    `nodes` is the number of nodes to use (default: all). A new OUT gets two shards per node. Raises ConfigError
    outside an allocation, LaunchError for too few nodes, EndpointError for an endpoint that other nodes cannot reach,
    and the errors of `exatrkx_hpc.work.nodes.run.run_sharded`.
    """
    inside = allocation(os.environ)
    if inside is None:
        raise ConfigError(
            "--srun spreads the workers over the nodes of an allocation, but this shell is not in one; get one with "
            "'salloc --no-kill -N 2', or use --sbatch"
        )
    require_reachable(settings)
    here = nodes_of(inside.job, cluster=inside.cluster, most=nodes)
    if nodes is not None and len(here) < nodes:
        raise LaunchError(f"this shell's allocation {inside.job} has {len(here)} nodes, not {nodes}; lower -N")
    if (unused := unused_variables(os.environ, "srun")) is not None:
        tell(unused)
    tell(WorkersSpread(nodes=here, workers=settings.workers))
    do = _OnNodes(inside=inside, most=nodes, tell=tell)
    return run_sharded(settings, do, progress, shards=PER_NODE * len(here), tell=tell)


@dataclass(frozen=True, kw_only=True)
class _OnNodes:
    """Runs shards on the nodes that the job still has."""

    inside: Allocation
    most: int | None
    tell: Tell

    def __call__(self, settings: Settings, shards: Sequence[int], *, of: int, look: Callable[[], None]) -> str:
        folder = settings.out / "shards"
        with Results(settings.out).usable():
            folder.mkdir(exist_ok=True)
            write_order(folder / "task.json", settings, shards, of=of)
        nodes = nodes_of(self.inside.job, cluster=self.inside.cluster, most=self.most)[: len(shards)]
        # Do not import a numpy.py from the current folder.
        program = ("env", "PYTHONSAFEPATH=1", sys.executable, "-m", "exatrkx_hpc.work.nodes.task")
        command = (*program, str(folder / "task.json"))

        def looked() -> None:
            with contextlib.suppress(OSError):  # a shard that cannot write ends with its own error
                beat.touch(folder / beat.NAME)
            look()

        def heard(line: str) -> None:
            self.tell(_news_of(line))

        signal = run_step(nodes, command, log=folder / LOG, stop=STOP, look=looked, heard=heard)
        return f"stopped by {signal}" if signal else ""


def _news_of(line: str) -> News:
    """Return the news of a task from its JSON line; any other line, such as srun's, becomes NodeSaid."""
    try:
        return from_json(line)
    except ValueError:
        return NodeSaid(text=line)


def require_reachable(settings: Settings) -> None:
    """Raise EndpointError for an endpoint that only this machine can reach; mode direct needs no endpoint."""
    host = settings.server.rpartition(":")[0].strip("[]")
    if settings.mode != "direct" and _is_loopback(host):
        raise EndpointError(
            f"other nodes cannot reach the endpoint {settings.server}; let the monitor listen on an address of the "
            'cluster (balancer.host = "internal"), or choose another endpoint with --server'
        )


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
