"""Send all events through the endpoint: worker processes, result files, one report.

`run_clients` is the entry point. `coordinator.py` distributes events to the workers and restarts dead workers.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from exatrkx_hpc.base.credentials import CredentialFiles, Credentials
from exatrkx_hpc.base.errors import ConfigError, ExatrkxError, IncompleteRun, OutputError
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.work.events.parquet_files import require_pyarrow
from exatrkx_hpc.work.events.source import EVENT, PARQUET, format_of
from exatrkx_hpc.work.inference.blocking import blocking, stopped_by_signals
from exatrkx_hpc.work.inference.client import Client, checked_address
from exatrkx_hpc.work.inference.retry import PATIENCE
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.match_results import match_quarantine, sweep
from exatrkx_hpc.work.ledger.open import (
    ACCEPT,
    REMEDY,
    begin,
    facts_of,
    go_on,
    note_newlines,
    note_units,
    require_expected,
    require_served,
)
from exatrkx_hpc.work.news import WorkersAboveCores
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.models import Served
from exatrkx_hpc.work.results.parts import EVENTS, require_parts
from exatrkx_hpc.work.results.shards import WHOLE, Shard, read_sharding
from exatrkx_hpc.work.run.accounts import Accounts
from exatrkx_hpc.work.run.coordinator import Coordinator
from exatrkx_hpc.work.run.member_log import MemberLog
from exatrkx_hpc.work.run.model_watch import ModelWatch
from exatrkx_hpc.work.run.progress import ShowProgress
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.worker import Task
from exatrkx_hpc.work.workloads.base import DIRECT, Workload
from exatrkx_hpc.work.workloads.table import DEFAULT, workload

if TYPE_CHECKING:
    from exatrkx_hpc.config.values import LabelFormat, Mode

__all__ = ["Settings", "ShowProgress", "StoppedRun", "run_clients"]


GO_ON: Final = "run the same command again to go on"
"""How a stopped run ends its last line."""

READY: Final = 5.0
"""Seconds for an endpoint to answer whether it is ready, before it is considered dead."""

#: Workers per core above which the run prints a warning.
_FAR_ABOVE = 4


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of a run; raises ConfigError for a value that cannot work.

    `token_file` and `certificate` are the files with the farm's token and the certificate of an endpoint with TLS. The
    workers, also those on other nodes, get the paths and read the files themselves. `reports` is the folder from which
    the farm's monitor learns how the servers answered this run; None: it does not.

    `server` is `host:port`; `identity` is whose endpoint it should be (endpoint.json has it), empty for any. `events`
    is the folder of events: `*.csv`, `*.npy`, `*.npz`, or `*.parquet`, whose column `event_column` names the event of
    each row; or one Parquet file. `out` is the folder for results (`labels/`), `ledger.sqlite` and `report.json`; it is
    created if missing. Each of `workers` processes keeps `in_flight` requests.

    A run resumes from the ledger in `out`. `fresh` starts over, once the endpoint is ready. `retry_failed` also
    retries the events in quarantine. `accept_changes` redoes events that changed since they were done and drops
    missing ones; without it, both are an error. `accept_model_change` goes on when the models have changed, and records
    it; without it, their results are an error. `expect` is the number of events that the folder must have.

    `result_format` is `csv`, one result file per event, or `parquet`, files of about `part_events` events.

    `times` writes OUT/times.csv, the time of each stage for each event, in mode `stages` (written by page/write.py).
    `ignore_first` excludes the first answered events of this run from the report's latency; they get results.

    In seconds: `request_timeout` limits one attempt, `patience` limits the retries of a request after its first
    failure, `deadline` limits the wait for the endpoint at the start.

    `workload` names the kind of events, `workloads` the folder of your own workloads. `mode` is `ensemble` (one
    request to `model`, by default that of the workload), another mode of the workload (`stages`, `fused`), or
    `direct`: the workers run the models of `repository` themselves, one event at a time each, without a server.
    """

    server: str = ""
    events: Path
    out: Path
    workers: int = 1
    in_flight: int = 4
    request_timeout: float = 60.0
    patience: float = PATIENCE
    deadline: float = 10.0
    workload: str = DEFAULT
    workloads: str = ""
    model: str = ""
    mode: Mode = "ensemble"
    repository: Path | None = None
    fresh: bool = False
    retry_failed: bool = False
    accept_changes: bool = False
    accept_model_change: bool = False
    expect: int | None = None
    event_column: str = EVENT
    result_format: LabelFormat = "csv"
    times: bool = False
    ignore_first: int = 0
    part_events: int = EVENTS
    shard: Shard = WHOLE
    identity: str = ""
    token_file: Path | None = None
    certificate: Path | None = None
    reports: Path | None = None

    def __post_init__(self) -> None:
        self.kind.models(self.mode)  # raises ConfigError for an unknown mode
        if self.mode != DIRECT:
            checked_address(self.server)
        elif self.repository is None:
            raise ConfigError("mode direct needs a model repository; set --model-repository")
        for flag, value in (("-n", self.workers), ("-j", self.in_flight), ("part_events", self.part_events)):
            if value < 1:
                raise ConfigError(f"{flag} must be at least 1, not {value}")
        if self.result_format == PARQUET:
            require_parts(self.kind)
        if self.times and self.mode != "stages":
            raise ConfigError(f"--times needs --mode stages; mode {self.mode} does not measure the stages")
        if self.expect is not None and self.expect < 1:
            raise ConfigError(f"--expect must be at least 1, not {self.expect}")
        if self.ignore_first < 0:
            raise ConfigError(f"-i must be at least 0, not {self.ignore_first}")
        if self.request_timeout <= 0 or self.patience < 0 or self.deadline <= 0:
            raise ConfigError("the request timeout and the deadline must be above 0 s, the patience at least 0 s")
        # realpath: Path.resolve fails on a link to itself. The later mkdir reports such a link.
        if os.path.realpath(self.folder) in {os.path.realpath(self.events), os.path.realpath(self.events / "truth")}:
            raise ConfigError(f"results in {self.folder} would overwrite the events; choose another -o")

    @property
    def kind(self) -> Workload:
        """The workload; raises ConfigError for an unknown name."""
        return workload(self.workload, self.workloads)

    @property
    def credentials(self) -> Credentials:
        """The credentials for the endpoint; raises ConfigError if a file cannot be used."""
        return CredentialFiles(token=self.token_file, certificate=self.certificate).read()

    @property
    def models(self) -> str:
        """The names of the models that the mode runs, in order."""
        return self.kind.models(self.mode, self.model)

    @property
    def folder(self) -> Path:
        """The folder of the result files, such as `OUT/labels`."""
        return self.out / self.kind.folder

    @property
    def results(self) -> Results:
        """OUT, with the paths of the run's shard."""
        return Results(self.out, self.shard, workload=self.kind)

    @property
    def report(self) -> Path:
        """The file of the report, `OUT/report.json`."""
        return self.out / "report.json"


