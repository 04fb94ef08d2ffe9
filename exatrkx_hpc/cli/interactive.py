"""`deploy --interactive`: a farm and its endpoint in one terminal, until Ctrl-C."""

from __future__ import annotations

import dataclasses
import os
import shlex
import time
from collections.abc import Mapping
from pathlib import Path

import typer

from exatrkx_hpc import farm as story
from exatrkx_hpc import prepare
from exatrkx_hpc.base.errors import ConfigError, LaunchError
from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.base.signals import deferred_signals
from exatrkx_hpc.cli.news import Prompt, teller
from exatrkx_hpc.config.resolve import Resolved
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.watch import Watch
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.schedulers import abilities_of
from exatrkx_hpc.launch.slurm.interactive import allocation, job_argv, salloc_argv


def refuse_mixture(given: Mapping[str, bool]) -> None:
    """Raise ConfigError if one of these flags, which cannot be combined with --interactive, was given."""
    for flag, there in given.items():
        if there:
            raise ConfigError(f"--interactive cannot be combined with {flag}; omit {flag}")


def within_allocation(found: Resolved, *, nodes_given: bool) -> Resolved:
    """Return the configuration with the number of nodes of this shell's allocation, unless a flag sets the number.

    Raises ConfigError at a site without Slurm.
    """
    if not abilities_of(found.farm).allocations:
        raise ConfigError(
            f"--interactive needs Slurm, which site {found.farm.site} does not use; run deploy and monitor instead"
        )
    inside = allocation(os.environ)
    if inside is None or nodes_given or not inside.nodes:
        return found
    job = found.farm.job.model_copy(update={"nodes": inside.nodes})
    return dataclasses.replace(
        found,
        farm=found.farm.model_copy(update={"job": job}),
        sources={**found.sources, "job.nodes": f"allocation {inside.job}"},
    )


def what_would_run(farm: Farm) -> str:
    """Return the command that --interactive would start, as text."""
    argv = job_argv(Path("SCRIPT"), Path(farm.run_root))
    return shlex.join(argv if allocation(os.environ) else [*salloc_argv(prepare.plan(farm, lay_out=False)), *argv])


def run_here(farm: Farm, sources: Mapping[str, str], *, trust_run_root: bool) -> None:
    """Run the farm and its endpoint until the farm ends or Ctrl-C.

    The first Ctrl-C drains the servers, the second stops them at once. Raises LaunchError when the farm failed, and
    the errors of deploy and monitor.
    """
    job: story.Job | None = None
    keeper: Watch | None = None
    words, tell = _Words(Path(farm.run_root)), teller(results=True)
    try:
        with deferred_signals():
            job = story.deploy(farm, tell=tell, sources=sources, interactive=True, trust_run_root=trust_run_root)
            keeper = story.watch(job, tell=tell)
            keeper.start()
        _follow(job, keeper, words, tell)
    except KeyboardInterrupt:
        if job is not None:
            _drain(job)
    finally:
        with deferred_signals():
            _end(job, keeper)
    _last_word(job, words)


class _Words:
    """The output of a job's script and its srun, each line once, without that of an earlier farm of the allocation."""

    def __init__(self, run_root: Path) -> None:
        """Start at the end of the existing log below `run_root`."""
        self._farm = FarmDir(run_root)
        inside = allocation(os.environ)
        self._place = len(self._read(inside.job)) if inside is not None else 0

    def show(self, job: str) -> None:
        """Print the new lines."""
        whole = self._read(job).rpartition(b"\n")[0]
        if fresh := whole[self._place :]:
            typer.echo(fresh.decode(errors="replace").lstrip("\n"))
            self._place += len(fresh)

    def _read(self, job: str) -> bytes:
        try:
            return self._farm.job(job).job_log.read_bytes()
        except OSError:
            return b""


def _follow(job: story.Job, keeper: Watch, words: _Words, tell: Tell) -> None:
    """Print output and prompts until the job has ended."""
    wanted = job.farm.job.nodes * job.farm.server.servers_per_node
    began = f"job {job.id}, run directory {job.run_dir}; press Ctrl-C to drain the servers and stop the farm"
    tell(Prompt(job=job.id, text=began))
    told = False
    while not keeper.view.job.over:
        keeper.raise_error()
        words.show(job.id)
        if not told and len(keeper.view.ready) >= wanted:
            told = True
            ready = f"{wanted} of {wanted} servers ready; run in another terminal: {_clients(job)}"
            tell(Prompt(job=job.id, text=ready))
        time.sleep(0.2)


def _clients(job: story.Job) -> str:
    """Return the command that runs clients from another terminal, in any folder."""
    return shlex.join(["exatrkx-hpc", "run-clients", "--run-root", job.farm.run_root, "-d", "EVENTS", "-o", "RESULTS"])


def _drain(job: story.Job) -> None:
    typer.echo(f"\ndraining the servers of job {job.id}; press Ctrl-C again to stop them at once")
    try:
        job.scheduler.cancel(job.id)
    except KeyboardInterrupt:
        typer.echo("\nstopping them at once")


def _end(job: story.Job | None, keeper: Watch | None) -> None:
    """Cancel the job, then stop the endpoint, so that draining servers leave it first."""
    try:
        if job is not None:
            job.scheduler.cancel(job.id, drain=False)
    finally:
        if keeper is not None:
            keeper.stop()


def _last_word(job: story.Job | None, words: _Words) -> None:
    if job is None:
        return
    words.show(job.id)
    now = story.status(job).info
    if now.state not in (JobState.COMPLETED, JobState.CANCELLED):
        logs = job.run_dir.logs
        raise LaunchError(f"the farm of job {job.id} is {now.state.value} ({now.reason}); the logs are in {logs}")
    typer.echo(f"the farm of job {job.id} has ended" + (", its allocation is kept" if allocation(os.environ) else ""))
