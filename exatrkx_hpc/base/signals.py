"""Signal handling of this process: unwind once on a stop signal, and defer signals in critical sections."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: The stop signals that have started to unwind this program, in order.
_unwound: list[int] = []


def release_lost_terminal() -> None:
    """Send further output to /dev/null if the terminal of stdout or stderr is gone; each write would fail (EIO)."""
    for descriptor in (1, 2):
        try:
            os.write(descriptor, b"")
        except OSError as error:
            if error.errno == errno.EIO:
                with open(os.devnull, "wb") as nowhere:  # noqa: PTH123 - a device, not a path of ours
                    os.dup2(nowhere.fileno(), descriptor)


def _unwind(number: int, frame: FrameType | None) -> None:
    _hear(number)
    _unwound.append(number)
    raise SystemExit(128 + number)


def _hear(number: int) -> None:
    if number == signal.SIGHUP:
        release_lost_terminal()


def unwind_on_stop() -> None:
    """Let SIGTERM and SIGHUP (closed terminal) unwind this program like Ctrl-C, so that it stops what it started.

    Ignored signals stay ignored, such as SIGHUP under nohup. SIGINT keeps Python's own handler: asyncio replaces it
    by a cancellation while a loop runs, because an exception inside gRPC's C code crashes the program.
    """
    for number in _STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _unwind)


def unwound() -> int | None:
    """Return the exit code of a program that SIGTERM or SIGHUP unwinds, 128 + number; None without such a signal.

    The exception is not enough: an interrupted C library may replace SystemExit by its own error (protobuf's
    enumerations raise AttributeError).
    """
    return 128 + _unwound[-1] if _unwound else None


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back inside the block, and deliver the first of them after the block.

    For critical sections: a signal between the start of a process and the record of it, or during a stop, would leave
    orphans. Does nothing outside the main thread: Python handles signals only there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []

    def hold(got: int, _: FrameType | None) -> None:
        _hear(got)
        held.append(got)

    heard = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, hold) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            os.kill(os.getpid(), held[0])


@contextlib.contextmanager
def noted_signals() -> Iterator[list[str]]:
    """Yield a list; inside the block, SIGINT, SIGTERM and SIGHUP append their names to it and do nothing else.

    Outside the main thread, the list stays empty: Python handles signals only in the main thread.
    """
    heard: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def note(got: int, _: FrameType | None) -> None:
        _hear(got)
        heard.append(signal.Signals(got).name)

    numbers = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
