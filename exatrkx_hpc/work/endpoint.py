"""The endpoint as a notebook sees it: plain calls, with the event loop out of sight in a thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
import weakref
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exatrkx_hpc.errors import ConfigError, EndpointError
from exatrkx_hpc.work.client import Client
from exatrkx_hpc.work.route import MODEL

if TYPE_CHECKING:
    from exatrkx_hpc.values import Mode

T = TypeVar("T")


class Endpoint:
    """One `host:port` that finds tracks; works in a script, a thread and a notebook. Close it after use."""

    def __init__(
        self,
        server: str,
        *,
        model: str = MODEL,
        mode: Mode = "ensemble",
        request_timeout: float = 60.0,
        patience: float = 120.0,
    ) -> None:
        """Prepare to talk to `server` (`host:port`); see `Client` for the mode and the two times, in seconds.

        Raises ConfigError for a bad address or mode. Nothing is sent yet; `check` asks whether the model is ready.
        """
        self.mode: Mode = mode
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="exatrkx-endpoint", daemon=True)
        self._thread.start()
        self._finish = weakref.finalize(self, _stop, self._loop, self._thread)
        try:
            self._client = self._call(
                _client(server, model=model, mode=mode, request_timeout=request_timeout, patience=patience)
            )
        except BaseException:
            self._finish()
            raise

    @property
    def server(self) -> str:
        """The address, `host:port`."""
        return self._client.server

    @property
    def model(self) -> str:
        """The name of the model that is asked; several, with commas, in mode stages."""
        return self._client.model

    def __repr__(self) -> str:
        return f"Endpoint({self.server!r}, mode={self.mode!r}, model={self.model!r})"

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, deadline: float = 10.0) -> None:
        """Return when the model is ready; raises EndpointError or ModelError, after `deadline` s at most."""
        self._call(self._client.check(deadline))

    def find_tracks(self, hits: ArrayLike) -> NDArray[np.int64]:
        """Return the track label of each hit, int64 `[N]`, for hits `[N, 3]` (r/3000, phi/pi, z/400).

        Raises InputError, EndpointError or ModelError as `Client.find_tracks` does.
        """
        return self._call(self._client.find_tracks(hits))

    def map(self, events: Iterable[ArrayLike], in_flight: int = 4) -> Iterator[NDArray[np.int64]]:
        """Yield the labels of each event in the order of `events`, with `in_flight` requests at a time.

        `events` is read only as far as needed: at most `in_flight` ahead of what was yielded. The first
        failure ends it, with the errors of `find_tracks`. Raises ConfigError when `in_flight` is below 1.
        """
        if in_flight < 1:
            raise ConfigError(f"in_flight must be at least 1, not {in_flight}")
        return self._map(iter(events), in_flight)

    def _map(self, events: Iterator[ArrayLike], in_flight: int) -> Iterator[NDArray[np.int64]]:
        ahead: deque[concurrent.futures.Future[NDArray[np.int64]]] = deque()
        try:
            for hits in events:
                ahead.append(self._submit(self._client.find_tracks(hits)))
                if len(ahead) >= in_flight:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()

    def close(self) -> None:
        """Close the channel and end the thread; a second call does nothing."""
        if self._finish.alive:
            self._call(self._client.close())
            self._finish()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._submit(work)
        try:
            return future.result()
        except BaseException:  # Ctrl-C while it runs: do not leave the request behind
            future.cancel()
            raise

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._loop.is_closed():
            work.close()
            raise EndpointError("this endpoint is closed; make a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _client(server: str, *, model: str, mode: Mode, request_timeout: float, patience: float) -> Client:
    """Make the client inside its event loop, which gRPC binds it to."""
    return Client(server, model=model, mode=mode, request_timeout=request_timeout, patience=patience)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Cancel what is left in the loop, then end its thread; also at exit, or when the object is dropped."""

    async def cancel_all() -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    with contextlib.suppress(concurrent.futures.TimeoutError):
        asyncio.run_coroutine_threadsafe(cancel_all(), loop).result(timeout=5.0)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(timeout=5.0)
    if not thread.is_alive():
        loop.close()
