"""Watch the models of a run: results of other models than those that it began with are not mixed in unnoticed.

Each answer has the version of its model (`Accounts`). An ensemble's says nothing of the models that it runs, so these
are asked for at the start, every 30 s, when a server answers for the first time, and at the end. Results since the
last look that found no change may be of either, and are taken back.

A look asks one server, which the balancer chooses, because clients do not reach the servers themselves. A server that
serves other models than the rest is noticed when a look meets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Final

from exatrkx_hpc.base.errors import ExatrkxError, OutputError
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.news import ModelsChanged
from exatrkx_hpc.work.results.models import Served, changes
from exatrkx_hpc.work.run.accounts import Accounts

EVERY: Final = 30.0
"""Seconds between two looks. A look takes two small calls for each model."""

_TICK: Final = 1.0


class ModelWatch:
    """Watches the models of one run, in its event loop."""

    def __init__(
        self,
        served: Served,
        accounts: Accounts,
        *,
        client: Callable[[], Client],
        fail: Callable[[ExatrkxError], None],
        tell: Tell,
    ) -> None:
        """Begin with what the endpoint served at the start; `client` makes a client of it, `fail` ends the run."""
        self._make = client
        self._client: Client | None = None
        self._accounts, self._fail, self._tell = accounts, fail, tell
        self._models = dict(served.models)
        self._seen = {served.digest}
        self._good = time.time()
        self._members = 0

    @contextlib.asynccontextmanager
    async def watching(self) -> AsyncIterator[None]:
        """Watch inside the block; mode direct and endpoints that tell nothing of their models are not watched."""
        if not self._models:
            yield
            return
        # One client from the start: gRPC ends the program if it begins anew without a free file descriptor.
        async with self._make() as self._client:
            watching = asyncio.create_task(self._watch())
            watching.add_done_callback(self._ended)
            try:
                yield
            finally:
                watching.cancel()
                (fault,) = await asyncio.gather(watching, return_exceptions=True)
            if isinstance(fault, Exception) and not isinstance(fault, ExatrkxError):  # the run ends with the others
                raise fault

    async def _watch(self) -> None:
        looked = time.monotonic()
        while True:
            await asyncio.sleep(min(_TICK, EVERY))
            members = len(self._accounts.members)
            if members > self._members or time.monotonic() - looked >= EVERY:
                await self.look()
                looked, self._members = time.monotonic(), members

    def _ended(self, watching: asyncio.Task[None]) -> None:
        """End the run with the error that ended the watch: further results would not be watched."""
        if not watching.cancelled() and (fault := watching.exception()) is not None:
            self._fail(fault if isinstance(fault, ExatrkxError) else ExatrkxError(f"cannot watch the models: {fault}"))

    async def look(self) -> None:
        """Ask once; end the run, or record the change, if the models are others. No answer is no change."""
        if self._client is None:
            return
        began = time.time()
        served = await self._client.served()
        said = changes(self._models, served.models)
        if not said:
            self._good = began if served.models else self._good
            return
        if not self._accounts.accept_model_change:
            again = self._accounts.take_back(self._good)
            self._fail(
                OutputError(
                    f"the models of {self._client.server} changed during the run: {said}; {again} results since the "
                    "last look are taken back; serve one state of the models, or go on and record both with "
                    "--accept-model-change"
                )
            )
            return
        if served.digest not in self._seen:  # servers of both states may answer in turn
            self._tell(ModelsChanged(server=self._client.server, changes=said))
        self._seen.add(served.digest)
        self._models, self._good = dict(served.models), began
        self._accounts.serve(served)
