"""Folders and cgroups of clusters whose owner was killed before it could clean up."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from cluster import cgroups
from cluster.config import HEAD

_PREFIX = "exatrkx-cluster-"
#: A subfolder of a cluster with a shell: one empty file for each node that another terminal asks to boot.
ASKED = "boot"


def new_base() -> Path:
    """Create the folder of a cluster; its name contains the PID of the owner.

    The path contains no symbolic link, because it must be the same inside and outside.
    """
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")).resolve()


def running() -> list[Path]:
    """Return the folders of the running clusters with a shell, the newest last."""
    bases = Path(tempfile.gettempdir()).resolve().glob(f"{_PREFIX}*")
    up = [base for base in bases if (base / ASKED).is_dir() and Path("/proc", base.name.split("-")[2]).exists()]
    return sorted(up, key=lambda base: (base / ASKED).stat().st_ctime)


def sweep() -> None:
    """Remove folders and cgroups of clusters whose owner has ended; their processes have ended with it."""
    for base in Path(tempfile.gettempdir()).resolve().glob(f"{_PREFIX}*"):
        owner = re.match(rf"{_PREFIX}(\d+)-", base.name)
        if owner and not Path("/proc", owner[1]).exists():
            for name in (HEAD, *(host.name for host in (base / "hosts").glob("*"))):
                cgroups.remove(base, name)
            shutil.rmtree(base, ignore_errors=True)
