"""The full pipeline on one machine: a farm of Triton servers, events with known truth, and their score."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar, Final, Literal

from exatrkx_hpc import farm
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import MissingComponent, OutputError
from exatrkx_hpc.base.news import News, Tell
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.fleet.credentials import EndpointAccess
from exatrkx_hpc.launch.events import ModelsBuilding
from exatrkx_hpc.measure.metrics import fetch, fleet_times, stage_shares
from exatrkx_hpc.models.build import build
from exatrkx_hpc.traccc.scoring.score import MIN_HITS
from exatrkx_hpc.traccc.simulation.files import write_events as write_cells
from exatrkx_hpc.track_scores import score_track_results
from exatrkx_hpc.tracking.scoring import score as scoring
from exatrkx_hpc.tracking.simulation import acts, synthetic
from exatrkx_hpc.work.events.source import find_events
from exatrkx_hpc.work.results.read import read_result
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.run import Settings, ShowProgress
from exatrkx_hpc.work.workloads.exatrkx import LABELS, WORKLOAD
from exatrkx_hpc.work.workloads.traccc import TWIN

#: Differs from the seed of the training events, so that the networks have not seen the demo's events.
_SEED = 20_000
_WAIT_READY = 180.0
#: A folder with this file belongs to the demo, so a later demo may delete the results in it.
_MARK = ".exatrkx-hpc-demo"


@dataclass(frozen=True, kw_only=True)
class EventsMaking(News):
    """The demo generates events."""

    code: ClassVar[str] = "demo-events"
    events: int

    def __str__(self) -> str:
        """Return the number of events."""
        return f"events: generating {self.events} with known truth"


@dataclass(frozen=True, kw_only=True)
class EndpointReady(News):
    """Every server behind the endpoint is ready, `seconds` after the start of the demo."""

    code: ClassVar[str] = "demo-ready"
    grpc: str
    seconds: float

    def __str__(self) -> str:
        """Return the address and the time."""
        return f"endpoint: {self.grpc}, ready {self.seconds:.0f} s after the start"


@dataclass(frozen=True, kw_only=True)
class DemoResult:
    """The results of the demo: the run's report, each model's share of the compute time (0 to 1), and the score.

    `counted` says which particles the efficiency is of.
    """

    endpoint: str
    prometheus: str
    report: Report
    shares: Mapping[str, float]
    score: scoring.Score
    counted: str
    folder: Path


WorkloadName = Literal["exatrkx", "traccc"]


@dataclass(frozen=True, kw_only=True)
class DemoSettings:
    """The workload of the demo, its size and its folder.

    `in_flight` is the number of concurrent requests per worker. Without `events`, there are as many as a few seconds
    of work.
    """

    folder: Path
    workload: WorkloadName = "exatrkx"
    servers: int = 2
    events: int | None = None
    workers: int = 8
    in_flight: int = 4


@dataclass(frozen=True, kw_only=True)
class _Kind:
    """What the demo of a workload does in its own way: `events` by default, `model` for the clients, and its steps.

    `fused` is False if the shipped repository has a fused model that the demo leaves out.
    """

    model: str
    fused: bool
    events: int
    counted: str
    build: Callable[[Path], object]
    write: Callable[[Path, int], None]
    score: Callable[[Path, Path], scoring.Score]


def run_demo(
    settings: DemoSettings,
    *,
    tell: Tell,
    show: ShowProgress,
    linger: Callable[[DemoResult], None] = lambda result: None,
) -> DemoResult:
    """Run the full pipeline and stop everything; call `linger` with the result while the farm still runs.

    Raises the errors of its steps: MissingComponent, LaunchError, EndpointError, IncompleteRun, OutputError.
    """
    began = time.monotonic()
    kind = _KINDS[settings.workload]
    if settings.workload == "traccc" and not acts.is_installed():
        raise MissingComponent("the demo of traccc needs pyacts; pip install 'exatrkx-hpc[local,acts]'")
    _take_folder(settings.folder)
    what = _farm(settings)
    tell(ModelsBuilding(repository=what.server.model_repository, device="cpu", fused=kind.fused))
    kind.build(Path(what.server.model_repository))
    number = settings.events or kind.events
    tell(EventsMaking(events=number))
    events = settings.folder / "events"
    kind.write(events, number)
    with farm.running(what, tell=tell, wait=_WAIT_READY) as (job, watch):
        record = farm.endpoint_record(what, job.id)
        tell(EndpointReady(job=job.id, grpc=watch.endpoint, seconds=time.monotonic() - began))
        report = farm.run_clients(_clients(settings, farm.endpoint_access(what, job=job.id)), show, farm=what)
        shares = stage_shares(fleet_times([fetch(address) for address in record.metrics.values()]))
        result = DemoResult(
            endpoint=watch.endpoint,
            prometheus=record.prometheus,
            report=report,
            shares=shares,
            score=kind.score(settings.folder / "results", events),
            counted=kind.counted,
            folder=settings.folder,
        )
        linger(result)
    return result


def score_folder(results: Path, events: Path) -> scoring.Score:
    """Return the score of the label files of a run against the truth beside the events."""
    labels = results / LABELS
    return scoring.total(
        scoring.score_event(read_result(WORKLOAD, labels / event.path.name)[LABELS], synthetic.read_event(event.path))
        for event in find_events(events)
        if (labels / event.path.name).exists()
    )


_KINDS: Final[Mapping[WorkloadName, _Kind]] = MappingProxyType(
    {
        "exatrkx": _Kind(
            model="",
            fused=False,
            events=100,
            counted=f"pT > {scoring.MIN_PT_GEV:g} GeV, at least {scoring.MIN_PARTICLE_HITS} hits",
            build=lambda out: build(asset("model_repos/exatrkx"), out, device="cpu", fused=False),
            write=lambda folder, events: synthetic.write_events(folder, events=events, seed=_SEED),
            score=score_folder,
        ),
        "traccc": _Kind(
            model=TWIN,
            fused=True,
            events=20,
            counted=f"pT > {scoring.MIN_PT_GEV:g} GeV, at least {MIN_HITS} measurements",
            build=lambda out: build(asset("model_repos/traccc"), out, device="cpu", only=(TWIN,)),
            write=lambda folder, events: write_cells(folder, events=events, seed=_SEED),
            score=lambda results, events: score_track_results(results, events).score,
        ),
    }
)


def _farm(settings: DemoSettings) -> Farm:
    # Any free port, so that the demo does not fail when another farm is up.
    flags: dict[str, object] = {
        "site": "local",
        "name": "demo",
        "run_root": str(settings.folder.absolute() / "run").replace("$", "$$"),
        "job.nodes": settings.servers,
        "clients.workload": settings.workload,
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus_port": 0,
        "monitor.scrape_interval": 1,
    }
    # Ignore farm.toml and the environment, which may describe another farm.
    return resolve(flags=flags, ambient=False).farm


def _clients(settings: DemoSettings, access: EndpointAccess) -> Settings:
    return Settings(
        server=access.address,
        identity=access.identity,
        events=settings.folder / "events",
        out=settings.folder / "results",
        workers=settings.workers,
        in_flight=settings.in_flight,
        workload=settings.workload,
        model=_KINDS[settings.workload].model,
        token_file=access.files.token,
        certificate=access.files.certificate,
    )


def _take_folder(folder: Path) -> None:
    """Create the demo's folder; remove the events and results of an earlier demo, but no other files.

    Raises OutputError for a folder that the demo cannot use, or that has files but is not the demo's.
    """
    mark = folder / _MARK
    try:
        if folder.is_dir() and any(folder.iterdir()) and not mark.exists():
            raise OutputError(f"{folder} contains files that the demo did not write; choose a new folder with --folder")
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
        for part in ("events", "results"):
            shutil.rmtree(folder / part, ignore_errors=True)
        (folder / "events").mkdir()
    except OSError as error:
        raise OutputError(f"{folder} cannot be used ({error.strerror}); choose another with --folder") from error
