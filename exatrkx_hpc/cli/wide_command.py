"""`run-clients` over several nodes: --srun in an allocation, --sbatch as a job."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

import typer

from exatrkx_hpc.base.errors import ConfigError
from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.cli.options import say
from exatrkx_hpc.config.resolve import Resolved
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.schedulers import abilities_of
from exatrkx_hpc.launch.slurm.environment import unused_variables
from exatrkx_hpc.launch.slurm.workers_job import make_workers_plan, render_workers, submit_workers
from exatrkx_hpc.prepare import short_time
from exatrkx_hpc.work.nodes.run import require_shardable
from exatrkx_hpc.work.nodes.step import require_reachable
from exatrkx_hpc.work.run.run import Settings


def refuse_mixtures(
    *, srun: bool, sbatch: bool, of_a_job: Mapping[str, object], dry_run: bool, ignore_first: int
) -> None:
    """Raise ConfigError for flags that cannot be combined; `of_a_job` has the flags of a workers' job."""
    if ignore_first and (srun or sbatch):
        raise ConfigError("-i works only for a run on one machine; omit -i, or --srun and --sbatch")
    if srun and sbatch:
        raise ConfigError(
            "--srun and --sbatch are mutually exclusive; use --srun inside an allocation, --sbatch elsewhere"
        )
    for flag, value in of_a_job.items():
        if value is not None and not (sbatch or (srun and flag == "-N")):
            raise ConfigError(f"{flag} applies only to a workers' job; add --sbatch" + " or --srun" * (flag == "-N"))
    if dry_run and not sbatch:
        raise ConfigError("--dry-run prints the script of a workers' job; add --sbatch")


def submit(found: Resolved, settings: Settings, *, dry_run: bool, as_json: bool) -> None:
    """Submit the workers' job and print its ID, or print its script."""
    farm = found.farm
    if not abilities_of(farm).allocations:
        raise ConfigError(f"--sbatch needs Slurm, which site {farm.site} does not use; omit --sbatch to run here")
    require_reachable(settings)
    plan = make_workers_plan(
        farm,
        options_of(settings),
        events=settings.events,
        out=settings.out,
        requeue=not settings.fresh,  # a requeued job with --fresh would discard its results
        sources=found.sources,
    )
    if dry_run:
        typer.echo(render_workers(plan), nl=False)
        return
    require_shardable(settings)
    short = short_time(farm.clients.time, dict(plan.directives)["signal"], key="clients.time", end=0)
    for caution in filter(None, (unused_variables(os.environ, "sbatch"), short)):
        teller(as_json=as_json)(caution)
    job, script = submit_workers(plan)
    log = settings.out / f"workers-{job.number}.log"
    if as_json:
        told = {"job": job.number, "cluster": job.cluster, "script": str(script), "log": str(log)}
        typer.echo(json.dumps(told))
        return
    typer.echo(str(job))
    say(f"{_size(farm)}; log: {log}; to resume, submit {script} again")


def _size(farm: Farm) -> str:
    return f"{farm.clients.nodes} node(s), {farm.clients.workers} workers on each"


def options_of(settings: Settings) -> tuple[tuple[str, ...], ...]:
    """Return the options of `run-clients` for these settings on nodes; the values of `[clients]` are separate."""
    flags = {
        "--fresh": settings.fresh,
        "--times": settings.times,
        "--retry-failed": settings.retry_failed,
        "--accept-changes": settings.accept_changes,
        "--accept-model-change": settings.accept_model_change,
    }
    return (
        ("--srun",),
        ("--config", "/dev/null"),  # the script sets the values of farm.toml in the environment
        *((("--server", settings.server),) if settings.server else ()),
        ("--events", str(settings.events.absolute())),
        ("--event-column", settings.event_column),
        ("--out", str(settings.out.absolute())),
        *((("--expect", str(settings.expect)),) if settings.expect is not None else ()),
        *((flag,) for flag, wanted in flags.items() if wanted),
    )
