"""Run a coroutine to completion from a script, a thread, or a notebook with a running loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from exatrkx_hpc.base.signals import release_lost_terminal

T = TypeVar("T")


def blocking(work: Callable[[], Coroutine[Any, Any, T]], *, interrupt: Callable[[str], None] | None = None) -> T:
    """Run the coroutine that `work` creates and return its result.

    In a notebook, the coroutine runs in a thread, and Ctrl-C calls `interrupt` with the reason, from the notebook's
    thread; without `interrupt`, the coroutine runs to completion, and then KeyboardInterrupt is raised.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work())
    # A notebook: its loop is blocked by this call, so the work gets its own thread and loop.
    with concurrent.futures.ThreadPoolExecutor(max_workers=1) as pool:
        future = pool.submit(lambda: asyncio.run(work()))
        try:
            return future.result()
        except KeyboardInterrupt:
            if interrupt is None:
                raise
            interrupt("stopped by SIGINT")
            return future.result()


@contextlib.contextmanager
def stopped_by_signals(stop: Callable[[str], None]) -> Iterator[None]:
    """Let SIGTERM, SIGINT and SIGHUP call `stop` in the running loop; restore the former handlers after the block.

    A SIGHUP that is ignored, as under nohup, stays ignored. Outside the main thread, this does nothing: signals never
    arrive there.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    former = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    if former[signal.SIGHUP] is signal.SIG_IGN:
        del former[signal.SIGHUP]

    def hear(number: signal.Signals) -> None:
        if number == signal.SIGHUP:
            release_lost_terminal()
        stop(f"stopped by {number.name}")

    for number in former:
        loop.add_signal_handler(number, hear, number)
    try:
        yield
    finally:
        for number, handler in former.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
