"""The available schedulers, and the scheduler of a farm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.embedded.scheduler import EmbeddedScheduler
from exatrkx_hpc.launch.engines.table import engine_of
from exatrkx_hpc.launch.scheduler import Abilities, Scheduler
from exatrkx_hpc.launch.slurm.farm_jobs import FarmSlurm
from exatrkx_hpc.launch.slurm.scheduler import Slurm


@dataclass(frozen=True, kw_only=True)
class SchedulerKind:
    """A kind of scheduler: what it can do, and the function that makes the scheduler of a farm."""

    abilities: Abilities
    make: Callable[[Farm], Scheduler]


def scheduler_of(farm: Farm) -> Scheduler:
    """Return the scheduler of the site of `farm`."""
    return SCHEDULERS[farm.cluster.scheduler].make(farm)


def abilities_of(farm: Farm) -> Abilities:
    """Return what the scheduler of the site of `farm` can do."""
    return SCHEDULERS[farm.cluster.scheduler].abilities


def uses_own_triton(farm: Farm) -> bool:
    """Return whether the servers of `farm` run the Triton of the `local` extra."""
    named = engine_of(farm).has_container or farm.server.triton != "tritonserver"
    return abilities_of(farm).brings_triton and not named


def farm_slurm(farm: Farm, *, interactive: bool = False) -> FarmSlurm:
    """Return Slurm as the scheduler; with `interactive`, it runs a farm's script from this terminal."""
    # The longest drain, plus 30 s for Slurm and the script.
    grace = farm.server.drain + farm.server.exit_timeout + 30.0
    return FarmSlurm(
        lambda cluster: Slurm(grace=grace, cluster=cluster),
        run_root=Path(farm.run_root),
        grace=grace,
        interactive=interactive,
    )


def _embedded(farm: Farm) -> EmbeddedScheduler:
    return EmbeddedScheduler(run_root=Path(farm.run_root), first_address=farm.cluster.local_address)


#: Every kind of scheduler, by the value of `cluster.scheduler`.
SCHEDULERS: Final[Mapping[str, SchedulerKind]] = {
    "slurm": SchedulerKind(abilities=FarmSlurm.abilities, make=farm_slurm),
    "local": SchedulerKind(abilities=EmbeddedScheduler.abilities, make=_embedded),
}
