"""The next step for each refusal of Slurm."""

from __future__ import annotations

import re

from exatrkx_hpc.base.process import TIMED_OUT

#: Patterns of Slurm's messages, and the next step; {section} is the section of farm.toml. The first match counts. The
#: messages are from Slurm 22.05 and 24.11.
_STEPS: tuple[tuple[str, str], ...] = (
    (
        r"Invalid account or account/partition",
        "check {section}.account; 'sacctmgr show assoc user=$USER format=account,partition' lists yours",
    ),
    (r"Invalid qos", "check {section}.qos; 'sacctmgr show assoc user=$USER format=account,qos' lists yours"),
    (
        r"[Ii]nvalid partition|Invalid partition name",
        "check {section}.partition; 'sinfo --summarize' lists them",
    ),
    (
        r"Invalid feature",
        "check {section}.constraint; 'sinfo --format=\"%P %f\"' lists the features of the nodes",
    ),
    (
        r"MaxWallDuration|time limit is invalid|Invalid --time",
        "check {section}.time; 'sinfo --format=\"%P %l\"' lists the partitions' limits, 'sacctmgr show qos "
        "format=name,maxwall' those of the QOS",
    ),
    (
        r"MaxNodePerJob|MaxNodePerUser|Node count specification",
        "ask for fewer nodes ({section}.nodes or -N); 'sinfo --summarize' counts them",
    ),
    (
        r"node configuration is not available|More processors|Memory specification|generic resource",
        "no node has so much; check {section}.constraint and the CPUs, GPUs (job.gpus_per_node) and memory asked for, "
        "'sinfo --Node --long --Format=nodehost,cpus,memory,gres' lists what nodes have",
    ),
    (r"[Rr]eservation", "check job.reservation; 'scontrol show reservation' lists them"),
    (r"license", "check job.licenses; 'scontrol show licenses' lists them"),
    (
        r"accounting/QOS policy|Assoc\w*Limit|QOS\w*Limit",
        "a limit of the account or the QOS; 'sacctmgr show assoc user=$USER' and 'sacctmgr show qos' list them",
    ),
    (r"dependency", "check job.dependency; 'squeue --me' lists your jobs"),
    (
        r"known by database|can't be reached now",
        "'sacctmgr show clusters' lists the clusters that can be asked",
    ),
    (
        r"contact slurm controller|Socket timed out|Connection refused",
        "Slurm's controller does not answer; retry when 'scontrol ping' succeeds",
    ),
    (r"[Ii]nvalid job id|already completing", "'squeue --me --states=all' lists your jobs"),
    (r"Access/permission denied", "the job belongs to another user; 'squeue --me' lists your jobs"),
    (r"image", "check server.image; 'exatrkx-hpc setup' pulls it"),
)
_PREFIX = re.compile(
    r"^(?:(?:sbatch|scancel|squeue|sacct|salloc|srun|scontrol): (?:(?:error|fatal): )?"
    r"|slurm_load_\w+(?: error)?: |allocation failure: )"
)
#: The exit status of a program that a signal ended, if a shell reports it.
_BY_SIGNAL = 128
#: The maximum number of lines of a complaint that are shown.
_MOST_LINES = 3
_EMPTY = re.compile(r"^(?:(?:Batch job submission|Job submit/allocate) failed: |Kill job error on job id \S+: )")


def next_step(complaint: str, *, otherwise: str, section: str = "job") -> str:
    """Return the next step for Slurm's complaint, or `otherwise` for an unknown complaint.

    `section` is the section of farm.toml with the job's account, time and so on.
    """
    found = (step.format(section=section) for pattern, step in _STEPS if re.search(pattern, complaint))
    return next(found, otherwise)


def may_run(complaint: str) -> bool:
    """Return whether Slurm may have accepted a job although sbatch failed, because the answer was lost."""
    return re.search(r"[Tt]imed out|Zero Bytes were transmitted|Unexpected message|Broken pipe", complaint) is not None


def unclear(status: int, complaint: str) -> bool:
    """Return whether a job may exist after sbatch or salloc ended so: without an error, killed, or unanswered."""
    return status in (0, TIMED_OUT) or status < 0 or status > _BY_SIGNAL or may_run(complaint)


def start_estimate(said: str) -> str:
    """Return the line of `sbatch --test-only` with the expected start of the job, or ''."""
    match = re.search(r"^(?:sbatch: )?(Job [0-9]+ to start at .*)$", said, re.MULTILINE)
    return match[1].rstrip() if match else ""


def own_words(complaint: str) -> str:
    """Return Slurm's message on one line, without repetitions, program names and a site's banner.

    Text before the first line with a program name is a banner. If many lines follow, only lines with a program name
    count.
    """
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    named = [place for place, line in enumerate(lines) if _PREFIX.match(line)]
    if named:
        lines = lines[named[0] :] if len(lines) - named[0] <= _MOST_LINES else [lines[place] for place in named]
    words = [_EMPTY.sub("", _PREFIX.sub("", line)).rstrip(".") for line in lines[-_MOST_LINES:]]
    return "; ".join(dict.fromkeys(word for word in words if word)) or "it gave no reason"
