"""The run directories of a run root: which can be removed, their removal, and whether nodes can see them."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from exatrkx_hpc.base.errors import ConfigError, LaunchError
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
#: What the names of the scripts end with that `deploy` wrote.
_OF_DEPLOY = re.compile(r"-[0-9]{8}-[0-9]{6}\.sbatch$")
#: File systems that live in one machine's memory or in one container.
_OF_ONE_MACHINE = {"tmpfs", "ramfs", "devtmpfs", "overlay", "aufs", "squashfs", "rootfs"}
_MOUNTS = Path("/proc/self/mountinfo")
#: Every machine has its own of these, whatever file system they are on.
_OWN_FOLDERS = (Path("/tmp"), Path("/var/tmp"))


def parse_age(text: str) -> float:
    """Return the seconds of an age such as 90m, 12h, 7d or 2w; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    if match is None:
        raise ConfigError(f"{text!r} is not a valid age; write a number and m, h, d or w, such as 7d")
    return int(match[1]) * _UNITS[match[2]]


def last_change(run_dir: Path) -> float:
    """Return when something in the run directory was last written, in seconds since the epoch.

    What a link points to does not count. Raises OSError when the run directory is gone.
    """
    times = [run_dir.lstat().st_mtime]
    for folder, _, names in os.walk(run_dir):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # taken away meanwhile
                times.append(Path(folder, name).lstat().st_mtime)
    return max(times)


def old_jobs(
    farm: FarmDir, *, older_than: float, is_over: Callable[[str], bool], now: float | None = None
) -> tuple[str, ...]:
    """Return the jobs that have ended and whose run directory has not changed for `older_than` seconds.

    `is_over` is asked last, and only for directories that are old enough; a job of which it is unknown whether
    it has ended is not among them, nor is a folder that only has a number for its name.
    """
    moment = time.time() if now is None else now
    return tuple(job for job in farm.job_ids() if _removable(farm.job(job), moment - older_than, is_over))


def _removable(run_dir: RunDir, before: float, is_over: Callable[[str], bool]) -> bool:
    with contextlib.suppress(LaunchError, OSError):
        ours = any(mark.is_file() for mark in run_dir.marks)
        return ours and last_change(run_dir.path) < before and is_over(run_dir.job)
    return False


def remove(run_dir: RunDir) -> None:
    """Remove a job's run directory, its script and the log that Slurm wrote beside it; what a link points to stays.

    Raises LaunchError when not all of it can be removed.
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
    """Remove a script that `deploy` wrote, and what it said in a terminal; one that cannot be removed stays."""
    for path in (script, script.with_suffix(".log")):
        with contextlib.suppress(OSError):
            path.unlink()


def remove_old_scripts(farm: FarmDir, *, older_than: float, now: float | None = None) -> None:
    """Remove the scripts that have not changed for `older_than` seconds, but none of a job with a run directory."""
    moment = time.time() if now is None else now
    kept = {_script_of(farm.job(job)) for job in farm.job_ids()}
    for script in farm.scripts.glob("*.sbatch"):
        with contextlib.suppress(OSError):
            if _OF_DEPLOY.search(script.name) and script not in kept and script.stat().st_mtime < moment - older_than:
                remove_script(script)


def _script_of(run_dir: RunDir) -> Path | None:
    """Return the script that the job of a run directory was submitted as, if that is noted."""
    for record in run_dir.job_records:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if script := json.loads(record.read_text()).get("script"):
                return Path(script)
    return None


def local_file_system(path: Path) -> str | None:
    """Return the type of the file system of `path` if no other machine can see it, such as tmpfs; else None.

    `path` need not exist yet. A folder of such a file system that somebody mounted again in another place counts
    as arranged for. None proves nothing: a disk may be exported to the nodes, or not.
    """
    resolved = path.resolve()
    found, longest = None, -1
    for line in _MOUNTS.read_text().splitlines():  # a later mount covers an earlier one in the same place
        fields, _, rest = line.partition(" - ")
        root, place = (_unescaped(field) for field in fields.split()[3:5])
        if len(place) >= longest and resolved.is_relative_to(place):
            kind = rest.split()[0]
            found, longest = kind if kind in _OF_ONE_MACHINE and root == "/" else None, len(place)
    return found


def of_this_machine(path: Path) -> str:
    """Return why no other machine sees `path`, which need not exist yet, or nothing when nothing speaks against it."""
    if (kind := local_file_system(path)) is not None:
        return f"is on {kind}, which the nodes do not share with this machine"
    existing = next(one for one in (path, *path.parents) if one.exists()).resolve()
    for own in _OWN_FOLDERS:
        # A folder that somebody mounted below it is another matter.
        if existing.is_relative_to(own) and existing.stat().st_dev == own.stat().st_dev:
            return f"is below {own}, which is local to each machine"
    return ""


def _unescaped(field: str) -> str:
    r"""Return a field of mountinfo, in which a blank is \040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