class StoppedRun(IncompleteRun):
    """The run was stopped before every event was tried; `report` has the figures until then."""

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report

    @classmethod
    def of(cls, report: Report, path: Path) -> StoppedRun:
        """Return the error for a stopped run, from its report, which is in the file `path`."""
        counts = f"{report.done} of {report.events} events have results, {report.failures} failed"
        return cls(f"{report.stopped}; {counts}, {report.not_tried} not tried ({path}); {GO_ON}", report)


def run_clients(settings: Settings, progress: ShowProgress | None = None, *, tell: Tell = untold) -> Report:
    """Process every event of the folder that has no result yet, and return the report.

    When it returns, every event was tried: check `report.failed`, or call `report.check()`. The report is also in
    OUT/report.json, the outcome of each event in OUT/ledger.sqlite. `tell` receives news, such as what earlier runs
    did. SIGTERM and SIGINT (Ctrl-C) stop the run without leaving a partial file. Works in a notebook, where an event
    loop already runs.

    Raises InputError for a folder without events, or with events that changed since they were done; EndpointError
    or ModelError when the endpoint is not ready at the start (results of an earlier run are kept); ConfigError when
    the machine cannot start so many workers; OutputError when a result cannot be written, another run writes to OUT,
    or its ledger does not fit; MissingComponent when Parquet needs pyarrow; StoppedRun (an IncompleteRun, with the
    report so far) after a signal or when the endpoint, the model or the workers keep failing.
    """
    form = format_of(settings.events)
    if settings.result_format == PARQUET:
        require_pyarrow()
    if settings.shard.is_whole and (shards := read_sharding(settings.out)) is not None:
        raise OutputError(f"{settings.out} has {shards} shards; resume them with 'exatrkx-hpc run-clients'")
    results = settings.results
    require_expected(settings.events, settings.expect, form=form, column=settings.event_column, workload=settings.kind)
    results.require_ours()
    with results.owned() as locks, contextlib.ExitStack() as stack:
        ledger, served = _ledger(settings, results, locks, form, tell)
        stack.enter_context(ledger)
        _warn(settings, tell)
        accept = settings.accept_model_change
        server, remedy = source_of(settings), REMEDY + ACCEPT
        require_served(ledger, served, server=server, remedy=remedy, accept=accept, tell=tell)
        newline = False
        if ledger.counts().left:
            note_units(ledger, settings.events, settings.kind, tell)
            newline = note_newlines(ledger, settings.events, tell)
        task = _task(settings, newline=newline)
        return _run_clients(settings, task, ledger, served, progress=progress or (lambda tally: None), tell=tell)


