"""Try one server with the sample of a workload, to see whether it answers real inferences."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np

from exatrkx_hpc.base.credentials import Credentials
from exatrkx_hpc.base.errors import ConfigError, ExatrkxError
from exatrkx_hpc.config.schema import ClientsSection
from exatrkx_hpc.work.inference.client import Client, Unanswered
from exatrkx_hpc.work.inference.credentials import NONE
from exatrkx_hpc.work.inference.retry import UnknownModel
from exatrkx_hpc.work.workloads.base import DIRECT
from exatrkx_hpc.work.workloads.given import as_tensors
from exatrkx_hpc.work.workloads.table import workload_of


def trial_of(
    clients: ClientsSection, *, timeout: float, credentials: Credentials = NONE
) -> Callable[[str], str] | None:
    """Return a function that tries the server at a gRPC address, or None if the workload has no sample.

    The function sends the requests that the clients of this configuration send, each with `timeout` seconds, and checks
    the outputs. `credentials` has the key of the servers. The function returns what is wrong, in one line, or ''. A
    server that has not these models, or that refuses the key, cannot be tried: ''.
    """
    try:
        workload = workload_of(clients.model, default=clients.workload, folder=clients.workloads)
    except ConfigError:  # the clients will say so
        return None
    if workload.sample is None or clients.mode == DIRECT or clients.mode not in workload.modes:
        return None
    inputs = as_tensors(workload, workload.sample(np.random.default_rng(1)))

    def made(server: str) -> Client:
        return Client(
            server,
            workload=workload,
            model=clients.model,
            mode=clients.mode,
            request_timeout=timeout,
            patience=0.0,
            credentials=credentials,
        )

    async def ask(server: str) -> None:
        async with made(server) as client:
            await client.deliver(inputs)

    def trial(server: str) -> str:
        try:
            asyncio.run(ask(server))
        except Unanswered as unanswered:
            return _fault(unanswered.error)
        except ExatrkxError as error:
            return _fault(error)
        return ""

    return trial


def _fault(error: ExatrkxError) -> str:
    """Return the server's fault, or '' if the server has not the model or takes calls from the balancer alone."""
    beside = any(words in str(error) for words in ("its balancer alone", "refuses every request"))
    return "" if isinstance(error, UnknownModel) or beside else str(error)
