"""Client of an endpoint: the tensors of an event in, the results out, with retries while servers come and go.

`deliver` gives an event to the endpoint once. `ask` delivers it again as often as `blame.py` allows; a run of clients
does that in its coordinator, which knows the failures of all workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from exatrkx_hpc.base.credentials import Credentials
from exatrkx_hpc.base.errors import ConfigError, EndpointError, ExatrkxError, ModelError
from exatrkx_hpc.base.readable import one_line
from exatrkx_hpc.work.inference.blame import Case, Decision, Judge, poisoned
from exatrkx_hpc.work.inference.channel import BadReply, Channel, Reply
from exatrkx_hpc.work.inference.credentials import NONE
from exatrkx_hpc.work.inference.ownership import NotOurs
from exatrkx_hpc.work.inference.retry import (
    PATIENCE,
    Cause,
    NoEntry,
    Patience,
    Poisoned,
    RequestFailed,
    explain,
    persist,
    refused,
    worth_repeating,
)
from exatrkx_hpc.work.inference.served import served_models
from exatrkx_hpc.work.results.models import Served
from exatrkx_hpc.work.workloads.base import Request, Tensors, Workload, check_outputs, single
from exatrkx_hpc.work.workloads.given import Given, as_tensors
from exatrkx_hpc.work.workloads.table import workload_of

if TYPE_CHECKING:
    from exatrkx_hpc.config.values import Mode


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The outputs of one event, the `seconds` they took including retries, and the number of `retries`.

    `member` is the server of the last answer, if the answer has it, and `version` the version of each model that
    answered, comma-separated, if all answers have it. `stages`
    has the seconds of each stage including retries, if the client requested the stages one by one.
    """

    outputs: Tensors
    seconds: float
    retries: int
    member: str = ""
    version: str = ""
    stages: Mapping[str, float] = field(default_factory=dict)


#: Causes that end a delivery with a question: whose fault was it?
_OPEN: Final = frozenset({Cause.TORN, Cause.DEADLINE, Cause.FAULT, Cause.REFUSED, Cause.DENIED})


#: The answers of a site that does not let clients ask for a model's metadata.
_FORBIDDEN: Final = frozenset({"PERMISSION_DENIED", "UNIMPLEMENTED"})


class Unanswered(Exception):
    """A delivery that a server or the endpoint did not answer well; `error` is what a user reads if it is the last."""

    def __init__(self, cause: Cause, error: ExatrkxError, *, member: str) -> None:
        super().__init__(cause, str(error))
        self.cause, self.error, self.member = cause, error, member


