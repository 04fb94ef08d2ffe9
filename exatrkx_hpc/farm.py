"""The story in order: deploy a farm, watch it, push events through it, stop it.

In a notebook:

    from exatrkx_hpc import farm

    with farm.up("farm.toml") as endpoint:
        labels = endpoint.find_tracks(hits)

The command line calls the same functions and prints what they return.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.assets import asset
from exatrkx_hpc.config import Farm
from exatrkx_hpc.errors import LaunchError, ModelError
from exatrkx_hpc.files import write_whole
from exatrkx_hpc.fleet.endpoint_file import LATEST, EndpointRecord, point_latest, running_endpoint
from exatrkx_hpc.fleet.monitor import Monitor
from exatrkx_hpc.fleet.watch import Watch
from exatrkx_hpc.launch.batch import render_job
from exatrkx_hpc.launch.local import EmbeddedScheduler
from exatrkx_hpc.launch.payload import write_payload
from exatrkx_hpc.launch.plan import FarmPlan, Tool, make_plan, python_folder
from exatrkx_hpc.launch.scheduler import Scheduler
from exatrkx_hpc.launch.slurm import Slurm
from exatrkx_hpc.launch.triton import embedded_triton
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.resolution import resolve
from exatrkx_hpc.signals import deferred_signals
from exatrkx_hpc.work import workers
from exatrkx_hpc.work.endpoint import Endpoint
from exatrkx_hpc.work.report import Report

Tell = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of a farm: its id, where its files are, and who runs it."""

    id: str
    farm: Farm
    scheduler: Scheduler

    @property
    def run_dir(self) -> Path:
        """The run directory: script, records, logs, generated configuration."""
        return Path(self.farm.run_root, self.id)


def script(farm: Farm) -> str:
    """Return the sbatch script of `farm`; nothing is submitted or written."""
    return render_job(plan(farm, lay_out=False))


def deploy(farm: Farm, *, tell: Tell = lambda line: None) -> Job:
    """Submit the job of `farm` and return it.

    Raises LaunchError when it is refused, ModelError when there is no model repository, MissingComponent when
    a program is not here.
    """
    run_root = Path(farm.run_root)
    _make_run_root(run_root)
    what = plan(farm)
    _require_models(farm, tell)
    write_payload(Path(python_folder(farm)))
    path = run_root / "scripts" / f"{farm.name}-{time.strftime('%Y%m%d-%H%M%S')}.sbatch"
    write_whole(path, render_job(what), mode=0o700)
    scheduler = scheduler_of(farm)
    with deferred_signals():
        job = Job(id=scheduler.submit(path, what), farm=farm, scheduler=scheduler)
    job.run_dir.mkdir(mode=0o700, exist_ok=True)
    point_latest(job.run_dir)
    write_whole(job.run_dir / "plan.json", what.model_dump_json(indent=2) + "\n")
    return job


def find_job(farm: Farm, job: str = LATEST) -> Job:
    """Return a job that was submitted before, or the one that was submitted or watched last.

    Raises LaunchError when its run directory is not there.
    """
    latest = Path(farm.run_root, LATEST)
    if job == LATEST and latest.is_dir():
        job = latest.resolve().name
    found = Job(id=job, farm=farm, scheduler=scheduler_of(farm))
    if not job.isdigit() or not found.run_dir.is_dir():
        raise LaunchError(
            f"no job {job!r} in {farm.run_root}; 'ls {farm.run_root}' shows the jobs, "
            "and run_root in farm.toml names another place"
        )
    return found


def watch(job: Job, *, tell: Tell = lambda line: None) -> Watch:
    """Return a monitor of `job`, ready to start; it keeps the endpoint until it is stopped."""
    monitor = Monitor(
        run_dir=job.run_dir,
        job_state=lambda: job.scheduler.state(job.id),
        balancer=job.farm.balancer,
        settings=job.farm.monitor,
        tell=tell,
    )
    return Watch(monitor)


def run_clients(settings: workers.Settings, progress: workers.ShowProgress | None = None) -> Report:
    """Push every event of a folder through the endpoint; see `exatrkx_hpc.work.workers.run_clients`."""
    return workers.run_clients(settings, progress)


