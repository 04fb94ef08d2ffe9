"""The run directories below a run root: one a job, named by its id, and nothing else is ever touched."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from exatrkx_hpc.errors import ConfigError

_UNITS = {"m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def job_ids(run_root: Path) -> tuple[str, ...]:
    """Return the ids of the jobs that have a run directory, the newest id last."""
    if not run_root.is_dir():
        return ()
    folders = (path for path in run_root.iterdir() if path.name.isdigit() and path.is_dir() and not path.is_symlink())
    return tuple(sorted((path.name for path in folders), key=int))


def parse_age(text: str) -> float:
    """Return the seconds of an age such as 90m, 12h, 7d or 2w; raises ConfigError for anything else."""
    match = re.fullmatch(r"(\d+)([mhdw])", text)
    if match is None:
        raise ConfigError(f"{text!r} is no age; write a number and m, h, d or w, such as 7d")
    return int(match[1]) * _UNITS[match[2]]


def last_change(run_dir: Path) -> float:
    """Return when something in the run directory was last written, in seconds since the epoch."""
    times = [run_dir.stat().st_mtime]
    for part in ("records", "logs"):
        times += [path.stat().st_mtime for path in (run_dir / part).glob("*")]
    return max(times)


def old_jobs(
    run_root: Path, *, older_than: float, is_over: Callable[[str], bool], now: float | None = None
) -> tuple[str, ...]:
    """Return the jobs that have ended and whose run directory has not changed for `older_than` seconds.

    `is_over` is asked last, and only for directories that are old enough; a job of which nobody can say whether
    it has ended is not among them.
    """
    moment = time.time() if now is None else now
    aged = [job for job in job_ids(run_root) if moment - last_change(run_root / job) > older_than]
    return tuple(job for job in aged if is_over(job))


def remove(run_root: Path, job: str) -> None:
    """Remove a job's run directory and the log that Slurm wrote beside it; raises OSError."""
    shutil.rmtree(run_root / job)
    (run_root / f"job-{job}.log").unlink(missing_ok=True)
    latest = run_root / "latest"
    if latest.is_symlink() and latest.readlink().name == job:
        latest.unlink()


def log_files(run_dir: Path, server: str | None = None) -> tuple[Path, ...]:
    """Return the logs of a job: the job's own, then each server's; or those of one server."""
    own = run_dir.parent / f"job-{run_dir.name}.log"
    servers = tuple(sorted((run_dir / "logs").glob("*.log")))
    if server is not None:
        return tuple(path for path in servers if path.stem == server)
    return (own, *servers) if own.exists() else servers
