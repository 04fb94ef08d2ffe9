"""Folders and cgroups of clusters whose owner was killed before it could take them down."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from cluster import cgroups
from cluster.config import HEAD

_PREFIX = "exatrkx-cluster-"
#: In the folder of a cluster with a shell: the nodes that another terminal asks to boot, each an empty file.
ASKED = "boot"


def new_base() -> Path:
    """Make the folder of a cluster, whose name tells which process owns it.

    The path has no link in it, because it must be the same inside and outside.
    """
    return Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")).resolve()


def running() -> list[Path]:
    """Return the folders of the clusters that are up, the newest last."""
    bases = Path(tempfile.gettempdir()).resolve().glob(f"{_PREFIX}*")
    up = [base for base in bases if (base / ASKED).is_dir() and Path("/proc", base.name.split("-")[2]).exists()]
    return sorted(up, key=lambda base: (base / ASKED).stat().st_ctime)


def sweep() -> None:
    """Remove what is left of clusters whose owner is gone: their processes went with it."""
    for base in Path(tempfile.gettempdir()).resolve().glob(f"{_PREFIX}*"):
        owner = re.match(rf"{_PREFIX}(\d+)-", base.name)
        if owner and not Path("/proc", owner[1]).exists():
            for name in (HEAD, *(host.name for host in (base / "hosts").glob("*"))):
                cgroups.remove(base, name)
            shutil.rmtree(base, ignore_errors=True)
