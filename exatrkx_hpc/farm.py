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
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from exatrkx_hpc import prepare
from exatrkx_hpc.base.credentials import NO_FILES, CredentialFiles, Credentials
from exatrkx_hpc.base.errors import EndpointError, ExatrkxError, LaunchError, MissingComponent
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import News, Tell, of_job, untold
from exatrkx_hpc.base.ownership import farm_id, parse_endpoint_id
from exatrkx_hpc.base.signals import deferred_signals
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.config.values import least_ready
from exatrkx_hpc.fleet.background import Background, start_in_background
from exatrkx_hpc.fleet.balancer.access import is_loopback
from exatrkx_hpc.fleet.balancer.address import INTERNAL
from exatrkx_hpc.fleet.balancer.balancers import balancer_of, end_left, kind_of
from exatrkx_hpc.fleet.credentials import EndpointAccess, credential_files, endpoint_at
from exatrkx_hpc.fleet.endings import explained, read_notice
from exatrkx_hpc.fleet.endpoint import EndpointRecord, read_endpoint, remove_endpoint, running_endpoint
from exatrkx_hpc.fleet.endpoints import endpoints_of, monitor_lives, only_endpoint
from exatrkx_hpc.fleet.events import EndpointUnguarded
from exatrkx_hpc.fleet.members import outliers
from exatrkx_hpc.fleet.members.outliers import OutlierDetection, Trial
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.fleet.monitor import Monitor
from exatrkx_hpc.fleet.readiness import ReadyWait
from exatrkx_hpc.fleet.sidecars.prometheus import metrics_store
from exatrkx_hpc.fleet.status import JobStatus, job_status, wait_until_ready
from exatrkx_hpc.fleet.stopping import stop_news
from exatrkx_hpc.fleet.watch import Watch
from exatrkx_hpc.launch.events import SubmissionOpen
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.render import render_job
from exatrkx_hpc.launch.run_dir import LATEST, FarmDir, RunDir
from exatrkx_hpc.launch.run_dirs import old_jobs, remove, remove_old_scripts, remove_script
from exatrkx_hpc.launch.scheduler import JobMayRunError, Scheduler, SchedulerSilentError
from exatrkx_hpc.launch.schedulers import abilities_of, farm_slurm, scheduler_of
from exatrkx_hpc.launch.secrets import farm_server_key, key_headers
from exatrkx_hpc.launch.slurm.farm_jobs import read_record
from exatrkx_hpc.launch.words import Word

if TYPE_CHECKING:  # imported where a run begins: NumPy and gRPC take longer than `status` needs
    from exatrkx_hpc.work.map.endpoint import Endpoint
    from exatrkx_hpc.work.run.progress import ShowProgress
    from exatrkx_hpc.work.run.report import Report
    from exatrkx_hpc.work.run.run import Settings
    from exatrkx_hpc.work.workloads.base import Workload

_DAY = 86400.0
#: In seconds. A monitor that has just been started holds its lock after this time.
_FIRST = 3.0
#: In seconds. An earlier submission is clear after this time, unless Slurm does not answer.
_SETTLED = 60.0


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
    scheduler = scheduler_of(farm) if not interactive else farm_slurm(farm, interactive=True)
    _settle_first(scheduler, farm, tell)
    path = prepare.write_script(farm, what)
    with deferred_signals():
        try:
            return Job(id=scheduler.submit(path, what), farm=farm, scheduler=scheduler)
        except JobMayRunError:
            raise
        except ExatrkxError:  # no job exists; after any other exception, one may
            remove_script(path)
            raise


def _settle_first(scheduler: Scheduler, farm: Farm, tell: Tell) -> None:
    """Raise LaunchError if an earlier deploy that did not finish made a job, or if Slurm does not say whether."""
    adopted: list[str] = []
    still: list[SubmissionOpen] = []

    def heard(news: News) -> None:
        if isinstance(news, SubmissionOpen):
            still.append(news)
        else:
            adopted.append(news.job)
            tell(news)

    until = time.monotonic() + _SETTLED
    while not scheduler.settle(heard) and not adopted:
        if time.monotonic() > until:
            raise LaunchError(f"in {farm.run_root}, {still[-1]}")
        time.sleep(2.0)
    if adopted:
        raise LaunchError(
            f"an earlier deploy in {farm.run_root} did not finish, but submitted job {', '.join(adopted)}; use that "
            "job, or repeat this command to submit another"
        )


def find_job(farm: Farm, job: str | None = None, *, tell: Tell = untold) -> Job:
    """Return a submitted job by its ID; without one, the only live job, or the newest job if none lives.

    `job` may name the cluster, `ID;CLUSTER`; `latest` is the newest job, which has the highest ID. A job that an
    interrupted deploy submitted is recorded first, with news. Raises LaunchError when the job has no run directory or
    belongs to another cluster, or without an ID when several jobs live.
    """
    if job is None:
        return only_job(farm, candidates(farm, tell=tell))
    scheduler_of(farm).settle(tell)
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


