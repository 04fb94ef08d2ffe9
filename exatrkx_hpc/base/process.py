"""The only module that starts programs: run one to completion, or start one and stop it with its children.

No other module imports subprocess. A command is a list of words, never a string for a shell.
"""

from __future__ import annotations

import asyncio
import asyncio.subprocess
import contextlib
import errno
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.base.errors import MissingComponent, NotStarted
from exatrkx_hpc.base.process_id import ProcessId

#: The exit status of a program that `run` killed after its timeout.
TIMED_OUT = 124
#: Errors of a start that no waiting changes: the program is not there, is no program, or is not for this user.
_OF_THE_PROGRAM = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ENOEXEC,
    errno.E2BIG,
    errno.ENAMETOOLONG,
)


# asyncio warns on stderr if the end of a child was noted elsewhere, as after a start that failed halfway for want of
# files. The error of that start says all.
logging.getLogger("asyncio").addFilter(lambda record: "Unknown child process" not in record.getMessage())


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A finished program: its command, exit status and output."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str

    @property
    def complaint(self) -> str:
        """The last three lines of output as one line; `; ` becomes `, `, because `; ` separates an error's remedy."""
        text = self.stderr.strip() or self.stdout.strip() or "it printed nothing"
        return ", ".join(line.strip() for line in text.splitlines()[-3:]).replace("; ", ", ")


def find_program(name: str, *, remedy: str) -> str:
    """Return the full path of the program `name`, found on PATH or beside this Python.

    Raises MissingComponent, whose message ends with `remedy`: how to get the program.
    """
    beside_python = Path(sys.executable).parent
    found = shutil.which(name) or shutil.which(name, path=str(beside_python))
    if found is None:
        raise MissingComponent(f"{name} is not on PATH; {remedy}")
    return found


def own_command() -> tuple[str, ...]:
    """Return the command that starts this program with the same Python, also on a node with the same paths."""
    return (sys.executable, "-m", "exatrkx_hpc")


def run(
    argv: Sequence[str],
    *,
    timeout: float = 60.0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: str = "",
    apart: bool = False,
) -> Completed:
    """Run `argv` to its end, at most `timeout` seconds, and return its output; a nonzero exit status raises nothing.

    After the timeout, the program is killed and reported with exit status 124. With `apart`, the program has its own
    session: Ctrl-C and a closed terminal do not reach it, and the timeout also kills the programs that it started.
    Raises MissingComponent when the program does not exist, NotStarted when it cannot be started now. Output that is
    not UTF-8 is replaced by '�'.
    """
    try:
        started = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=env,
            cwd=cwd,
            start_new_session=apart,
        )
    except OSError as error:
        raise _cannot_start(argv[0], error) from error
    with started:
        try:
            stdout, stderr = started.communicate(stdin, timeout=timeout)
        except subprocess.TimeoutExpired:
            _kill(started, apart=apart)
            note = f"{argv[0]} did not finish within {timeout:g} s"
            return Completed(argv=tuple(argv), returncode=TIMED_OUT, stdout="", stderr=note)
        except BaseException:
            _kill(started, apart=apart)
            raise
    return Completed(argv=tuple(argv), returncode=started.returncode, stdout=stdout, stderr=stderr)


def _kill(started: subprocess.Popen[str], *, apart: bool) -> None:
    started.kill()
    if apart:
        kill_session(started.pid)
    started.wait()


