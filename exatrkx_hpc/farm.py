"""The steps in order: deploy a farm, monitor it, send events through it, stop it.

In a notebook:

    import exatrkx_hpc as hpc

    with hpc.up("farm.toml") as endpoint:
        labels = endpoint.find_tracks(hits)

The command line calls the same functions and prints their results.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exatrkx_hpc import prepare
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.news import Tell, of_job, untold
from exatrkx_hpc.base.ownership import farm_id
from exatrkx_hpc.base.signals import deferred_signals
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.background import Background, start_in_background
from exatrkx_hpc.fleet.balancer.balancers import balancer_of, end_left, kind_of
from exatrkx_hpc.fleet.endpoint import EndpointRecord, read_endpoint, remove_endpoint, running_endpoint
from exatrkx_hpc.fleet.members import outliers
from exatrkx_hpc.fleet.members.outliers import OutlierDetection, Trial
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.fleet.monitor import Monitor
from exatrkx_hpc.fleet.sidecars.prometheus import metrics_store
from exatrkx_hpc.fleet.status import JobStatus, job_status, wait_until_ready
from exatrkx_hpc.fleet.watch import Watch
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.render import render_job
from exatrkx_hpc.launch.run_dir import LATEST, FarmDir, RunDir
from exatrkx_hpc.launch.run_dirs import old_jobs, remove, remove_old_scripts, remove_script
from exatrkx_hpc.launch.scheduler import JobMayRunError, Scheduler
from exatrkx_hpc.launch.schedulers import farm_slurm, scheduler_of
from exatrkx_hpc.launch.slurm.farm_jobs import read_record
from exatrkx_hpc.launch.words import Word

if TYPE_CHECKING:  # imported where a run begins: NumPy and gRPC take longer than `status` needs
    from exatrkx_hpc.work.map.endpoint import Endpoint
    from exatrkx_hpc.work.run.progress import ShowProgress
    from exatrkx_hpc.work.run.report import Report
    from exatrkx_hpc.work.run.run import Settings


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job of a farm: its ID, its farm and its scheduler."""

    id: str
    farm: Farm
    scheduler: Scheduler

    @property
    def run_dir(self) -> RunDir:
        """The run directory: script, records, logs, generated configuration."""
        return FarmDir.of(self.farm).job(self.id)

    @property
    def cluster(self) -> str:
        """The cluster named at submission; empty for the default cluster of this machine."""
        return read_record(self.run_dir).cluster or ""


def script(
    farm: Farm,
    *,
    sources: Mapping[str, str] | None = None,
    beside: Sequence[Word] = (),
    companion: Sequence[Word] = (),
) -> str:
    """Return the job script of `farm`, without submitting or writing it; `deploy` explains the arguments."""
    return render_job(_plan(farm, sources, beside, companion, lay_out=False))


def _plan(
    farm: Farm,
    sources: Mapping[str, str] | None,
    beside: Sequence[Word],
    companion: Sequence[Word],
    *,
    lay_out: bool = True,
) -> FarmPlan:
    commands = {"beside": tuple(beside), "companion": tuple(companion)}
    return prepare.plan(farm, lay_out=lay_out, sources=sources).model_copy(update=commands)


def deploy(
    farm: Farm,
    *,
    tell: Tell = untold,
    sources: Mapping[str, str] | None = None,
    interactive: bool = False,
    trust_run_root: bool = False,
    beside: Sequence[Word] = (),
    companion: Sequence[Word] = (),
) -> Job:
    """Submit the job of `farm` and return it.

    `interactive` starts the job in this shell's allocation, or in a new one from salloc. `sources` maps keys to the
    source of their value, for the comments in the script. `trust_run_root` accepts a run root that seems not to be
    shared with the nodes. `beside` is a command that runs beside the servers on the first node; when the command
    ends, the servers end. `companion` is a command that runs there as long as the servers do, and is started again if
    it ends.
    Raises LaunchError (job refused), ModelError (missing or invalid model repository), MissingComponent (program not
    found).
    """
    prepare.refuse_faults(farm)
    prepare.require_site(farm, interactive=interactive, trust_run_root=trust_run_root)
    prepare.make_run_root(farm)
    what = _plan(farm, sources, beside, companion)
    prepare.require_models(farm, tell)
    for caution in prepare.cautions(farm, interactive=interactive):
        tell(caution)
    path = prepare.write_script(farm, what)
    scheduler = scheduler_of(farm) if not interactive else farm_slurm(farm, interactive=True)
    with deferred_signals():
        try:
            job = Job(id=scheduler.submit(path, what), farm=farm, scheduler=scheduler)
        except JobMayRunError:
            raise
        except BaseException:
            remove_script(path)
            raise
        try:
            job.run_dir.path.mkdir(mode=0o700, exist_ok=True)
            write_whole(job.run_dir.plan, what.model_dump_json(indent=2) + "\n", mode=0o600)
        except BaseException as error:
            scheduler.cancel(job.id, drain=False)
            if isinstance(error, OSError):
                raise LaunchError(f"cannot write {job.run_dir} ({error.strerror}); the job is cancelled") from error
            raise
    return job