def _ledger(settings: Settings, results: Results, locks: bool, form: str, tell: Tell) -> tuple[Ledger, Served]:
    """Return the ledger to resume, or a new one, and what the endpoint serves; nothing if no event is left."""
    what = {"form": form, "column": settings.event_column, "results": settings.result_format}
    how = {"mode": settings.mode, "model": settings.models}
    facts = facts_of(settings.events, workload=settings.kind, shard=settings.shard, **what, **how)
    ledger = None
    results.require_ours()  # again, now that no other run can write
    if not settings.fresh:
        options = {"accept_changes": settings.accept_changes, "retry_failed": settings.retry_failed}
        ledger = go_on(results, settings.events, facts, locks=locks, tell=tell, **options)
    if ledger is not None and not _left(ledger, settings):
        return ledger, Served()
    try:
        served = blocking(lambda: check_endpoint(settings))
    except BaseException:
        if ledger is not None:
            ledger.close()
        raise
    if ledger is None:  # only now, so that a mistyped address does not delete results
        ledger = begin(results, settings.events, facts, locks=locks, tell=tell)
    elif settings.retry_failed:  # only now, so that a dead endpoint leaves them in quarantine, with their reasons
        ledger.release()
    return ledger, served


def _left(ledger: Ledger, settings: Settings) -> int:
    counts = ledger.counts()
    return counts.left + (counts.quarantined if settings.retry_failed else 0)


def _run_clients(
    settings: Settings, task: Task, ledger: Ledger, served: Served, *, progress: ShowProgress, tell: Tell
) -> Report:
    results = settings.results
    version = ledger.facts.get("version", "")
    first = {"ignore_first": settings.ignore_first}
    accounts = Accounts(ledger, results, settings.events, server=source_of(settings), version=version, **first)
    accounts.accept_model_change = settings.accept_model_change
    log = MemberLog(settings.reports)
    run = Coordinator(
        task,
        accounts,
        workers=settings.workers,
        show=progress,
        is_ready=lambda: is_ready(settings),
        tell=tell,
        member_log=log,
    )
    idle = accounts.complete
    if idle:
        progress(accounts.tally(in_flight=0))
        accounts.close(None)
    else:
        try:
            watch = ModelWatch(served, accounts, client=lambda: _client(settings), fail=run.fail, tell=tell)
            blocking(lambda: _run(run, watch), interrupt=run.interrupt)
        finally:
            sweep(results, ledger=ledger)
            with contextlib.suppress(OSError, OutputError):
                match_quarantine(ledger, results.quarantine)
    if run.error is not None:
        with contextlib.suppress(ExatrkxError):  # the disk may be the problem
            results.write_report(run.report().to_json())
        raise run.error
    report = run.report()
    if not idle or not results.report.exists():  # a run without work has no figures
        results.write_report(report.to_json())
    if report.stopped is not None:
        raise StoppedRun.of(report, results.report)
    return report


def _warn(settings: Settings, tell: Tell) -> None:
    cores = len(os.sched_getaffinity(0))
    if settings.workers > _FAR_ABOVE * cores:
        tell(WorkersAboveCores(workers=settings.workers, cores=cores))


def source_of(settings: Settings) -> str:
    """Return the source of the results: the endpoint, or in mode direct the model repository."""
    return str(settings.repository) if settings.mode == DIRECT else settings.server


def _task(settings: Settings, *, newline: bool) -> Task:
    return Task(
        server=source_of(settings),
        workload=settings.workload,
        workloads=settings.workloads,
        model=settings.model,
        models=settings.models,
        folder=str(settings.folder.resolve()),
        in_flight=settings.in_flight,
        request_timeout=settings.request_timeout,
        patience=settings.patience,
        mode=settings.mode,
        result_format=settings.result_format,
        part_events=settings.part_events,
        newline=newline,
        repository=_absolute(settings.repository),
        token_file=_absolute(settings.token_file),
        certificate=_absolute(settings.certificate),
        identity=settings.identity,
    )


def _absolute(path: Path | None) -> str:
    return str(path.absolute()) if path is not None else ""


async def _run(run: Coordinator, watch: ModelWatch) -> None:
    with stopped_by_signals(run.stop):
        async with watch.watching():
            await run.run()
            if not run.interrupted:
                try:
                    await watch.look()
                except ExatrkxError as error:
                    run.fail(error)


def _client(settings: Settings) -> Client:
    return Client(
        settings.server,
        workload=settings.kind,
        model=settings.model,
        mode=settings.mode,
        identity=settings.identity,
        credentials=settings.credentials,
    )


async def is_ready(settings: Settings) -> bool:
    """Return whether the endpoint says that it serves every model of the run; without an endpoint, it does."""
    if settings.mode == DIRECT:
        return True
    try:
        async with _client(settings) as client:
            await client.check(READY)
    except ExatrkxError:
        return False
    return True


async def check_endpoint(settings: Settings) -> Served:
    """Return what the endpoint serves; raises the errors of `run_clients` when the endpoint is not ready."""
    if settings.mode == DIRECT:
        from exatrkx_hpc.models.pipeline import pipeline_digest

        return Served(version=pipeline_digest(settings.repository or Path())[:12])
    async with _client(settings) as client:
        await client.check(settings.deadline)
        return await client.served()
