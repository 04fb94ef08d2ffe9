"""The environment variables that Slurm's commands read, and those of the shell that are passed on to the commands.

A variable can set each option of sbatch, salloc, srun, squeue and the other commands, and overrides the #SBATCH lines
of a script. sbatch also passes the shell's variables on to the job, where srun reads them. Only the farm shall define
its jobs, so a command gets only the variables that locate Slurm.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from exatrkx_hpc.launch.events import VariablesUnused

#: The variables of Slurm's commands, from the manuals of 22.05 to 24.11.
_OF_SLURM = re.compile(r"(?:SBATCH|SALLOC|SRUN|SQUEUE|SCANCEL|SCONTROL|SACCT|SACCTMGR|SINFO|SATTACH|SLURM)_")
#: Variables that locate Slurm and authenticate the user.
_WHERE = frozenset({"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_JWT"})
#: Variables that choose the cluster of a job or a query.
_CLUSTERS = ("SBATCH_CLUSTERS", "SALLOC_CLUSTERS", "SLURM_CLUSTERS")
#: Variables that describe the allocation to srun; SLURM_SPANK_ is for plugins, such as shifter's.
_OF_THE_ALLOCATION = re.compile(
    r"SLURM_(?:JOB_\w+|JOBID|NODELIST|NNODES|CLUSTER_NAME|WORKING_CLUSTER|SUBMIT_\w+|SPANK_\w+|RESTART_COUNT|"
    r"GPUS_ON_NODE)"
)


def slurm_environment(variables: Mapping[str, str], *, clusters: bool = False, inside: bool = False) -> dict[str, str]:
    """Return `variables` without those that change what a command of Slurm does.

    With `clusters`, variables that choose a cluster stay; with `inside`, those that describe this shell's allocation.
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
    """Return the names of the variables that `program` (`sbatch`, `salloc` or `srun`) would read as options."""
    prefix = f"{program.upper()}_"
    found = (name for name in variables if name.startswith(prefix) and name not in _CLUSTERS)
    return tuple(sorted(found))


def unused_variables(variables: Mapping[str, str], program: str) -> VariablesUnused | None:
    """Return news of the variables that `program` does not get, or None if there are none."""
    names = unused(variables, program)
    return VariablesUnused(variables=names) if names else None


def chosen_cluster(variables: Mapping[str, str], options: Sequence[str] = ()) -> str:
    """Return the cluster that the options, else the shell's variables, choose for a job; '' for none or several."""
    names = chosen_clusters(variables, options)
    return names[0] if len(names) == 1 and names[0] != "all" else ""


def chosen_clusters(variables: Mapping[str, str], options: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the clusters that the options, else the shell's variables, name for a job; '' is this machine's cluster.

    The job goes to one of them.
    """
    by_option = [option.partition("=")[2] for option in options if names_cluster(option)]
    by_shell = next((variables[name] for name in reversed(_CLUSTERS) if variables.get(name)), "")
    names = (by_option[-1] if by_option else by_shell).split(",")
    return tuple(names) if all(re.fullmatch(r"[\w.-]+", name, re.ASCII) for name in names) else ("",)


def names_cluster(option: str) -> bool:
    """Return whether `option`, one word of sbatch's command, chooses the clusters."""
    return option.partition("=")[0] in ("--clusters", "--cluster")