class Child:
    """A program in its own session, so that it can be stopped with every process that it started."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        """Take over a started process, which must be the leader of its session."""
        self._popen = popen

    @property
    def pid(self) -> int:
        """The process ID, which is also the session ID."""
        return self._popen.pid

    def returncode(self) -> int | None:
        """Return the exit status, or None while the program runs."""
        return self._popen.poll()

    def wait(self, timeout: float) -> int | None:
        """Wait up to `timeout` seconds for the end; return the exit status, or None if the program still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self._popen.wait(timeout)
        return None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program only, not to its children; does nothing if the program has ended."""
        with contextlib.suppress(ProcessLookupError):
            self._popen.send_signal(number)

    def release(self) -> None:
        """Let the program run on by itself; this object is of no more use."""
        self._popen.returncode = 0  # Popen warns of a program that outlives it

    def stop(self, *, grace: float, first: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal `first`, wait up to `grace` seconds, then kill every process left in the session."""
        if self.returncode() is None:
            self.send(first)
            self.wait(grace)
        kill_session(self.pid)
        self._popen.wait()


class Adopted:
    """A program that another process started, in its own session: it can be signalled and stopped like a Child."""

    def __init__(self, process: ProcessId) -> None:
        """Take over a process of this machine, which must be the leader of its session."""
        self._process = process

    @property
    def pid(self) -> int:
        """The process ID, which is also the session ID."""
        return self._process.pid

    def returncode(self) -> int | None:
        """Return None while the program runs, else -1: only its parent learns its exit status."""
        return None if self._process.runs else -1

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program only, not to its children; does nothing if the program has ended."""
        if self._process.runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def release(self) -> None:
        """Let the program run on by itself."""

    def stop(self, *, grace: float, first: signal.Signals = signal.SIGTERM) -> None:
        """Send the signal `first`, wait up to `grace` seconds, then kill every process left in the session."""
        if not self._process.runs:
            return  # its session ID may be another's by now
        self.send(first)
        until = time.monotonic() + grace
        while self._process.runs and time.monotonic() < until:
            time.sleep(0.02)
        kill_session(self.pid)


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    keep_open: Sequence[int] = (),
) -> Child:
    """Start `argv` in its own session, with its output appended to `log`.

    The program and its children inherit the file descriptors `keep_open`.

    Raises MissingComponent when the program does not exist, NotStarted when it cannot be started now.
    """
    with log.open("ab") as output:
        try:
            popen = subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=env,
                cwd=cwd,
                start_new_session=True,
                pass_fds=tuple(keep_open),
            )
        except OSError as error:
            raise _cannot_start(argv[0], error) from error
    return Child(popen)


def _cannot_start(program: str, error: OSError) -> MissingComponent:
    if isinstance(error, FileNotFoundError) and error.filename in (None, program):
        return MissingComponent(f"{program} is not on PATH; install it, or load its module")
    if error.errno in _OF_THE_PROGRAM:
        return MissingComponent(f"{program} cannot be started: {error}")
    return NotStarted(
        f"{program} cannot be started now ({error.strerror}); check 'ulimit -u', 'ulimit -n' and free memory"
    )


async def spawn_piped(argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> asyncio.subprocess.Process:
    """Start `argv` in its own session with stdin and stdout as pipes; stderr is that of this process.

    Raises OSError when it cannot start: no such program, or the limit of files, processes or threads is reached.
    """
    try:
        return await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=env,
            start_new_session=True,
        )
    except RuntimeError as error:  # asyncio waits for a child in a separate thread, which counts as a process
        raise OSError(errno.EAGAIN, str(error)) from error


def session_members(session: int) -> list[int]:
    """Return the process IDs of the living processes of a session."""
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                pid = int(entry.name)
                if os.getsid(pid) == session and not _is_zombie(pid):
                    members.append(pid)
    return members


def kill_session(session: int, *, deadline: float = 5.0) -> None:
    """Kill every process of a session that this user may kill, until none is left or after `deadline` seconds."""
    until = time.monotonic() + deadline
    while time.monotonic() < until:
        living = session_members(session)
        if not living:
            return
        for pid in living:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)


def runs_with(word: str) -> bool:
    """Return whether a living process of this machine, other than this one, has `word` in its command line."""
    sought = word.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if sought in (entry / "cmdline").read_bytes():
                    return True
    return False


def _is_zombie(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return True
    return stat.rpartition(")")[2].split()[0] == "Z"
