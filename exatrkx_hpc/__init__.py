"""exatrkx-hpc: turn a Slurm allocation into one Triton endpoint, and send every event of a dataset through it.

`__all__` is the public interface; docs/python.md lists it. All other names, and all modules below this package, are
private: any version may change or remove them.

    import exatrkx_hpc as hpc

    with hpc.up("farm.toml") as endpoint:
        labels = endpoint.find_tracks(hits)

Each name is imported on first use. So importing this module is fast, and a server that has only
`exatrkx_hpc.tracking` of the package can import it.
"""

from __future__ import annotations

from importlib import import_module

#: Type checkers treat this name as True; importing `typing` would take longer than the rest of this module.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from exatrkx_hpc.base.errors import (
        ConfigError,
        EndpointError,
        ExatrkxError,
        IncompleteRun,
        InputError,
        LaunchError,
        MissingComponent,
        ModelError,
        NotStarted,
        OutputError,
    )
    from exatrkx_hpc.base.news import Level, News
    from exatrkx_hpc.base.ports import PortTaken
    from exatrkx_hpc.config.resolve import resolve
    from exatrkx_hpc.config.schema import Farm
    from exatrkx_hpc.farm import (
        Job,
        connect,
        deploy,
        endpoint_record,
        find_job,
        run_clients,
        running,
        script,
        setup,
        stop,
        up,
        watch,
    )
    from exatrkx_hpc.fleet.events import (
        AddressUnknown,
        BalancerEnded,
        BalancerReloaded,
        BalancerWarned,
        EndpointOpened,
        EndpointUnguarded,
        JobChanged,
        JobProgress,
        JobStopping,
        LocksMissing,
        MemberChanged,
        MetricsStoreEnded,
        MetricsStoreMissing,
        MetricsStoreStarted,
        MonitorAbsent,
        MonitorFailed,
        MonitorLeft,
        MonitorStopped,
        NotApplied,
        NotObserved,
        RestartAsked,
        SchedulerSilent,
    )
    from exatrkx_hpc.launch.events import (
        EndpointJobEnded,
        ImageFound,
        ImagePulling,
        JobAdopted,
        JobEndsFirst,
        ModelsBuilding,
        ModelsWithoutPackages,
        PackagesFetching,
        SubmissionOpen,
        TimeShort,
        VariablesUnused,
    )
    from exatrkx_hpc.models.pipeline import load_pipeline
    from exatrkx_hpc.scores import score_results
    from exatrkx_hpc.track_scores import score_track_results
    from exatrkx_hpc.work.inference.client import Answer
    from exatrkx_hpc.work.map.endpoint import Endpoint
    from exatrkx_hpc.work.map.found import Found
    from exatrkx_hpc.work.news import (
        EndpointAnswers,
        EndpointSilent,
        EventPoisoned,
        FilesPassedOver,
        LedgerRebuilt,
        ModelsChanged,
        NodeSaid,
        NoFinalNewline,
        RunNews,
        RunResumed,
        RunUnheard,
        ShardsLost,
        UnitsDoubtful,
        WorkersAboveCores,
        WorkersSpread,
    )
    from exatrkx_hpc.work.run.progress import Tally
    from exatrkx_hpc.work.run.report import Report
    from exatrkx_hpc.work.run.run import Settings, StoppedRun
    from exatrkx_hpc.work.workloads.archive import decode_npz, encode_npz
    from exatrkx_hpc.work.workloads.base import ModelTensors, Request, Tensor, Tensors, Workload
    from exatrkx_hpc.work.workloads.table import workload
    from exatrkx_hpc.work.workloads.traccc import traccc_workload

#: The version; the wheel and the command line read it here.
__version__ = "0.1.0"