def candidates(farm: Farm, *, tell: Tell = untold) -> tuple[tuple[Job, JobInfo], ...]:
    """Return the jobs that a command without a job ID may mean: all live jobs, or the newest job if none lives.

    While the scheduler is silent or its commands are missing, every job may live. So may a job that the scheduler does
    not know, for a day: it may have been submitted just now.
    """
    known = tuple(jobs(farm, tell=tell))
    if len(known) < 2:
        return tuple((job, JobInfo(id=job.id, state=JobState.UNKNOWN)) for job in known)
    try:
        infos = known[0].scheduler.infos([job.id for job in known])
    except (SchedulerSilentError, MissingComponent) as error:
        infos = {job.id: JobInfo(id=job.id, state=JobState.UNKNOWN, reason=str(error), answered=False) for job in known}
    live = tuple((job, infos[job.id]) for job in known if _may_live(job, infos[job.id]))
    return live or ((known[-1], infos[known[-1].id]),)


def _may_live(job: Job, info: JobInfo) -> bool:
    if info.state is not JobState.UNKNOWN or not info.answered:
        return not info.state.over
    with suppress(OSError):
        return job.run_dir.path.stat().st_mtime > time.time() - _DAY
    return False


def only_job(farm: Farm, found: Sequence[tuple[Job, JobInfo]]) -> Job:
    """Return the only one of these jobs; raises LaunchError with their IDs if there are several, or none."""
    if not found:
        raise LaunchError(f"no job in {farm.run_root}; submit one with 'exatrkx-hpc deploy', or set another run_root")
    if len(found) > 1:
        each = ", ".join(f"{job.id} ({info.state.value})" for job, info in found)
        raise LaunchError(f"{len(found)} jobs of {farm.run_root} live: {each}; name the one that you mean")
    return found[0][0]


def watch(job: Job, *, tell: Tell = untold) -> Watch:
    """Return a monitor of `job`, not started yet; it runs the endpoint until `stop()` or the end of the job."""
    farm = job.farm
    told = of_job(job.id, tell)
    balancer = balancer_of(
        farm.balancer,
        job.run_dir.balancer(kind_of(farm.balancer).program),
        told,
        farm=farm_id(farm.name, farm.run_root),
        job=job.id,
        request_timeout=farm.clients.request_timeout,
        root=FarmDir.of(farm),
        nodes=_nodes(job) if farm.balancer.host == INTERNAL else (),
    )
    shared = abilities_of(farm).other_machines or not is_loopback(balancer.listen.host)
    if farm.balancer.access == "open" and shared:
        told(EndpointUnguarded(address=balancer.listen.grpc))
    monitor = Monitor(
        run_dir=job.run_dir,
        job_info=lambda: job.scheduler.info(job.id),
        balancer=balancer,
        metrics_store=metrics_store(farm.monitor, job.run_dir.prometheus, host=farm.monitor.prometheus_host, tell=told),
        settings=farm.monitor,
        tell=tell,
        judge=OutlierDetection(job.run_dir, farm.monitor, trial=_trial(farm), tell=tell),
    )
    return Watch(monitor)


def _nodes(job: Job) -> tuple[str, ...]:
    """Return the addresses of the job's nodes, as far as they are known."""
    try:
        nodes = job.scheduler.info(job.id).nodes
    except LaunchError:
        return ()
    return tuple(f"{node}{job.farm.cluster.host_suffix}" for node in nodes)


