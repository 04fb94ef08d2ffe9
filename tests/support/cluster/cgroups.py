"""The cgroups (v1) of a pretend machine: its own folders, which it sees as the root cgroups.

slurmd names a job's cgroup only after the node, so two clusters would otherwise share cgroups. Powering off the
pretend machine removes its cgroups.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

from cluster.errors import ClusterError

_MOUNTED = Path("/sys/fs/cgroup")
_NEEDED = ("freezer", "memory")  # anchor.sh mounts the same


def available() -> bool:
    """Return whether this machine has the cgroups that slurmd 22.05 needs; cgroup v2 alone would need systemd."""
    return all((_MOUNTED / name / "release_agent").exists() for name in _NEEDED)


def of_host(base: Path, name: str) -> list[Path]:
    """Return the cgroups of the pretend machine `name` of the cluster in `base`."""
    return sorted(_MOUNTED.glob(f"*/{base.name}-{name}"))


def remove(base: Path, name: str, *, deadline: float = 10.0) -> None:
    """Remove the cgroups of a pretend machine whose processes have ended."""
    until = time.monotonic() + deadline
    while left := of_host(base, name):
        for top in left:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    Path(folder).rmdir()
        if time.monotonic() > until:
            raise ClusterError(f"cannot remove {left[0]}: a process is in it")
        time.sleep(0.01)
