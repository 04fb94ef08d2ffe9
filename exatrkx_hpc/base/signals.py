"""Signal handling of this process: unwind once on a stop signal, and defer signals in critical sections."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
#: The stops that have begun to unwind this program, in their order.
_unwound: list[int] = []


def _unwind(number: int, frame: FrameType | None) -> None:
    _unwound.append(number)
    raise SystemExit(128 + number)


def unwind_on_stop() -> None:
    """Let SIGTERM, and the end of the terminal, unwind this program as Ctrl-C does: it stops what it started.

    A signal that is switched off, as SIGHUP is by nohup, stays off. SIGINT gets Python's own handler, which asyncio
    replaces by a cancellation while a loop runs: an exception in the middle of gRPC's C code crashes the program.
    """
    for number in _STOPS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else _unwind)


def unwound() -> int | None:
    """Return the exit code of a program that SIGTERM or SIGHUP unwinds, 128 + number; None when none has come.

    The exception alone cannot say: a library in C that the signal interrupts may put an error of its own in its
    place (protobuf's enumerations make an AttributeError of it).
    """
    return 128 + _unwound[-1] if _unwound else None


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold SIGINT, SIGTERM and SIGHUP back inside the block and deliver the first of them after it.

    Between the start of a process and the note that it was started, or in the middle of stopping what runs,
    a signal would leave something behind. In other threads than the main one this does nothing: signals never
    arrive there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    heard = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda got, _: held.append(got)) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if held:
            os.kill(os.getpid(), held[0])


@contextlib.contextmanager
def noted_signals() -> Iterator[list[str]]:
    """Give a list to which SIGINT, SIGTERM and SIGHUP only add their names inside the block; nothing else happens.

    In other threads than the main one it stays empty: signals never arrive there.
    """
    heard: list[str] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    numbers = [number for number in _STOPS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {
        number: signal.signal(number, lambda got, _: heard.append(signal.Signals(got).name)) for number in numbers
    }
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