def _trial(farm: Farm) -> Trial | None:
    """Return how the monitor tries a server with one inference, or None if it shall not or cannot."""
    if not farm.monitor.trial:
        return None
    from exatrkx_hpc.work.inference.trial import trial_of

    key = key_headers(farm_server_key(FarmDir.of(farm)), grpc=True)
    credentials = Credentials(server_key=tuple(key.items()))
    trial = trial_of(farm.clients, timeout=farm.monitor.trial_timeout, credentials=credentials)
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
    servers, and news say if its job ends before the run. If OUT belongs to a run over several nodes, process its
    shards on this machine, one after the other.
    """
    from exatrkx_hpc.page.write import page_of_run
    from exatrkx_hpc.work.nodes.run import here, run_sharded
    from exatrkx_hpc.work.results.shards import read_sharding
    from exatrkx_hpc.work.run import run as workers

    with (
        page_of_run(settings, Path(farm.run_root) if farm is not None else None),
        _to_job_end(settings, progress, farm=farm, tell=tell) as show,
    ):
        if read_sharding(settings.out) is not None:
            return run_sharded(settings, here(tell), show, tell=tell)
        return workers.run_clients(settings, show, tell=tell)


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

    with (
        page_of_run(settings, Path(farm.run_root)),
        _to_job_end(settings, progress, farm=farm, tell=tell) as show,
    ):
        return run_on_nodes(settings, show, nodes=nodes, tell=tell)


def _to_job_end(
    settings: Settings, progress: ShowProgress | None, *, farm: Farm | None, tell: Tell
) -> AbstractContextManager[ShowProgress | None]:
    """Return the block of a run that knows when the job of its endpoint ends, if that is a job of `farm`."""
    from exatrkx_hpc.job_end import JobEnd, told_of_job_end

    whose = parse_endpoint_id(settings.identity)
    if farm is None or whose is None or not (run_dir := FarmDir.of(farm).job(whose.job)).path.is_dir():
        return nullcontext(progress)
    scheduler = scheduler_of(farm)

    def info() -> JobInfo:
        return explained(scheduler.info(run_dir.job), run_dir, read_records(run_dir))

    return told_of_job_end(JobEnd(info, tell, notice=read_notice(run_dir)), progress, tell)


def stop(job: Job, *, drain: bool = True, tell: Tell = untold) -> None:
    """Stop `job`. With `drain`, its servers first leave the balancer and finish their requests.

    `tell` gets every 10 s what the stop waits for. Also end a balancer of the job that runs on this machine without a
    monitor.
    """
    with deferred_signals(), stop_news(job.run_dir, lambda: job.scheduler.info(job.id), tell):
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


def jobs(farm: Farm, *, tell: Tell = untold) -> Iterator[Job]:
    """Yield every job that has a run directory, in the order of the job IDs.

    A job that an interrupted deploy submitted is recorded first, with news.
    """
    scheduler = scheduler_of(farm)
    scheduler.settle(tell)
    for job in FarmDir.of(farm).job_ids():
        yield Job(id=job, farm=farm, scheduler=scheduler)


def status(job: Job) -> JobStatus:
    """Return the current status of `job`, its servers and its endpoint."""
    return job_status(job.scheduler.info(job.id), job.run_dir, timeout=job.farm.monitor.probe_timeout)


def statuses(jobs: Sequence[Job]) -> tuple[JobStatus, ...]:
    """Return the current status of each of the jobs of one farm; the scheduler is asked once."""
    if not jobs:
        return ()
    infos = jobs[0].scheduler.infos([job.id for job in jobs])
    return tuple(job_status(infos[job.id], job.run_dir, timeout=job.farm.monitor.probe_timeout) for job in jobs)


def wait_ready(
    job: Job,
    *,
    timeout: float,
    queue_timeout: float | None = None,
    min_ready: int | str | None = None,
    tell: Tell = untold,
) -> JobStatus:
    """Wait until enough servers of `job` are ready and return that status; report each change to `tell`.

    `min_ready` is a number of servers or a share such as `90%`, by default `job.min_ready`. Raises EndpointError when
    the job ends first, `timeout` seconds after its start, or after `queue_timeout` seconds in the queue.
    """
    servers = servers_of(job.farm)
    wanted = least_ready(str(min_ready or job.farm.job.min_ready), servers)
    wait = ReadyWait(wanted=wanted, servers=servers, timeout=timeout, queue_timeout=queue_timeout)
    return wait_until_ready(lambda: status(job), wait=wait, tell=tell)


def servers_of(farm: Farm) -> int:
    """Return the number of servers of a job of `farm`."""
    return farm.job.nodes * farm.server.servers_per_node


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
    scheduler.settle()
    old = old_jobs(folder, older_than=older_than, infos=scheduler.infos)
    for job in old:
        remove(folder.job(job))
    remove_old_scripts(folder, older_than=older_than)
    return old


@contextmanager
def running(
    farm: Farm,
    *,
    tell: Tell = untold,
    wait: float = 600.0,
    queue_wait: float | None = None,
    min_ready: int | str | None = None,
) -> Iterator[tuple[Job, Watch]]:
    """Deploy `farm`, run its endpoint inside the block, and stop both when the block ends.

    The block begins when `min_ready` servers are ready: a number or a share such as `90%`, by default `job.min_ready`.
    Raises EndpointError when they are not ready `wait` seconds after the start of the job, or after `queue_wait`
    seconds in the queue.
    """
    job: Job | None = None
    monitor: Watch | None = None
    servers = servers_of(farm)
    wanted = least_ready(str(min_ready or farm.job.min_ready), servers)
    try:
        with deferred_signals():
            job = deploy(farm, tell=tell)
            monitor = watch(job, tell=tell)
            monitor.start()
        monitor.wait_ready(wanted, of=servers, timeout=wait, queue_timeout=queue_wait)
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
    queue_wait: float | None = None,
    min_ready: int | str | None = None,
) -> Iterator[Endpoint]:
    """Start the farm of `file` and yield its endpoint; leaving the block stops the farm.

    `flags` override values of the file by dotted key, such as `{"job.nodes": 2}`. See `running` for `wait`,
    `queue_wait` and `min_ready`. Raises ConfigError, MissingComponent, LaunchError, ModelError, EndpointError.
    """
    farm = resolve(file, flags=flags).farm
    _workload(farm).requests(farm.clients.mode)  # raises ConfigError for mode direct before anything starts
    with (
        running(farm, tell=tell, wait=wait, queue_wait=queue_wait, min_ready=min_ready) as (job, _),
        _endpoint(farm, endpoint_access(farm, job=job.id)) as endpoint,
    ):
        yield endpoint


def _workload(farm: Farm) -> Workload:
    from exatrkx_hpc.work.workloads.table import workload_of

    clients = farm.clients
    return workload_of(clients.model, default=clients.workload, folder=clients.workloads)


def _endpoint(farm: Farm, access: EndpointAccess) -> Endpoint:
    from exatrkx_hpc.work.map.endpoint import Endpoint

    clients = farm.clients
    return Endpoint(
        access.address,
        workload=_workload(farm),
        model=clients.model,
        mode=clients.mode,
        request_timeout=clients.request_timeout,
        patience=clients.patience,
        token_file=access.files.token,
        certificate=access.files.certificate,
        identity=access.identity,
    )


def endpoint_access(
    farm: Farm,
    server: str | None = None,
    *,
    given: CredentialFiles = NO_FILES,
    job: str | None = None,
    wait: float = 0.0,
    tell: Tell = untold,
) -> EndpointAccess:
    """Return the way to the endpoint at the address `server`, or without it to that of `job`, see `endpoint_record`.

    An address gets the farm's credentials and an identity only if it is that of an endpoint of the farm which a
    monitor keeps, or which says so itself. Files in `given` go first.
    """
    root = FarmDir.of(farm)
    record = endpoint_at(root, server) if server else endpoint_record(farm, job, wait=wait, tell=tell)
    if record is None:
        return EndpointAccess(address=server or "", files=given)
    own = credential_files(root, record)
    files = CredentialFiles(token=given.token or own.token, certificate=given.certificate or own.certificate)
    return EndpointAccess(address=server or record.grpc, identity=record.identity, job=record.job, files=files)


@contextmanager
def connect(
    file: str | Path | None = None, *, flags: Mapping[str, object] | None = None, job: str | None = None
) -> Iterator[Endpoint]:
    """Yield a client of the running endpoint of the farm of `file`, with the farm's token and certificate.

    `flags` override values of the file by dotted key; `job` is a job ID, by default that of the only endpoint.
    Raises ConfigError, and EndpointError when no monitor runs.
    """
    farm = resolve(file, flags=flags).farm
    with _endpoint(farm, endpoint_access(farm, job=job)) as endpoint:
        yield endpoint


def endpoint_record(farm: Farm, job: str | None = None, *, wait: float = 0.0, tell: Tell = untold) -> EndpointRecord:
    """Return the addresses of the endpoint of `job`, by default of the only endpoint of the run root.

    Waits up to `wait` seconds for a monitor that has not opened its endpoint yet. Raises EndpointError when no monitor
    runs, or without `job` when several endpoints run; LaunchError for an unknown job. If its monitor is gone, but its
    balancer still answers, `tell` gets MonitorAbsent.
    """
    folder = FarmDir.of(farm)
    named = find_job(farm, job).id if job is not None else None
    began = time.monotonic()
    while True:
        try:
            return running_endpoint(folder, named, tell=tell) if named is not None else only_endpoint(folder, tell)
        except EndpointError:
            waited = time.monotonic() - began
            if waited >= wait or (waited >= _FIRST and not _may_open(folder, named)):
                raise
        time.sleep(0.2)


def _may_open(folder: FarmDir, job: str | None) -> bool:
    """Return whether a monitor lives, or may live, that has no endpoint yet."""
    jobs = (folder.job(one) for one in (folder.job_ids() if job is None else (job,)))
    return any(not one.endpoint.exists() and monitor_lives(one) is not False for one in jobs)


def addresses_of(farm: Farm) -> dict[str, str]:
    """Return the endpoint for each other address of the farm's jobs: their HTTP, Prometheus and metrics addresses."""
    found: dict[str, str] = {}
    for record in endpoints_of(FarmDir.of(farm)):
        for address in (record.http, record.prometheus, *record.metrics.values()):
            found[address] = record.grpc
    return found