class Client:
    """An asynchronous client of one endpoint; use it within one event loop, and close it."""

    def __init__(
        self,
        server: str,
        *,
        workload: Workload | None = None,
        model: str = "",
        mode: Mode = "ensemble",
        request_timeout: float = 60.0,
        patience: float = PATIENCE,
        identity: str = "",
        credentials: Credentials = NONE,
    ) -> None:
        """Prepare a channel to `server` (`host:port`); send nothing yet.

        `identity` is whose endpoint it should be, `FARM/JOB/INSTANCE` of endpoint.json: another's gets no event, and
        its answers are refused. Empty accepts every endpoint. `credentials` are for an endpoint with a token
        or TLS.

        `workload` defines the tensors sent and received; by default, it is the workload that lists `model`, otherwise
        ExaTrkX. `mode` is `ensemble` (one request to `model`) or another mode of the workload, such as `stages` (one
        request per stage) or `fused` (one request to the fused model). `request_timeout` is the deadline of one
        attempt in seconds. `patience` is how long a failed request is retried, in seconds after its first failure; 0
        means no retry. Raises ConfigError for an invalid address or mode.
        """
        self.server = checked_address(server)
        self.workload = workload or workload_of(model)
        self._requests = self.workload.requests(mode, model)
        self.model = self.workload.models(mode, model)
        self._timeout = request_timeout
        self._patience = Patience(seconds=patience)
        self._channel = Channel(server, credentials, identity=identity)
        self._judge = Judge(patience=patience)
        self._gate = _Gate()
        self._asked = 0
        self._recognised = False

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the channel; requests in flight end with an error."""
        await self._channel.close()

    async def infer(self, event: Given) -> Any:  # noqa: ANN401 - an array, or a mapping of arrays
        """Return the result of one event: the output if the workload has one, else all outputs by name.

        `event` is an array if the workload has one input, else a mapping of input names to arrays. Raises InputError
        for an invalid event, EndpointError when there is no valid answer within the patience, ModelError when the
        model refuses the event or sends an invalid answer.
        """
        return single((await self.ask(as_tensors(self.workload, event))).outputs)

    async def find_tracks(self, hits: ArrayLike) -> NDArray[np.int64]:
        """Return the track label of each hit, int64 `[N]`, for hits `[N, 3]`; raises the errors of `infer`."""
        labels: NDArray[np.int64] = await self.infer(hits)
        return labels

    async def ask(self, inputs: Tensors) -> Answer:
        """Return the answer for inputs from `as_tensors` or a reader; raises the errors of `infer`.

        An event that may cost servers is given up after four strikes at the latest, the last ones alone.
        """
        begin, repeats = time.monotonic(), 0
        self._asked += 1
        case = Case(event=str(self._asked))
        while True:
            alone = case.alone
            try:
                async with self._gate.passed(alone=alone):
                    answer = await self.deliver(inputs)
            except Unanswered as unanswered:
                pause = self._pause(case, unanswered, alone=alone)
            else:
                self._judge.answered(case.event, answer.member)
                return replace(answer, seconds=time.monotonic() - begin, retries=answer.retries + repeats)
            repeats += 1
            await asyncio.sleep(pause)

    def _pause(self, case: Case, unanswered: Unanswered, *, alone: bool) -> float:
        """Return the seconds until the next delivery; raise the error of the last one if there is none."""
        error, patience = unanswered.error, self._patience.seconds
        verdict = self._judge.failed(case, unanswered.cause, unanswered.member, alone=alone)
        if verdict.decision is Decision.POISON:
            raise Poisoned(poisoned(case, str(error))) from unanswered
        late = case.since is not None and time.monotonic() - case.since + verdict.pause > patience
        if verdict.decision in {Decision.REFUSED, Decision.ENDPOINT} or late or unanswered.cause is Cause.DENIED:
            unsure = patience and unanswered.cause is Cause.REFUSED and verdict.decision is not Decision.REFUSED
            raise EndpointError(str(error)) if unsure else error
        return verdict.pause

    async def deliver(self, inputs: Tensors, *, retried: Callable[[str], None] = lambda reason: None) -> Answer:
        """Give an event to the endpoint once and return the answer.

        While no server takes the event, this retries within the patience; `retried` gets the reason each time. Raises
        Unanswered when a server had the event and did not answer well, EventTooLarge, EndpointError when no server
        took the event in time.
        """
        tensors = dict(inputs)
        begin, repeats = time.monotonic(), 0
        ends = [begin]
        versions: list[str] = []
        for request in await self._known(retried):
            reply, more = await self._send(request, tensors, retried)
            tensors |= self._outputs(request, reply)
            repeats += more
            versions.append(reply.version)
            ends.append(time.monotonic())
        outputs = {spec.name: np.array(tensors[spec.name]) for spec in self.workload.outputs}  # not views of a message
        try:
            check_outputs(self.workload, inputs, outputs, who=f"{request.model} at {self.server}")
        except ModelError as error:
            raise Unanswered(Cause.REFUSED, error, member=reply.member) from error
        seconds = time.monotonic() - begin
        return Answer(
            outputs=outputs,
            seconds=seconds,
            retries=repeats,
            member=reply.member,
            version=",".join(versions) if all(versions) else "",
            stages=self._stages(ends),
        )

    def _stages(self, ends: Sequence[float]) -> dict[str, float]:
        """Return the seconds of each stage; `ends` has the start of the first request, then the end of each request."""
        spent: dict[str, float] = {}
        for request, (start, end) in zip(self._requests, pairwise(ends), strict=True):
            if request.stage:
                spent[request.stage] = spent.get(request.stage, 0.0) + end - start
        return spent

    async def _send(self, request: Request, tensors: Tensors, retried: Callable[[str], None]) -> tuple[Reply, int]:
        """Return the reply to one request and the number of retries within the patience."""
        packed = request.pack(tensors) if request.pack is not None else tensors
        inputs = {name: packed[source] for name, source in request.inputs.items()}

        async def attempt() -> Reply:
            return await self._channel.infer(request.model, inputs, request.outputs, timeout=self._timeout)

        def again(failure: RequestFailed) -> None:
            retried(str(explain(failure, server=self.server, model=request.model)))

        try:
            return await persist(attempt, patience=self._patience, retried=again)
        except RequestFailed as failure:
            error = explain(failure, server=self.server, model=request.model)
            if failure.cause in _OPEN and not isinstance(error, NoEntry):
                raise Unanswered(failure.cause, error, member=failure.member) from failure
            raise error from failure
        except BadReply as bad:
            what = f"{', '.join(request.outputs)}: {one_line(str(bad))}"
            error = ModelError(f"{request.model} at {self.server} sent invalid {what}")
            raise Unanswered(Cause.REFUSED, error, member=bad.member) from bad

    def _outputs(self, request: Request, reply: Reply) -> Tensors:
        for name in request.outputs:
            if name not in reply.outputs:
                error = ModelError(f"{request.model} at {self.server} sent no {name}; see the server's log")
                raise Unanswered(Cause.REFUSED, error, member=reply.member)
        results = {result: reply.outputs[name] for name, result in request.outputs.items()}
        if request.unpack is None:
            return results
        try:
            return request.unpack(results)
        except ValueError as bad:
            error = ModelError(f"{request.model} at {self.server} sent an invalid result: {one_line(str(bad))}")
            raise Unanswered(Cause.REFUSED, error, member=reply.member) from bad

    async def _known(self, retried: Callable[[str], None]) -> tuple[Request, ...]:
        """Return the requests, for the tensors that the served models have."""
        if self.workload.recognise is not None and not self._recognised:

            async def attempt() -> None:
                try:
                    await self._recognise()
                except RequestFailed as failure:
                    if not worth_repeating(failure):
                        raise
                    # A server that was lost with this question has no event.
                    raise RequestFailed("UNAVAILABLE", failure.text, member=failure.member, sent=False) from failure

            def again(failure: RequestFailed) -> None:
                retried(str(explain(failure, server=self.server, model=self.model)))

            try:
                await persist(attempt, patience=self._patience, retried=again)
            except RequestFailed as failure:
                raise explain(failure, server=self.server, model=self.model) from failure
        return self._requests

    async def _recognise(self) -> None:
        """Choose the requests for the tensors that the served models have; keep them if a site forbids the question.

        Raises RequestFailed, and ModelError for a model that the workload does not know.
        """
        recognise = self.workload.recognise
        if recognise is not None:
            try:
                tensors = [await self._channel.tensors(one.model, timeout=5.0) for one in self._requests]
            except RequestFailed as failure:
                if failure.status not in _FORBIDDEN:
                    raise
            else:
                self._requests = tuple(recognise(*pair) for pair in zip(self._requests, tensors, strict=True))
        self._recognised = True

    async def check(self, deadline: float) -> None:
        """Return when the endpoint serves every model of the mode; wait at most `deadline` seconds.

        Raises EndpointError or ModelError; a refused connection, a model that is not ready, and one whose tensors the
        workload does not know fail at once.
        """
        until = time.monotonic() + deadline
        for request in self._requests:
            await self._check(request.model, until)
        try:
            await self._recognise()
        except RequestFailed as failure:
            raise self._unreachable(failure, self.model) from None

    async def _check(self, model: str, until: float) -> None:
        while True:
            try:
                if await self._channel.ready(model, timeout=max(0.1, until - time.monotonic())):
                    return
                break
            except NotOurs as stranger:
                raise EndpointError(stranger.message) from None
            except RequestFailed as failure:
                late = time.monotonic() + 0.2 > until
                if refused(failure) or late or not worth_repeating(failure):
                    raise self._unreachable(failure, model) from None
                await asyncio.sleep(0.2)
        raise ModelError(
            f"{model} is not ready at {self.server} ({await self._why_not(model)}); "
            "check the server's model repository and its log"
        )

    async def version(self) -> str:
        """Return the version of each model of the mode, comma-separated; empty if the server does not report it."""
        try:
            return ",".join([await self._channel.version(request.model, timeout=5.0) for request in self._requests])
        except RequestFailed:  # a site may restrict this call
            return ""

    async def served(self) -> Served:
        """Return what the endpoint serves: the versions, and the state of every model that the mode runs."""
        try:
            models = await served_models(self._channel, [request.model for request in self._requests], timeout=5.0)
        except RequestFailed:  # a site may restrict this call
            models = {}
        return Served(version=await self.version(), models=models)

    def _unreachable(self, failure: RequestFailed, model: str) -> ExatrkxError:
        if failure.status in {"UNIMPLEMENTED", "UNKNOWN", "INTERNAL"}:
            return EndpointError(
                f"{self.server} is not a Triton gRPC endpoint ({failure.status}: {failure.message}); "
                "set --server to the gRPC port"
            )
        return explain(failure, server=self.server, model=model)

    async def _why_not(self, model: str) -> str:
        """Return the server's reason why `model` is not ready, and the names of the ready models."""
        try:
            index = await self._channel.index(timeout=5.0)
        except RequestFailed:  # a site may restrict this call; the list is only a help
            return "ready: unknown"
        ready = sorted({name for name, state, _ in index if state == "READY"})
        reasons = [one_line(reason) for name, _, reason in index if name == model and reason]
        return "; ".join([*reasons, f"ready: {', '.join(ready) or 'none'}"])


