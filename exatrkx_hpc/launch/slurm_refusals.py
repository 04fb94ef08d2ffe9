"""What to do next when Slurm says no: its own words, then one step."""

from __future__ import annotations

import re

#: What Slurm says, and the next step, in which {section} is that of farm.toml; the first that is found counts. Seen
#: with Slurm 22.05 and 24.11.
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
        r"contact slurm controller|Socket timed out|Connection refused",
        "Slurm's controller does not answer; 'scontrol ping' tells when it is back, then try again",
    ),
    (r"[Ii]nvalid job id|already completing", "'squeue --me --states=all' lists your jobs"),
    (r"Access/permission denied", "it is not a job of yours; 'squeue --me' lists those"),
    (r"image", "check server.image; 'exatrkx-hpc setup' pulls it"),
)
_PREFIX = re.compile(
    r"^(?:(?:sbatch|scancel|squeue|sacct|salloc|srun): (?:(?:error|fatal): )?"
    r"|slurm_load_\w+(?: error)?: |allocation failure: )"
)
_EMPTY = re.compile(r"^(?:(?:Batch job submission|Job submit/allocate) failed: |Kill job error on job id \S+: )")


def next_step(complaint: str, *, otherwise: str, section: str = "job") -> str:
    """Return what to do about Slurm's complaint, or `otherwise` when it is not one that is known here.

    `section` is the one of farm.toml that has the job's account, time and so on.
    """
    found = (step.format(section=section) for pattern, step in _STEPS if re.search(pattern, complaint))
    return next(found, otherwise)


def own_words(complaint: str) -> str:
    """Return what Slurm said on one line, each thing once, without the names of its programs."""
    lines = [_PREFIX.sub("", line.strip()) for line in complaint.splitlines()]
    lines = [_EMPTY.sub("", line).rstrip(".") for line in lines if line]
    return "; ".join(dict.fromkeys(lines[-3:])) or "it gave no reason"