def find_job(farm: Farm, job: str = LATEST) -> Job:
    """Return a submitted job by its ID, or the newest one.

    `job` may name the cluster, `ID;CLUSTER`. Raises LaunchError when the job has no run directory or belongs to
    another cluster.
    """
    known = FarmDir.of(farm).job_ids()
    job, _, cluster = job.partition(";")
    if job == LATEST and known:
        job = known[-1]
    found = Job(id=job, farm=farm, scheduler=scheduler_of(farm))
    if not job.isdigit() or not found.run_dir.path.is_dir():
        raise LaunchError(
            f"no job {job!r} in {farm.run_root}; list the jobs with 'ls {farm.run_root}', or set another run_root"
        )
    if cluster and cluster != found.cluster:
        raise LaunchError(f"job {job} of {farm.run_root} does not belong to cluster {cluster}; omit ';{cluster}'")
    return found


def watch(job: Job, *, tell: Tell = untold) -> Watch:
    """Return a monitor of `job`, not started yet; it runs the endpoint until `stop()` or the end of the job."""
    farm, host = job.farm, job.farm.balancer.host
    told = of_job(job.id, tell)
    monitor = Monitor(
        run_dir=job.run_dir,
        job_info=lambda: job.scheduler.info(job.id),
        balancer=balancer_of(
            farm.balancer,
            job.run_dir.balancer(kind_of(farm.balancer).program),
            told,
            farm=farm_id(farm.name, farm.run_root),
            job=job.id,
            request_timeout=farm.clients.request_timeout,
        ),
        metrics_store=metrics_store(farm.monitor, job.run_dir.prometheus, host=host, tell=told),
        settings=farm.monitor,
        tell=tell,
        judge=OutlierDetection(job.run_dir, farm.monitor, trial=_trial(farm), tell=tell),
    )
    return Watch(monitor)


def _trial(farm: Farm) -> Trial | None:
    """Return how the monitor tries a server with one inference, or None if it shall not or cannot."""
    if not farm.monitor.trial:
        return None
    from exatrkx_hpc.work.inference.trial import trial_of

    trial = trial_of(farm.clients, timeout=farm.monitor.trial_timeout)
    return None if trial is None else lambda member: trial(member.grpc)


def detach(job: Job, words: Sequence[str]) -> Background:
    """Start `exatrkx-hpc WORDS`, a monitor of `job`, in the background, and return when its endpoint is open.

    Raises EndpointError, with the monitor's last line, if it does not open its endpoint.
    """
    return start_in_background(job.run_dir, words)


def run_clients(
    settings: Settings,
    progress: ShowProgress | None = None,
    *,
    tell: Tell = untold,
    farm: Farm | None = None,
) -> Report:
    """Send every event of a folder through the endpoint, and write a report page, OUT/report.html.

    See `exatrkx_hpc.work.run.run.run_clients`. If the endpoint belongs to `farm`, the page has the counters of its
    servers. If OUT belongs to a run over several nodes, process its shards on this machine, one after the other.
    """
    from exatrkx_hpc.page.write import page_of_run
    from exatrkx_hpc.work.nodes.run import here, run_sharded
    from exatrkx_hpc.work.results.shards import read_sharding
    from exatrkx_hpc.work.run import run as workers

    with page_of_run(settings, Path(farm.run_root) if farm is not None else None):
        if read_sharding(settings.out) is not None:
            return run_sharded(settings, here(tell), progress, tell=tell)
        return workers.run_clients(settings, progress, tell=tell)


def run_clients_on_nodes(
    settings: Settings,
    progress: ShowProgress | None = None,
    *,
    farm: Farm,
    nodes: int | None = None,
    tell: Tell = untold,
) -> Report:
    """Like `run_clients`, with `settings.workers` workers on each of `nodes` nodes of this shell's allocation.

    See `exatrkx_hpc.work.nodes.step.run_on_nodes`.
    """
    from exatrkx_hpc.page.write import page_of_run
    from exatrkx_hpc.work.nodes.step import run_on_nodes

    with page_of_run(settings, Path(farm.run_root)):
        return run_on_nodes(settings, progress, nodes=nodes, tell=tell)


def stop(job: Job, *, drain: bool = True) -> None:
    """Stop `job`. With `drain`, its servers first leave the balancer and finish their requests.

    Also end a balancer of the job that runs on this machine without a monitor.
    """
    with deferred_signals():
        job.scheduler.cancel(job.id, drain=drain)
        record = read_endpoint(job.run_dir)
        if record is not None and not record.has_monitor(time.time()):
            end_left(job.farm.balancer, job.run_dir.balancer(kind_of(job.farm.balancer).program))
            remove_endpoint(job.run_dir)


