"""The environment variables that Slurm's commands read, and which of the shell's are passed on.

Each option of sbatch, salloc, srun, squeue and the others may come from a variable, which goes before the #SBATCH
lines of a script; sbatch hands the shell's variables on to the job as well, where srun reads them. Only the farm says
what its jobs are, so a command gets none of them but those that say where Slurm is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from exatrkx_hpc.launch.events import VariablesUnused

#: The variables of Slurm's commands, by the manuals of 22.05 to 24.11.
_OF_SLURM = re.compile(r"(?:SBATCH|SALLOC|SRUN|SQUEUE|SCANCEL|SCONTROL|SACCT|SACCTMGR|SINFO|SATTACH|SLURM)_")
#: Where Slurm is, and how to prove who asks.
_WHERE = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
#: On which cluster a job goes, and of which one is told.
_CLUSTERS = ("SBATCH_CLUSTERS", "SALLOC_CLUSTERS", "SLURM_CLUSTERS")
#: What tells srun in which allocation it is; SLURM_SPANK_ is what plugins, such as shifter's, know of it.
_OF_THE_ALLOCATION = re.compile(
    r"SLURM_(?:JOB_\w+|JOBID|NODELIST|NNODES|CLUSTER_NAME|WORKING_CLUSTER|SUBMIT_\w+|SPANK_\w+|RESTART_COUNT|"
    r"GPUS_ON_NODE)"
)


def slurm_environment(variables: Mapping[str, str], *, clusters: bool = False, inside: bool = False) -> dict[str, str]:
    """Return `variables` without those that change what a command of Slurm does.

    With `clusters` the ones that choose a cluster stay, with `inside` those that name the allocation of this shell.
    """

    def stays(name: str) -> bool:
        return (
            not _OF_SLURM.match(name)
            or name in _WHERE
            or (clusters and name in _CLUSTERS)
            or (inside and _OF_THE_ALLOCATION.fullmatch(name) is not None)
        )

    return {name: value for name, value in variables.items() if stays(name)}


def unused(variables: Mapping[str, str], program: str) -> tuple[str, ...]:
    """Return the names of the variables that `program` (`sbatch`, `salloc` or `srun`) would take for its options."""
    prefix = f"{program.upper()}_"
    found = (name for name in variables if name.startswith(prefix) and name not in _CLUSTERS)
    return tuple(sorted(found))


def unused_variables(variables: Mapping[str, str], program: str) -> VariablesUnused | None:
    """Return news of the variables that `program` does not get, or None when there are none."""
    names = unused(variables, program)
    return VariablesUnused(variables=names) if names else None


def chosen_cluster(variables: Mapping[str, str], options: Sequence[str] = ()) -> str:
    """Return the one cluster that the options, or else the shell's variables, choose for a job, or nothing."""
    by_option = [option.partition("=")[2] for option in options if names_cluster(option)]
    by_shell = next((variables[name] for name in reversed(_CLUSTERS) if variables.get(name)), "")
    chosen = by_option[-1] if by_option else by_shell
    return chosen if re.fullmatch(r"[\w.-]+", chosen, re.ASCII) and chosen != "all" else ""


def names_cluster(option: str) -> bool:
    """Return whether an option of sbatch, one word, chooses the clusters."""
    return option.partition("=")[0] in ("--clusters", "--cluster")