__all__ = [
    "AddressUnknown",
    "Answer",
    "BalancerEnded",
    "BalancerReloaded",
    "BalancerWarned",
    "ConfigError",
    "Endpoint",
    "EndpointAnswers",
    "EndpointError",
    "EndpointJobEnded",
    "EndpointOpened",
    "EndpointSilent",
    "EndpointUnguarded",
    "EventPoisoned",
    "ExatrkxError",
    "Farm",
    "FilesPassedOver",
    "Found",
    "ImageFound",
    "ImagePulling",
    "IncompleteRun",
    "InputError",
    "Job",
    "JobAdopted",
    "JobChanged",
    "JobEndsFirst",
    "JobProgress",
    "JobStopping",
    "LaunchError",
    "LedgerRebuilt",
    "Level",
    "LocksMissing",
    "MemberChanged",
    "MetricsStoreEnded",
    "MetricsStoreMissing",
    "MetricsStoreStarted",
    "MissingComponent",
    "ModelError",
    "ModelTensors",
    "ModelsBuilding",
    "ModelsChanged",
    "ModelsWithoutPackages",
    "MonitorAbsent",
    "MonitorFailed",
    "MonitorLeft",
    "MonitorStopped",
    "News",
    "NoFinalNewline",
    "NodeSaid",
    "NotApplied",
    "NotObserved",
    "NotStarted",
    "OutputError",
    "PackagesFetching",
    "PortTaken",
    "Report",
    "Request",
    "RestartAsked",
    "RunNews",
    "RunResumed",
    "RunUnheard",
    "SchedulerSilent",
    "Settings",
    "ShardsLost",
    "StoppedRun",
    "SubmissionOpen",
    "Tally",
    "Tensor",
    "Tensors",
    "TimeShort",
    "UnitsDoubtful",
    "VariablesUnused",
    "WorkersAboveCores",
    "WorkersSpread",
    "Workload",
    "connect",
    "decode_npz",
    "deploy",
    "encode_npz",
    "endpoint_record",
    "find_job",
    "load_pipeline",
    "resolve",
    "run_clients",
    "running",
    "score_results",
    "score_track_results",
    "script",
    "setup",
    "stop",
    "traccc_workload",
    "up",
    "watch",
    "workload",
]

#: The module of each name of `__all__`; tests/project/test_front_door.py compares it with the imports above.
_HOMES = {
    name: f"exatrkx_hpc.{home}"
    for home, names in {
        "base.errors": "ConfigError EndpointError ExatrkxError IncompleteRun InputError LaunchError MissingComponent "
        "ModelError NotStarted OutputError",
        "base.news": "Level News",
        "base.ports": "PortTaken",
        "config.resolve": "resolve",
        "config.schema": "Farm",
        "farm": "Job connect deploy endpoint_record find_job run_clients running script setup stop up watch",
        "fleet.events": "AddressUnknown BalancerEnded BalancerReloaded BalancerWarned EndpointOpened "
        "EndpointUnguarded JobChanged JobProgress "
        "JobStopping LocksMissing MemberChanged MetricsStoreEnded MetricsStoreMissing MetricsStoreStarted "
        "MonitorAbsent MonitorFailed MonitorLeft MonitorStopped NotApplied NotObserved "
        "RestartAsked SchedulerSilent",
        "launch.events": "EndpointJobEnded ImageFound ImagePulling JobAdopted JobEndsFirst ModelsBuilding "
        "ModelsWithoutPackages PackagesFetching "
        "SubmissionOpen TimeShort VariablesUnused",
        "models.pipeline": "load_pipeline",
        "scores": "score_results",
        "track_scores": "score_track_results",
        "work.inference.client": "Answer",
        "work.map.endpoint": "Endpoint",
        "work.map.found": "Found",
        "work.news": "EndpointAnswers EndpointSilent EventPoisoned FilesPassedOver LedgerRebuilt ModelsChanged "
        "NoFinalNewline NodeSaid RunNews RunResumed RunUnheard ShardsLost UnitsDoubtful WorkersAboveCores "
        "WorkersSpread",
        "work.run.progress": "Tally",
        "work.run.report": "Report",
        "work.run.run": "Settings StoppedRun",
        "work.workloads.archive": "decode_npz encode_npz",
        "work.workloads.base": "ModelTensors Request Tensor Tensors Workload",
        "work.workloads.table": "workload",
        "work.workloads.traccc": "traccc_workload",
    }.items()
    for name in names.split()
}

if not TYPE_CHECKING:  # with __getattr__, a type checker would accept every name

    def __getattr__(name: str) -> object:
        """Import a public name on first use (PEP 562)."""
        if name not in _HOMES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = globals()[name] = getattr(import_module(_HOMES[name]), name)
        return found


def __dir__() -> list[str]:
    """Return all names of this module, including public names that are not imported yet."""
    return sorted({*globals(), *__all__})
