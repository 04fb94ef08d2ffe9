"""The run directories of a run root: find and remove old ones, and check whether nodes can see them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from exatrkx_hpc.base.errors import ConfigError, LaunchError
from exatrkx_hpc.base.job import JobInfo
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
#: The end of the name of a script that `deploy` wrote.
_OF_DEPLOY = re.compile(r"-[0-9]{8}-[0-9]{6}(?:-[0-9a-f]{8})?\.sbatch$")
#: File systems in the memory of one machine or in one container.
_OF_ONE_MACHINE = {"tmpfs", "ramfs", "devtmpfs", "overlay", "aufs", "squashfs", "rootfs"}
_MOUNTS = Path("/proc/self/mountinfo")
#: Folders that each machine has for itself, on any file system.
_OWN_FOLDERS = (Path("/tmp"), Path("/var/tmp"))


def parse_age(text: str) -> float:
    """Return an age such as 90m, 12h, 7d or 2w in seconds; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a valid age; write a number and m, h, d or w, such as 7d")
    return int(match[1]) * _UNITS[match[2]]


def last_change(run_dir: Path) -> float:
    """Return the time of the last change in the run directory, in seconds since the epoch.

    Targets of links do not count. Raises OSError if the run directory does not exist.
    """
    times = [run_dir.lstat().st_mtime]
    for folder, _, names in os.walk(run_dir):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                times.append(Path(folder, name).lstat().st_mtime)
    return max(times)


def old_jobs(
    farm: FarmDir,
    *,
    older_than: float,
    infos: Callable[[Sequence[str]], Mapping[str, JobInfo]],
    now: float | None = None,
) -> tuple[str, ...]:
    """Return the jobs that have ended and whose run directory has not changed for `older_than` seconds.

    `infos` is called once, for all directories that are old enough. Jobs with an unknown state are left out, and so
    are folders that are not run directories but have a numeric name.
    """
    moment = time.time() if now is None else now
    old = [job for job in farm.job_ids() if _unchanged(farm.job(job), moment - older_than)]
    found = infos(old) if old else {}
    return tuple(job for job in old if found[job].state.over)


def _unchanged(run_dir: RunDir, before: float) -> bool:
    with contextlib.suppress(OSError):
        return any(mark.is_file() for mark in run_dir.marks) and last_change(run_dir.path) < before
    return False


def remove(run_dir: RunDir) -> None:
    """Remove a job's run directory, its script and its log in the run root; targets of links stay.

    Raises LaunchError if the run directory or the log cannot be removed.
    """
    script = _script_of(run_dir)
    try:
        if script is not None and script.parent == run_dir.farm.scripts:
            remove_script(script)
        shutil.rmtree(run_dir)
        run_dir.job_log.unlink(missing_ok=True)
        latest = run_dir.farm.latest
        if latest.is_symlink() and latest.readlink() == Path(run_dir.job):
            latest.unlink()
    except OSError as error:
        left = error.filename or run_dir
        raise LaunchError(f"{left} cannot be removed ({error.strerror}); remove {run_dir} by hand") from error


def remove_script(script: Path) -> None:
    """Remove a script that `deploy` wrote, and its log of a terminal; files that cannot be removed stay."""
    for path in (script, script.with_suffix(".log")):
        with contextlib.suppress(OSError):
            path.unlink()


def remove_old_scripts(farm: FarmDir, *, older_than: float, now: float | None = None) -> None:
    """Remove scripts of `deploy` unchanged for `older_than` seconds, except those of jobs with a run directory."""
    moment = time.time() if now is None else now
    kept = {_script_of(farm.job(job)) for job in farm.job_ids()}
    for script in farm.scripts.glob("*.sbatch"):
        with contextlib.suppress(OSError):
            if _OF_DEPLOY.search(script.name) and script not in kept and script.stat().st_mtime < moment - older_than:
                remove_script(script)


def _script_of(run_dir: RunDir) -> Path | None:
    """Return the submitted script of the job of a run directory, or None if no record names it."""
    for record in run_dir.job_records:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if script := json.loads(record.read_text()).get("script"):
                return Path(script)
    return None


def local_file_system(path: Path) -> str | None:
    """Return the type of the file system of `path`, such as tmpfs, if it is local to this machine; else None.

    `path` need not exist. A bind mount of a folder of such a file system counts as shared, because somebody set it up
    on purpose. None proves nothing: a disk may or may not be exported to the nodes.
    """
    resolved = path.resolve()
    found, longest = None, -1
    for line in _MOUNTS.read_text().splitlines():  # a later mount hides an earlier one at the same path
        fields, _, rest = line.partition(" - ")
        root, place = (_unescaped(field) for field in fields.split()[3:5])
        if len(place) >= longest and resolved.is_relative_to(place):
            kind = rest.split()[0]
            found, longest = kind if kind in _OF_ONE_MACHINE and root == "/" else None, len(place)
    return found


def of_this_machine(path: Path) -> str:
    """Return why `path`, which need not exist, is local to this machine; '' if it may be shared."""
    if (kind := local_file_system(path)) is not None:
        return f"is on {kind}, which the nodes do not share with this machine"
    existing = next(one for one in (path, *path.parents) if one.exists()).resolve()
    for own in _OWN_FOLDERS:
        # A file system that is mounted below the folder may be shared.
        if existing.is_relative_to(own) and existing.stat().st_dev == own.stat().st_dev:
            return f"is below {own}, which is local to each machine"
    return ""


def _unescaped(field: str) -> str:
    r"""Return a field of mountinfo without octal escapes, such as \040 for a space."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
