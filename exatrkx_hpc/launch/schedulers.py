"""Which scheduler runs the jobs of a farm."""

from __future__ import annotations

from pathlib import Path

from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.embedded.scheduler import EmbeddedScheduler
from exatrkx_hpc.launch.scheduler import Scheduler
from exatrkx_hpc.launch.slurm.farm_jobs import FarmSlurm
from exatrkx_hpc.launch.slurm.scheduler import Slurm


def scheduler_of(farm: Farm) -> Scheduler:
    """Return the scheduler that the site has."""
    if farm.cluster.scheduler == "slurm":
        return farm_slurm(farm)
    return EmbeddedScheduler(run_root=Path(farm.run_root), first_address=farm.cluster.local_address)


def farm_slurm(farm: Farm, *, interactive: bool = False) -> FarmSlurm:
    """Return the Slurm of the site; with `interactive` it runs a farm's script from this terminal."""
    # What a drain takes at the most, and what Slurm and the script need beside it.
    grace = farm.server.drain + farm.server.exit_timeout + 30.0
    return FarmSlurm(
        lambda cluster: Slurm(grace=grace, cluster=cluster),
        run_root=Path(farm.run_root),
        grace=grace,
        interactive=interactive,
    )
