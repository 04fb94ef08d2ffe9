"""Write `OUT/report.html`: after a run, with facts that only the run knows, or again from the files in OUT."""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from exatrkx_hpc import __version__
from exatrkx_hpc.base.errors import ConfigError, ExatrkxError, InputError, OutputError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.fleet.endpoint import EndpointRecord, triton_version
from exatrkx_hpc.fleet.endpoints import endpoints_of
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.page.counted import Seen, counted, snapshots
from exatrkx_hpc.page.page import render_page
from exatrkx_hpc.page.read import history, note
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.shards import Shard, read_sharding
from exatrkx_hpc.work.run.event_figures import write_times
from exatrkx_hpc.work.run.run import Settings, StoppedRun

_PACKAGES = ("tritonclient", "grpcio", "numpy")


def write_page(out: Path, *, times: bool = False, **facts: Mapping[str, str | float]) -> Path:
    """Write OUT/report.html from the ledger in OUT and return its path; first note `facts` in the ledger.

    `times` also writes OUT/times.csv, the time of each stage; an existing times.csv is always rewritten. For a run in
    shards, both use the ledgers of all shards. Raises InputError when OUT has no ledger, OutputError when a run writes
    to OUT, its ledger is damaged, or a file cannot be written.
    """
    results = Results(out)
    with _opened(results) as ledgers:
        if times or results.times.exists():
            write_times(results.times, ledgers)
        note(ledgers[0], **facts)
        html = render_page(history(ledgers))
    try:
        write_whole(results.page, html)
    except OSError as error:
        raise OutputError(f"cannot write {results.page}: {error.strerror}; check permissions and free space") from error
    return results.page


@contextlib.contextmanager
def _opened(results: Results) -> Iterator[list[Ledger]]:
    """Yield the ledger of OUT, or the ledgers of all its shards."""
    paths = [path for path in _ledgers(results.out) if path.exists()]
    if not paths:
        raise InputError(
            f"{results.out} has no ledger.sqlite of run-clients; choose an output folder (-o) of run-clients"
        )
    with results.owned(to_write=False) as locks, contextlib.ExitStack() as stack:
        yield [stack.enter_context(Ledger(path, locks=locks)) for path in paths]


def _ledgers(out: Path) -> list[Path]:
    """Return the paths of the ledgers of OUT, existing or not."""
    of = read_sharding(out) or 1
    return [Results(out, Shard(number, of)).ledger for number in range(of)]


@contextlib.contextmanager
def page_of_run(settings: Settings, run_root: Path | None = None) -> Iterator[None]:
    """Write the page when the run inside the block ends or is stopped; after any other error write no page.

    If `settings.server` is the endpoint of the farm in `run_root`, the page includes the counters of its servers.
    Raises the errors of `write_page`, but never in place of the run's own error.
    """
    began, before = time.time(), _snapshots(settings, run_root)
    try:
        yield
    except StoppedRun as stopped:
        with contextlib.suppress(ExatrkxError, OSError):
            _write(settings, run_root, before, _launch(settings, began, stopped.report.stopped or ""))
        raise
    _write(settings, run_root, before, _launch(settings, began, ""))


def _launch(settings: Settings, began: float, stopped: str) -> dict[str, dict[str, str | float]]:
    """Return begin, end and stop of a run in shards; the ledger of a shard knows only its own run."""
    if read_sharding(settings.out) is None:
        return {}
    at = f"{began:.3f}"
    return {"launches": {at: time.time()}, "stops": {at: stopped}}


def _write(
    settings: Settings,
    run_root: Path | None,
    before: Seen,
    launch: Mapping[str, Mapping[str, str | float]],
) -> None:
    found = counted(before, _snapshots(settings, run_root), ensemble=settings.model or settings.kind.model)
    write_page(
        settings.out,
        times=settings.times,
        settings=shown_settings(settings),
        versions=_versions(_record(settings, run_root), settings),
        compute=found.compute,
        answered=found.answered,
        **launch,
    )


def shown_settings(settings: Settings) -> dict[str, str]:
    """Return the settings of a run, with the names that its page shows."""
    source = {"endpoint": settings.server} if settings.server else {"model repository": str(settings.repository)}
    return {
        **source,
        "model": settings.models,
        "mode": settings.mode,
        "events": str(settings.events.absolute()),
        "results": str(settings.out.absolute()),
        "workers": str(settings.workers),
        "in flight, each worker": str(settings.in_flight),
        "request timeout": f"{settings.request_timeout:g} s",
        "patience": f"{settings.patience:g} s",
    }


def _record(settings: Settings, run_root: Path | None) -> EndpointRecord | None:
    """Return the farm's endpoint record, or None if the run uses another endpoint."""
    if run_root is None or not settings.server:
        return None
    return next((one for one in endpoints_of(FarmDir(run_root)) if one.grpc == settings.server), None)


def _snapshots(settings: Settings, run_root: Path | None) -> Seen:
    """Return the current counters of the farm's servers, or None if the servers are unknown."""
    record = _record(settings, run_root)
    return snapshots(record.metrics, record.instances) if record is not None else None


def _versions(record: EndpointRecord | None, settings: Settings) -> dict[str, str]:
    found = {"exatrkx-hpc": __version__}
    if record is not None and (triton := _triton(record, settings)):
        found["Triton"] = triton
    found["Python"] = platform.python_version()
    for package in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found | {"machine": platform.platform()}


def _triton(record: EndpointRecord, settings: Settings) -> str:
    """Return the version of the Triton behind an HTTP endpoint, or "" if unknown."""
    try:
        return triton_version(record.http, record.certificate, headers=settings.credentials.headers)
    except ConfigError:  # the token's file is gone
        return ""
