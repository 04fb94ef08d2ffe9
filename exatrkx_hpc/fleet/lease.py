"""The right to be a job's monitor: a lock of the run directory, or a lease where its file system knows no locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.base.process_id import ProcessId, process_id
from exatrkx_hpc.fleet.events import LocksMissing
from exatrkx_hpc.launch.run_dir import RunDir

#: The answers of a file system that knows no locks, such as Lustre without `flock`. ENOLCK may also be a lock daemon
#: that is down; a lease serves there, too.
_NO_LOCKS: Final = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD: Final = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)
#: In seconds. A lease that was not renewed for so long is void: three times the longest single step of a monitor, and
#: more than the clocks of two nodes differ.
EXPIRES: Final = 180.0
#: In seconds. A lease that cannot be read is being written, if it is not older.
_BEING_WRITTEN: Final = 10.0


class Lease(BaseModel):
    """A lease: the process that holds it, a random token, and when it was renewed, in seconds since the epoch."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    host: str
    boot: str
    pid: int
    started: int
    token: str
    heartbeat: float

    @property
    def holder(self) -> ProcessId:
        """The process that holds it."""
        return ProcessId(host=self.host, boot=self.boot, pid=self.pid, started=self.started)

    def void(self, now: float) -> bool:
        """Return whether its holder has ended; on another machine, whether it was not renewed for 180 s."""
        return not self.holder.runs if self.holder.here else now - self.heartbeat > EXPIRES


class LeaseLost(EndpointError):
    """Another monitor has taken over: this one was silent for too long.

    `here` says whether the other one runs on this machine, where it has adopted the balancer of this one.
    """

    def __init__(self, job: str, holder: ProcessId) -> None:
        """Name the process that has taken over `job`."""
        super().__init__(
            f"another monitor on {holder.host}, process {holder.pid}, has taken over job {job}; use its endpoint"
        )
        self.here = holder.here


#: Renews the right; raises LeaseLost if another monitor has taken it.
Renew = Callable[[], None]


@contextmanager
def only_monitor_of(run_dir: RunDir, tell: Tell) -> Iterator[Renew]:
    """Hold the right to be the monitor of the run directory's job inside the block; yield how to renew it.

    Raises EndpointError if another monitor holds it, or the lock's file cannot be written.
    """
    try:
        lock = run_dir.monitor_lock.open("a")
    except OSError as error:
        raise EndpointError(
            f"cannot write {run_dir.monitor_lock} ({error.strerror}); check the run directory's file system"
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD:
                raise _held(run_dir.job, "") from error
            if error.errno not in _NO_LOCKS:
                raise EndpointError(f"cannot lock {run_dir.monitor_lock} ({error.strerror}); try again") from error
            tell(LocksMissing(job=run_dir.job, file=str(run_dir.monitor_lock), reason=error.strerror or str(error)))
            with _leased(run_dir) as renew:
                yield renew
            return
        yield _nothing


def _nothing() -> None:
    """Do nothing: a lock ends with its process, and needs no renewal."""


@contextmanager
def _leased(run_dir: RunDir) -> Iterator[Renew]:
    path = run_dir.monitor_lease
    here = process_id(os.getpid())
    if here is None:
        raise EndpointError("this machine's /proc does not show this process; mount /proc")
    mine = Lease(
        host=here.host,
        boot=here.boot,
        pid=here.pid,
        started=here.started,
        token=secrets.token_hex(16),
        heartbeat=time.time(),
    )
    _take(path, mine, run_dir.job)

    def renew() -> None:
        lease = read_lease(path)
        if lease is not None and lease.token != mine.token:
            raise LeaseLost(run_dir.job, lease.holder)
        write_whole(path, mine.model_copy(update={"heartbeat": time.time()}).model_dump_json() + "\n")

    try:
        yield renew
    finally:
        holder = read_lease(path)
        if holder is not None and holder.token == mine.token:
            path.unlink(missing_ok=True)


def _take(path: Path, mine: Lease, job: str) -> None:
    """Write the lease `mine`, if there is none or a void one; raises EndpointError otherwise."""
    text = mine.model_dump_json() + "\n"
    for _ in range(3):
        try:
            with path.open("x") as file:
                file.write(text)
            return
        except FileExistsError:
            pass
        except OSError as error:
            raise EndpointError(f"cannot write {path} ({error.strerror}); check its file system") from error
        if _counts(path):
            break
        _put_aside(path, path.with_name(f".{path.name}.{mine.token}"))
    holder = read_lease(path)
    raise _held(job, "" if holder is None else f" on {holder.host}, process {holder.pid}")


def _put_aside(path: Path, aside: Path) -> None:
    """Remove a void lease.

    Of two monitors that find the same one, the slower may rename the new lease of the faster. So what was renamed is
    checked again; a lease that counts is given back.
    """
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if _counts(aside):
            with contextlib.suppress(OSError):  # its holder has renewed it, or will
                os.link(aside, path)
        aside.unlink()


def _counts(path: Path) -> bool:
    """Return whether a lease is not void; one that cannot be read may be being written."""
    holder = read_lease(path)
    return _age(path) < _BEING_WRITTEN if holder is None else not holder.void(time.time())


def read_lease(path: Path) -> Lease | None:
    """Return the lease in a file; None if there is none, or one that cannot be read."""
    try:
        return Lease.model_validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _age(path: Path) -> float:
    """Return the age of a file in seconds; that of a file that is gone is infinite."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return float("inf")


def _held(job: str, where: str) -> EndpointError:
    return EndpointError(f"another monitor is running for job {job}{where}; stop that monitor, or use its endpoint")