def ask_server(job: Job, server: str, *, restart: bool = False) -> None:
    """Drain one server of `job`, and end it or, with `restart`, start it again; returns at once.

    Raises LaunchError if the job has no such server, or if the server has ended.
    """
    records = {record.server: record for record in read_records(job.run_dir)}
    if server not in records:
        raise LaunchError(f"job {job.id} has no server {server!r}; 'exatrkx-hpc status {job.id}' lists its servers")
    if job.run_dir.has_ended(server) or job.scheduler.info(job.id).state.over:
        raise LaunchError(f"{server} has ended ({records[server].note}); deploy another job to replace it")
    try:
        outliers.ask_server(job.run_dir, server, "restart" if restart else "drain", by="request")
    except OSError as error:
        raise LaunchError(f"cannot write {job.run_dir.word(server)} ({error.strerror})") from error


def jobs(farm: Farm) -> Iterator[Job]:
    """Yield every job that has a run directory, in the order of the job IDs."""
    scheduler = scheduler_of(farm)
    for job in FarmDir.of(farm).job_ids():
        yield Job(id=job, farm=farm, scheduler=scheduler)


def status(job: Job) -> JobStatus:
    """Return the current status of `job`, its servers and its endpoint."""
    return job_status(job.scheduler.info(job.id), job.run_dir, timeout=job.farm.monitor.probe_timeout)


def wait_ready(job: Job, *, timeout: float, tell: Tell = untold) -> JobStatus:
    """Wait until every server of `job` is ready and return that status; report each change to `tell`.

    Raises EndpointError when the job ends first, or after `timeout` seconds.
    """
    wanted = job.farm.job.nodes * job.farm.server.servers_per_node
    return wait_until_ready(lambda: status(job), wanted=wanted, timeout=timeout, tell=tell)


def setup(
    farm: Farm,
    *,
    tell: Tell = untold,
    trust_run_root: bool = False,
    packages: Sequence[str] = (),
    fused: bool = True,
) -> None:
    """Create the folders, pull the image, fetch the models' packages, build and check the models; safe to repeat.

    `trust_run_root` accepts a run root that seems not to be shared with the nodes. `packages` are fetched in addition
    to the packages that the shipped models import. `fused` builds the fused model, too. Raises LaunchError,
    MissingComponent or ModelError when a step fails.
    """
    prepare.set_up(farm, tell, trust_run_root=trust_run_root, packages=packages, fused=fused)


def clean(farm: Farm, *, older_than: float) -> tuple[str, ...]:
    """Remove the run directories of ended jobs, unchanged for `older_than` seconds; return the job IDs.

    Also removes job scripts of that age that belong to no job with a run directory.
    """
    folder, scheduler = FarmDir.of(farm), scheduler_of(farm)
    old = old_jobs(folder, older_than=older_than, is_over=lambda job: scheduler.info(job).state.over)
    for job in old:
        remove(folder.job(job))
    remove_old_scripts(folder, older_than=older_than)
    return old


@contextmanager
def running(farm: Farm, *, tell: Tell = untold, wait: float = 600.0) -> Iterator[tuple[Job, Watch]]:
    """Deploy `farm`, run its endpoint inside the block, and stop both when the block ends.

    All servers are ready when the block begins; raises EndpointError when they are not ready within `wait` seconds.
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
        monitor.raise_error()
    finally:
        with deferred_signals():
            _end(job, monitor)


def _end(job: Job | None, monitor: Watch | None) -> None:
    try:
        if job is not None:
            job.scheduler.cancel(job.id, drain=False)
    finally:
        if monitor is not None:
            monitor.stop()


@contextmanager
def up(
    file: str | Path | None = None,
    *,
    flags: Mapping[str, object] | None = None,
    tell: Tell = untold,
    wait: float = 600.0,
) -> Iterator[Endpoint]:
    """Start the farm of `file` and yield its endpoint; leaving the block stops the farm.

    `flags` override values of the file by dotted key, such as `{"job.nodes": 2}`. The servers must be ready within
    `wait` seconds. Raises ConfigError, MissingComponent, LaunchError, ModelError, EndpointError.
    """
    farm = resolve(file, flags=flags).farm
    clients = farm.clients
    from exatrkx_hpc.work.map.endpoint import Endpoint
    from exatrkx_hpc.work.workloads.table import workload_of

    chosen = workload_of(clients.model, default=clients.workload, folder=clients.workloads)
    chosen.requests(clients.mode)  # raises ConfigError for mode direct before anything starts
    with (
        running(farm, tell=tell, wait=wait) as (_, monitor),
        Endpoint(
            monitor.endpoint,
            workload=chosen,
            model=clients.model,
            mode=clients.mode,
            request_timeout=clients.request_timeout,
            patience=clients.patience,
        ) as endpoint,
    ):
        yield endpoint


def endpoint_record(farm: Farm, job: str = LATEST, *, tell: Tell = untold) -> EndpointRecord:
    """Return the addresses of the endpoint of `job`, by default of the job monitored last.

    If its monitor is gone, but its balancer still answers, `tell` gets MonitorAbsent. Raises EndpointError when there
    is no endpoint, or nothing of this job answers at its address.
    """
    return running_endpoint(FarmDir.of(farm), job, tell=tell)
