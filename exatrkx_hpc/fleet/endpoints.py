"""The endpoints of a run root: which monitors live, and the endpoint that a command without a job means."""

from __future__ import annotations

import fcntl
import os
import struct
import time
from pathlib import Path

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.fleet.endpoint import EndpointRecord, read_endpoint, running_endpoint
from exatrkx_hpc.fleet.lease import read_lease
from exatrkx_hpc.launch.run_dir import FarmDir, RunDir

#: struct flock of Linux on 64-bit machines: type, whence, start, length, process.
_FLOCK = "hhqqi"


def monitor_lives(run_dir: RunDir) -> bool | None:
    """Return whether a monitor of the job lives; None if that cannot be observed.

    A living monitor holds its lease, where its file system knows no locks, or its lock. This function does not take the
    lock, even briefly, so that it never disturbs a monitor that starts.
    """
    lease = read_lease(run_dir.monitor_lease)
    if lease is not None and not lease.void(time.time()):
        return True
    try:
        with run_dir.monitor_lock.open("rb") as lock:
            return _held_here(os.fstat(lock.fileno())) or _held_elsewhere(lock.fileno())
    except FileNotFoundError:
        return False
    except OSError:
        return None


def _held_here(found: os.stat_result) -> bool:
    """Return whether a process of this machine holds a lock of the file, by the kernel's list.

    The list and stat may name one device differently, so the inode alone counts.
    """
    words = Path("/proc/locks").read_text().split()
    return any(word.endswith(f":{found.st_ino}") for word in words)


def _held_elsewhere(file: int) -> bool:
    """Return whether another machine holds a lock: a file server reports flock as a lock of the whole file."""
    wanted = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    kind, *_ = struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, wanted))
    return bool(kind != fcntl.F_UNLCK)


def endpoints_of(farm: FarmDir) -> tuple[EndpointRecord, ...]:
    """Return the endpoints of all jobs of a run root."""
    found = (read_endpoint(farm.job(job)) for job in farm.job_ids())
    return tuple(record for record in found if record is not None)


def only_endpoint(farm: FarmDir, tell: Tell = untold) -> EndpointRecord:
    """Return the endpoint of the run root, as `running_endpoint` does; raises EndpointError if there are several."""
    found = endpoints_of(farm)
    if len(found) > 1:  # a killed monitor leaves its record
        kept = tuple(record for record in found if record.has_monitor(time.time()))
        found = kept if len(kept) == 1 else found
    if len(found) > 1:
        each = ", ".join(f"{record.job} ({record.grpc})" for record in found)
        raise EndpointError(f"{len(found)} endpoints below {farm}: those of jobs {each}; choose one with --job")
    return running_endpoint(farm, found[0].job, tell=tell) if found else running_endpoint(farm)
