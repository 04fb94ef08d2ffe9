"""Check a workload: names, types, sample, stored results and, with a server, its answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tritonclient.utils import np_to_triton_dtype

from exatrkx_hpc.base.credentials import Credentials
from exatrkx_hpc.base.errors import ExatrkxError
from exatrkx_hpc.work.inference.client import Client
from exatrkx_hpc.work.inference.credentials import NONE
from exatrkx_hpc.work.workloads.base import Array, Tensor, Tensors, Workload, sizes_of
from exatrkx_hpc.work.workloads.given import as_tensors

#: Sizes of named axes for the check that a result is read back unchanged.
_SIZES = (0, 1, 5)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One check of a workload: `what` was checked, and its `fault`, empty if the check passed."""

    what: str
    fault: str = ""


def check_workload(
    workload: Workload, *, server: str = "", identity: str = "", credentials: Credentials = NONE
) -> tuple[Check, ...]:
    """Check a workload; if all checks pass and `server` (`host:port`) is set, also send the sample to it.

    `identity` is whose endpoint the server must be, see `Client`.
    """
    settings: dict[str, Any] = {"identity": identity, "credentials": credentials}
    checks = [
        _checked("tensor names and request names match", lambda: _names(workload)),
        _checked("Triton and numpy know the tensor types", lambda: _types(workload)),
        _checked("the sample is a valid event", lambda: _sample(workload)),
        _checked("a result is read back unchanged", lambda: _results(workload)),
    ]
    if server and not any(check.fault for check in checks):
        checks.append(
            _checked(
                f"{server} answers the sample with the declared outputs", lambda: _asked(workload, server, settings)
            )
        )
    return tuple(checks)


def _checked(what: str, faults: Callable[[], Iterator[str]]) -> Check:
    try:
        return Check(what=what, fault="; ".join(faults()))
    except ExatrkxError as error:
        return Check(what=what, fault=str(error))
    except Exception as error:  # a workload's own functions may raise anything
        return Check(what=what, fault=f"{type(error).__name__}: {' '.join(str(error).split())}")


def _names(workload: Workload) -> Iterator[str]:
    inputs, outputs = ([spec.name for spec in specs] for specs in (workload.inputs, workload.outputs))
    for name in {name for name in (*inputs, *outputs) if (*inputs, *outputs).count(name) > 1}:
        yield f"two tensors are named {name}"
    if not any(workload.item in spec.shape for spec in workload.inputs):
        yield f"no input has the axis {workload.item}, which the workload counts"
    if not workload.suffix.startswith(".") or "/" in workload.folder:
        yield f"results would be in {workload.folder}/EVENT{workload.suffix}; use a plain folder name and a suffix"
    for mode, requests in workload.modes.items():
        known = set(inputs)
        for request in requests:
            for tensor, source in request.inputs.items():
                if source not in known and request.pack is None:
                    yield f"mode {mode}: {request.model} needs {tensor} from {source!r}, which nothing provides"
            known |= set(request.outputs.values() if request.unpack is None else outputs)
        for name in outputs:
            if name not in known:
                yield f"mode {mode} returns no {name}"
    if not workload.modes:
        yield "the workload has no mode"


def _types(workload: Workload) -> Iterator[str]:
    for spec in (*workload.inputs, *workload.outputs):
        if np_to_triton_dtype(np.dtype(spec.dtype)) is None:
            yield f"{spec.name} is {spec.dtype}, which Triton does not support"
        fixed = spec.shape[1] if len(spec.shape) == 2 else 1
        if spec.columns and fixed != len(spec.columns):
            yield f"{spec.name} names {len(spec.columns)} columns for the shape {list(spec.shape)}"


def _sample(workload: Workload) -> Iterator[str]:
    if workload.sample is None:
        yield "the workload has no sample; add a function that returns the inputs of a small event"
        return
    inputs = as_tensors(workload, workload.sample(np.random.default_rng(1)))
    if workload.items(inputs) < 1:
        yield f"the sample has no {workload.item}"


def _results(workload: Workload) -> Iterator[str]:
    for size in _SIZES:
        outputs = {spec.name: _filled(spec, size) for spec in workload.outputs}
        read = workload.decode(Path(f"EVENT{workload.suffix}"), workload.encode(outputs))
        for name, array in outputs.items():
            if name not in read or not _same(read[name], array):
                yield f"{name} of {size} rows differs from what was written"
        for name, number in workload.counts(outputs).items():
            if not isinstance(number, int):
                yield f"the count {name} is {type(number).__name__}; expected an integer"


def _filled(spec: Tensor, size: int) -> Array:
    shape = [axis if isinstance(axis, int) else size for axis in spec.shape]
    whole: Array = np.arange(int(np.prod(shape))).reshape(shape).astype(spec.dtype)
    return whole


def _same(one: Array, other: Array) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and bool((one == other).all())


def _asked(workload: Workload, server: str, settings: dict[str, Any]) -> Iterator[str]:
    if workload.sample is None:
        return
    inputs = as_tensors(workload, workload.sample(np.random.default_rng(1)))
    outputs = asyncio.run(_ask(workload, server, inputs, settings))
    sizes_of(workload.outputs, outputs, sizes_of(workload.inputs, inputs))
    yield from ()


async def _ask(workload: Workload, server: str, inputs: Tensors, settings: dict[str, Any]) -> Tensors:
    mode: Any = next(iter(workload.modes))
    async with Client(server, workload=workload, mode=mode, **settings) as client:
        await client.check(10.0)
        return (await client.ask(inputs)).outputs
