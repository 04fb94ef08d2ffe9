"""Options of sbatch that `extra_directives` refuses, because the program's own use of the job would break.

All other options pass, also those that have a key, such as `--qos`: Slurm takes the last one, and nothing else depends
on it. Decided by the manual of sbatch, 22.05 to 24.11: every option was asked whether the job stays one job of one
script, with the name, log, nodes, tasks, time and signals that the program relies on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, kw_only=True)
class _Refusal:
    """Why an option is refused; `job` and `clients` say what to set instead in `[job]` and `[clients]`."""

    why: str
    job: str = ""
    clients: str = ""


def _key(why: str, job: str, clients: str = "") -> _Refusal:
    return _Refusal(why=why, job=f"set {job}", clients=f"set {clients}" if clients else "")


_ONE_JOB = "it makes several jobs of one script, and all would use one run directory"
_OF_SBATCH = _Refusal(why="it is an option for the command sbatch, not a property of the job")
_LOG = _Refusal(why="the program finds the job and its errors by the log that it sets")
_TASKS = _key("the number of tasks is the number of servers", "server.servers_per_node", "clients.workers")
_ENVIRONMENT = _Refusal(
    why="the programs of the job need the variables of its script",
    job="set variables with server.environment or job.prologue",
    clients="use --export=ALL,NAME=VALUE",
)
_REQUEUE = _key("the program must know whether Slurm requeues the job", "job.requeue")

_REFUSED: Final[Mapping[str, _Refusal]] = {
    "array": _Refusal(why=_ONE_JOB, job="run deploy once for each farm", clients="set clients.nodes"),
    "hetjob": _Refusal(why=_ONE_JOB),
    "het-group": _Refusal(why=_ONE_JOB),
    "packjob": _Refusal(why=_ONE_JOB),
    "output": _LOG,
    "error": _LOG,
    "job-name": _key("the program finds the job by its name", "name", "name"),
    "comment": _key("the program identifies the job by a word in its comment", "job.comment"),
    "nodes": _key("the servers are planned for the number of nodes", "job.nodes or -N", "clients.nodes or -N"),
    "ntasks": _TASKS,
    "ntasks-per-node": _TASKS,
    "ntasks-per-core": _TASKS,
    "ntasks-per-socket": _TASKS,
    "ntasks-per-gpu": _TASKS,
    "tasks-per-node": _TASKS,
    "cpus-per-task": _key("the step of the servers needs the same number", "job.cpus_per_task", "clients.workers"),
    "gpus-per-node": _key("the servers of a node share its GPUs by this number", "job.gpus_per_node"),
    "time": _key("the drain before the limit depends on it", "job.time or -t", "clients.time or -t"),
    "signal": _key("the servers drain on this signal", "job.signal"),
    "requeue": _REQUEUE,
    "no-requeue": _REQUEUE,
    "no-kill": _Refusal(why="it is always set, so that a lost node does not end the others"),
    "export": _ENVIRONMENT,
    "export-file": _ENVIRONMENT,
    "uid": _Refusal(why="a job of another user cannot be stopped"),
    "gid": _Refusal(why="the job could not read the run root, which is for its owner only"),
    "container": _key("the script itself would run in the container", "server.engine and server.image"),
    **dict.fromkeys(("wrap", "parsable", "test-only", "wait", "quiet", "help", "usage", "version"), _OF_SBATCH),
}


#: An accepted option that begins a refused one.
_ACCEPTED: Final = frozenset({"gpus"})


def refusal(option: str, section: str) -> str:
    """Return why `extra_directives` of `section` (`job` or `clients`) refuses `option`, one word of sbatch; '' if not.

    Also refuses the abbreviations that sbatch accepts, such as `--arr=0-3`.
    """
    given, _, value = option.removeprefix("--").partition("=")
    if given == "export" and value.partition(",")[0] == "ALL":
        return ""
    name = given if given in _REFUSED else next((name for name in _REFUSED if given and name.startswith(given)), None)
    if name is None or given in _ACCEPTED:
        return ""
    found = _REFUSED[name]
    instead = found.job if section == "job" else found.clients
    return f"--{name} is refused: {found.why}; {instead or 'remove it'}"
