"""The workers' job: `run-clients --srun` in a script that can also be submitted by hand."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from exatrkx_hpc import __version__
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.process import find_program, own_command
from exatrkx_hpc.base.templates import render
from exatrkx_hpc.config.resolve import as_environment, known_keys
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.plan import Setting, settings_of
from exatrkx_hpc.launch.run_dirs import local_file_system
from exatrkx_hpc.launch.slurm.environment import chosen_clusters
from exatrkx_hpc.launch.slurm.job import JobId
from exatrkx_hpc.launch.slurm.scheduler import REMEDY, WHEN_IT_IS_BACK
from exatrkx_hpc.launch.slurm.submissions import Submissions, sought
from exatrkx_hpc.launch.slurm.submit import submit
from exatrkx_hpc.launch.words import comment, directive, sh

#: The variable with the ID of the workers' job; it tells the nodes that this job is only for the workers.
OWN_JOB = "EXATRKX_WORKERS_JOB"
#: The script's name, in the folder of the results.
SCRIPT = "workers.sbatch"
#: The folder of submissions that have not finished, in the folder of the results.
SUBMISSIONS = "submissions"
#: Settings of the job itself, which have no effect inside the job.
_OF_THE_JOB = {
    f"clients.{name}" for name in ("nodes", "time", "account", "qos", "partition", "constraint", "extra_directives")
}
#: Settings that the script shows to its reader.
_TOLD = ("name", "site", "run_root", "clients.", "job.account", "job.qos", "job.partition", "server.model_repository")


class WorkersPlan(BaseModel):
    """All input of the workers' script."""

    model_config = ConfigDict(frozen=True)

    name: str
    version: str
    nodes: int
    events: str
    out: str
    settings: tuple[Setting, ...]
    directives: tuple[tuple[str, str], ...]
    extra_directives: tuple[str, ...]
    variables: tuple[tuple[str, str], ...]
    program: tuple[str, ...]
    options: tuple[tuple[str, ...], ...]


def make_workers_plan(
    farm: Farm,
    options: Sequence[tuple[str, ...]],
    *,
    events: Path,
    out: Path,
    requeue: bool,
    sources: Mapping[str, str] | None = None,
) -> WorkersPlan:
    """Return the plan of a job that runs `exatrkx-hpc run-clients` with these options and folders.

    With `requeue`, Slurm restarts the job after its first node fails. `sources` maps each key to the source of its
    value, which the script shows. Raises LaunchError if Slurm cannot write a log to `out`.
    """
    if "\\" in str(out):
        raise LaunchError(f"-o {out} has a backslash, which Slurm drops from the path of the job's log; rename it")
    ours = tuple(key for key in known_keys() if key.startswith("clients.") and key not in _OF_THE_JOB)
    return WorkersPlan(
        name=farm.name,
        version=__version__,
        nodes=farm.clients.nodes,
        events=str(events.absolute()),
        out=str(out.absolute()),
        settings=tuple(one for one in settings_of(farm, sources) if one.key.startswith(_TOLD)),
        directives=_directives(farm, out.absolute(), requeue=requeue),
        extra_directives=farm.clients.extra_directives,
        variables=tuple(as_environment(farm, ("run_root", "server.model_repository", *ours)).items()),
        program=own_command(),
        options=tuple(options),
    )


def _directives(farm: Farm, out: Path, *, requeue: bool) -> tuple[tuple[str, str], ...]:
    """Return the #SBATCH options as pairs of name and value; an option without a value has an empty one."""
    clients = farm.clients
    pairs = (
        ("job-name", f"{farm.name}-clients"),
        ("account", clients.account),
        ("qos", clients.qos),
        ("partition", clients.partition),
        ("constraint", clients.constraint),
        ("nodes", str(clients.nodes)),
        ("ntasks-per-node", "1"),
        # Each worker is a busy process; without this option, Slurm gives one CPU to all workers of a node.
        ("cpus-per-task", str(clients.workers)),
        ("time", clients.time),
        # The workers end well before the time limit; the next job repeats the events in flight.
        ("signal", "B:TERM@60"),
        # Slurm reads %% as %.
        ("output", str(out).replace("%", "%%") + "/workers-%j.log"),
        ("open-mode", "append"),
    )
    given = tuple((name, value) for name, value in pairs if value)
    # A node that crashes must not end the others.
    return (*given, ("requeue" if requeue else "no-requeue", ""), ("no-kill", ""))


def render_workers(plan: WorkersPlan) -> str:
    """Return the text of the script."""
    return render("jobs/workers.sbatch.j2", filters={"sh": sh, "directive": directive, "comment": comment}, plan=plan)


def submit_workers(plan: WorkersPlan) -> tuple[JobId, Path]:
    """Write the script into the folder of the results and submit it; return the job and the script.

    Raises LaunchError if that folder or the events are local to this machine, if the script cannot be written, or if
    Slurm refuses the job; MissingComponent if sbatch is missing.
    """
    find_program("sbatch", remedy=REMEDY)
    for flag, folder in (("-d", Path(plan.events)), ("-o", Path(plan.out))):
        if (kind := local_file_system(folder)) is not None:
            raise LaunchError(
                f"{flag} {folder} is on {kind}, which the nodes do not share with this machine; name a folder of a "
                "shared file system"
            )
    script, submissions = Path(plan.out, SCRIPT), Submissions(Path(plan.out, SUBMISSIONS))
    _refuse_unfinished(submissions, plan.out)
    try:
        script.parent.mkdir(parents=True, exist_ok=True)
        write_whole(script, render_workers(plan), mode=0o755)
    except OSError as error:
        raise LaunchError(f"cannot write {script}: {error.strerror}; choose another -o") from error
    directives = dict(plan.directives)
    with submissions.begun(
        script, name=directives["job-name"], clusters=chosen_clusters(os.environ, plan.extra_directives)
    ) as submission:
        job = submit(submission, log=directives["output"], section="clients", options=plan.extra_directives)
        submissions.end(submission)
    return job, script


def _refuse_unfinished(submissions: Submissions, out: str) -> None:
    """Raise LaunchError if another submission for this folder is in progress, or one that did not finish made a job."""
    for one in submissions.all():
        if one.in_progress():
            raise LaunchError(f"another 'run-clients --sbatch' is submitting a job for {out}; wait for its end")
        late, found = one.may_come(), sought(one)
        if found.jobs:
            submissions.end(one)
            jobs = ", ".join(map(str, found.jobs))
            raise LaunchError(
                f"job {jobs} for {out} comes from the run-clients of {one.when}, which did not finish; 'squeue "
                f"--job={jobs}' shows it, 'scancel {jobs}' ends it, a repetition of this command submits another"
            )
        if found.silent:
            raise LaunchError(
                f"the run-clients of {one.when} for {out} did not finish, and Slurm does not say whether its job "
                f"exists ({found.silent}); {WHEN_IT_IS_BACK}"
            )
        if late:
            raise LaunchError(
                f"the run-clients of {one.when} for {out} did not finish and may still get a job; repeat this command "
                f"in some minutes, or remove {submissions.file(one)} to submit anyway"
            )
        submissions.end(one)