class _Gate:
    """Lets deliveries through: many at a time, or one alone."""

    def __init__(self) -> None:
        self._inside = 0
        self._waiting = 0  # deliveries that must be alone; others wait for them
        self._alone = False
        self._changed = asyncio.Condition()

    @contextlib.asynccontextmanager
    async def passed(self, *, alone: bool) -> AsyncIterator[None]:
        async with self._changed:
            self._waiting += alone
            try:
                await self._changed.wait_for(lambda: not self._alone and not (self._inside if alone else self._waiting))
            finally:
                self._waiting -= alone
            self._inside += 1
            self._alone = alone
        try:
            yield
        finally:
            async with self._changed:
                self._inside -= 1
                self._alone = False
                self._changed.notify_all()


def check_endpoint(server: str, model: str = "", deadline: float = 10.0, *, credentials: Credentials = NONE) -> None:
    """Return when `server` (`host:port`) serves `model`; wait at most `deadline` seconds.

    Raises EndpointError when there is no valid answer, ModelError when the model is not loaded, ConfigError for an
    invalid address. Inside an event loop, use `await Client(...).check(deadline)` instead.
    """

    async def check() -> None:
        async with Client(server, model=model, credentials=credentials) as client:
            await client.check(deadline)

    asyncio.run(check())


#: A label of a host name has at most 63 characters (RFC 1123); an IPv6 address is in brackets.
_ADDRESS: Final = re.compile(
    r"(?P<host>[\w-]{1,63}(?:\.[\w-]{1,63})*\.?|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})", re.ASCII
)


def checked_address(server: str) -> str:
    """Return `server` if it is HOST:PORT; raise ConfigError otherwise."""
    found = _ADDRESS.fullmatch(server)
    if not found or not 0 < int(found["port"]) < 65536:
        raise ConfigError(f"--server must be HOST:PORT, such as 127.0.0.1:9191, not {server!r}")
    return server
