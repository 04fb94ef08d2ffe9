"""The endpoint for notebooks: blocking calls, with the event loop in a background thread."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import operator
import threading
import weakref
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exatrkx_hpc.base.credentials import CredentialFiles
from exatrkx_hpc.base.errors import EndpointError
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.inference.retry import PATIENCE
from exatrkx_hpc.work.map.found import Found, NamedEvents
from exatrkx_hpc.work.map.map import Flow, Way
from exatrkx_hpc.work.map.map_ledger import Scribe
from exatrkx_hpc.work.run.progress import ShowProgress
from exatrkx_hpc.work.workloads.base import Workload, single
from exatrkx_hpc.work.workloads.given import Given, as_tensors
from exatrkx_hpc.work.workloads.watch import Watch

if TYPE_CHECKING:
    from exatrkx_hpc.config.values import Mode

T = TypeVar("T")


class Endpoint:
    """Client of one endpoint `host:port`, for scripts, threads and notebooks; close it after use."""

    def __init__(
        self,
        server: str,
        *,
        workload: Workload | None = None,
        model: str = "",
        mode: Mode = "ensemble",
        request_timeout: float = 60.0,
        patience: float = PATIENCE,
        token_file: str | Path | None = None,
        certificate: str | Path | None = None,
        identity: str = "",
    ) -> None:
        """Prepare a client of `server` (`host:port`); see `Client` for workload, mode and the two times, in seconds.

        `token_file` is the file with the farm's token, `certificate` that with the certificate of an endpoint with TLS.
        `identity` is whose endpoint it must be, see `Client`. Raises ConfigError for a bad address, mode or file. Sends
        nothing yet; `check` asks whether the model is ready.
        """
        self.mode: Mode = mode
        files = CredentialFiles(
            token=Path(token_file) if token_file else None, certificate=Path(certificate) if certificate else None
        )
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="exatrkx-endpoint", daemon=True)
        self._thread.start()
        self._finish = weakref.finalize(self, _stop, self._loop, self._thread)
        try:
            self._client = self._call(
                _client(
                    server,
                    workload=workload,
                    model=model,
                    mode=mode,
                    request_timeout=request_timeout,
                    patience=patience,
                    credentials=files.read(),
                    identity=identity,
                )
            )
        except BaseException:
            self._finish()
            raise
        self._watch = Watch(self._client.workload)

    @property
    def server(self) -> str:
        """The address, `host:port`."""
        return self._client.server

    @property
    def model(self) -> str:
        """The name of the requested model; in mode `stages` several names, separated by commas."""
        return self._client.model

    def __repr__(self) -> str:
        return f"Endpoint({self.server!r}, mode={self.mode!r}, model={self.model!r})"

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self, deadline: float = 10.0) -> None:
        """Wait until the model is ready, at most `deadline` seconds; raises EndpointError or ModelError."""
        self._call(self._client.check(deadline))

    @property
    def workload(self) -> Workload:
        """The kind of event: tensors of request and result."""
        return self._client.workload

    def infer(self, event: Given) -> Any:  # noqa: ANN401 - an array, or a mapping of arrays
        """Return the result of one event; arguments and errors as in `Client.infer`.

        Warns once if the events seem to have other units than the service expects.
        """
        tensors = as_tensors(self.workload, event)
        self._watch.look(tensors)
        return single(self._call(self._client.ask(tensors)).outputs)

    def find_tracks(self, hits: ArrayLike) -> NDArray[np.int64]:
        """Return the track label of each hit, int64 `[N]`, for hits `[N, 3]` (r/3000, phi/pi, z/400).

        Raises InputError, EndpointError or ModelError as `Client.infer` does. Warns once about other units.
        """
        labels: NDArray[np.int64] = self.infer(hits)
        return labels

    @overload
    def map(
        self,
        events: NamedEvents,
        in_flight: int = ...,
        *,
        ordered: bool = ...,
        ledger: str | Path | None = ...,
        accept_changes: bool = ...,
        retry_failed: bool = ...,
        progress: bool | ShowProgress = ...,
    ) -> Iterator[Found]: ...

    @overload
    def map(
        self, events: Iterable[Given], in_flight: int = ..., *, progress: bool | ShowProgress = ...
    ) -> Iterator[Any]: ...

    def map(
        self,
        events: NamedEvents | Iterable[Given],
        in_flight: int = 4,
        *,
        ordered: bool = False,
        ledger: str | Path | None = None,
        accept_changes: bool = False,
        retry_failed: bool = False,
        progress: bool | ShowProgress = False,
    ) -> Iterator[Any]:
        """Yield the results of many events, with `in_flight` requests at a time; see docs/python.md.

        For events without names, it yields their results in the order of `events`; the first failure ends it with an
        error of `infer`. For named events, pairs `(name, event)` or a mapping, it yields a `Found` for each as they
        finish, or in their order with `ordered`. A failure of one event is in its `Found` and does not end the map.

        `ledger` is an output folder as in `run-clients`: each named event is done once, and results of an earlier map
        are read from there. `retry_failed` also retries events in quarantine; `accept_changes` redoes events whose
        tensors have changed. `progress` shows the progress, or is a function that gets a Tally after each event.

        `events` is read at most `in_flight` events ahead, with names 2 more. Closing the iterator drops requests in
        flight. Raises ConfigError if `in_flight` is below 1. During iteration, raises EndpointError when the endpoint
        stays dead, ModelError when 100 events in a row fail in the model, OutputError when the ledger cannot be used
        or does not fit, and InputError for an event that changed since it was done or whose name is invalid, repeated
        or missing.
        """
        expected = operator.length_hint(events, 0)
        way = Way(in_flight=in_flight, ordered=ordered, progress=progress, events=expected)
        scribe = None
        if ledger is not None:
            scribe = Scribe(
                Path(ledger),
                workload=self.workload,
                server=self.server,
                mode=self.mode,
                model=self.model,
                watch=self._watch,
                accept_changes=accept_changes,
                retry_failed=retry_failed,
            )
        return Flow(self._submit, self._client, way, scribe, self._watch).results(
            events.items() if isinstance(events, Mapping) else events
        )

    def close(self) -> None:
        """Close the channel and end the thread; a second call has no effect."""
        if self._finish.alive:
            self._call(self._client.close())
            self._finish()

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._submit(work)
        try:
            return future.result()
        except BaseException:  # Ctrl-C during the call: cancel the request
            future.cancel()
            raise

    def _submit(self, work: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
        if self._loop.is_closed():
            work.close()
            raise EndpointError("this endpoint is closed; create a new one")
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _client(server: str, **settings: Any) -> Client:  # noqa: ANN401 - what `Client` takes
    """Create the client inside its event loop, because gRPC binds it to that loop."""
    return Client(server, **settings)


def _stop(loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Cancel all tasks of the loop, then end its thread; also runs at exit and when the object is collected."""

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
