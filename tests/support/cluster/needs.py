"""What this machine lacks for the cluster."""

from __future__ import annotations

import os
import shutil

from exatrkx_hpc.base.process import run

_PROGRAMS = {
    "slurmctld": "slurmctld",
    "slurmd": "slurmd",
    "sbatch": "slurm-client",
    "slurmdbd": "slurmdbd",
    "munged": "munge",
    "mariadbd": "mariadb-server",
    "mysql_install_db": "mariadb-server",
    "ip": "iproute2",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}


def missing() -> str:
    """Return why the cluster cannot run here, in one line, or '' when it can."""
    if os.getuid() != 0:
        return "the test cluster needs root, for its namespaces"
    packages = sorted({package for program, package in _PROGRAMS.items() if shutil.which(program) is None})
    if packages:
        return f"the test cluster needs the packages {' '.join(packages)}; run '.ci/system-packages test'"
    trial = "mount -t tmpfs t /dev/shm && ip link add v0 type veth peer name v1 && ip link add b0 type bridge"
    argv = ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "--"]
    done = run([*argv, "bash", "-c", trial])
    return f"the test cluster needs namespaces that this machine refuses: {done.complaint}" if done.returncode else ""