def stop(job: Job, *, drain: bool = True) -> None:
    """End `job`: its servers leave the balancer, finish what they have and end."""
    with deferred_signals():
        job.scheduler.cancel(job.id, drain=drain)


@contextmanager
def running(farm: Farm, *, tell: Tell = lambda line: None, wait: float = 600.0) -> Iterator[tuple[Job, Watch]]:
    """Deploy `farm`, keep its endpoint inside the block, and stop all of it when the block is left.

    All servers are ready when the block begins; raises EndpointError when they are not within `wait` seconds.
    """
    job: Job | None = None
    monitor: Watch | None = None
    try:
        with deferred_signals():
            job = deploy(farm, tell=tell)
            monitor = watch(job, tell=tell)
            monitor.start()
        monitor.wait_ready(farm.job.nodes * farm.server.servers_per_node, timeout=wait)
        yield job, monitor
    finally:
        with deferred_signals():
            if job is not None:
                job.scheduler.cancel(job.id, drain=False)
            if monitor is not None:
                monitor.stop()


@contextmanager
def up(
    file: str | Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    tell: Tell = lambda line: None,
    wait: float = 600.0,
) -> Iterator[Endpoint]:
    """Bring the farm of `file` up and yield its endpoint; leaving the block stops what was started.

    `flags` are values by dotted key that go before those of the file, such as `{"job.nodes": 2}`. Raises
    ConfigError, MissingComponent, LaunchError, ModelError, EndpointError.
    """
    farm = resolve(Path(file) if file is not None else None, flags=flags).farm
    clients = farm.clients
    with (
        running(farm, tell=tell, wait=wait) as (_, monitor),
        Endpoint(monitor.endpoint, request_timeout=clients.request_timeout, patience=clients.patience) as endpoint,
    ):
        yield endpoint


def endpoint_record(farm: Farm, job: str = LATEST) -> EndpointRecord:
    """Return where the endpoint of `job`, or of the job watched last, is; raises EndpointError if nowhere."""
    return running_endpoint(Path(farm.run_root), job)


def scheduler_of(farm: Farm) -> Scheduler:
    """Return the scheduler that the site has."""
    if farm.cluster.scheduler == "slurm":
        return Slurm()
    return EmbeddedScheduler(run_root=Path(farm.run_root), first_address=farm.cluster.local_address)


def plan(farm: Farm, *, lay_out: bool = True) -> FarmPlan:
    """Return what the job of `farm` will do; `lay_out` also puts the embedded Triton's parts in their place."""
    if farm.cluster.scheduler == "slurm" or farm.server.engine != "none" or farm.server.triton != "tritonserver":
        return make_plan(farm)
    return make_plan(farm, tool=_embedded_tool(farm, lay_out=lay_out))


def _embedded_tool(farm: Farm, *, lay_out: bool) -> Tool:
    triton = embedded_triton(Path(farm.run_root, "triton"), lay_out=lay_out)
    return Tool(
        triton=str(triton.server),
        arguments=(f"--backend-directory={triton.backend_directory}", f"--cache-directory={triton.cache_directory}"),
        environment=tuple(triton.environment.items()),
    )


def _make_run_root(run_root: Path) -> None:
    try:
        (run_root / "scripts").mkdir(parents=True, exist_ok=True)
        (run_root / "python").mkdir(exist_ok=True)
    except OSError as error:
        raise LaunchError(
            f"run_root {run_root} cannot be made ({error.strerror}); name a folder that you may write to"
        ) from error


def _require_models(farm: Farm, tell: Tell) -> None:
    """On this machine the shipped models are built when they are missing; a site builds its own once."""
    repository = Path(farm.server.model_repository)
    if not repository.is_dir() and farm.cluster.scheduler == "local":
        tell(f"models: building {repository} for {farm.server.device}")
        build(asset("model_repos/exatrkx"), repository, device=farm.server.device, instances=farm.server.instances)
    if not repository.is_dir():
        raise ModelError(
            f"model repository {repository} does not exist; make it with 'exatrkx-hpc models build "
            f"--device {farm.server.device} --instances {farm.server.instances} --out {repository}'"
        )
    if findings := check(repository):
        first = findings[0]
        raise ModelError(
            f"model repository {repository} would not work: {first.model}: {first.what}; {first.remedy} "
            f"('exatrkx-hpc models check {repository}' lists {len(findings)} fault(s))"
        )
