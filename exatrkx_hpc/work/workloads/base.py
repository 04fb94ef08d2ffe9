"""A workload as one frozen value: its tensors, the requests of each mode, its checks and its counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.base.errors import ConfigError, ModelError

Array: TypeAlias = NDArray[Any]
Tensors: TypeAlias = Mapping[str, Array]
"""Arrays by the names that a workload gives them, such as `hits`; not by a model's tensor names."""

Parser: TypeAlias = Callable[[Path, bytes], Tensors]
"""Reads the inputs of one event from the bytes of a file; raises InputError with file and line."""

Infer: TypeAlias = Callable[[Tensors], Tensors]
"""Turns the inputs of one event into its outputs."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a workload.

    `shape` has a number for an axis of fixed size and a name for one that differs from event to event; the same name
    is the same size in every tensor of an event. `columns` names the second axis as files do, and `units` says in
    words what the values are.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    columns: tuple[str, ...] = ()
    units: str = ""

    @property
    def shown(self) -> str:
        """Type and shape as people write them: `float32 [hits, 3]`."""
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of a mode.

    `inputs` maps the model's tensor names to what they hold: an input of the workload, or a result of a request
    before. `outputs` maps the model's tensor names to the names of what they give. `stage` is what its time counts for,
    where a mode has several requests.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    stage: str = ""


class Sampler(Protocol):
    """Looks at the first events of a dataset, to tell whether they are what the service takes."""

    @property
    def full(self) -> bool:
        """Whether it has enough."""
        ...

    def add(self, inputs: Tensors) -> None:
        """Take an event."""
        ...

    def doubt(self) -> str:
        """Return in a line what is doubtful and what to do about it; nothing where nothing is."""
        ...


def _nothing(*_: Tensors) -> None:
    return None


def _no_counts(_: Tensors) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A kind of event.

    `item` is what an event counts, in the plural (`hits`): the axis of that name. `modes` has the requests of each
    mode that asks a server, in order; `{model}` in the name of a model stands for the one that the user chose, which
    is `model` by default. `also` are other names of models of this workload. `in_process` gives a function that does
    the same without a server, from the path of a model repository; without it the mode `direct` does not exist.

    Events are read from files with named columns (CSV with a header, `.npz`, Parquet), or as `parsers` do, by how the
    files end; Parquet has the `columns` of the inputs.

    `check` raises InputError for inputs of the right type and shape that the service cannot use. `agree` raises
    ModelError for outputs that do not fit the inputs, beyond what the names of the axes say. `counts` says what to
    add up over all events (`tracks`). `sampler` looks at the first events, such as for wrong units, and makes warnings.

    Results are in the folder `folder`, one file an event, which ends with `suffix`: `encode` gives its bytes and
    `decode` reads them again, or raises InputError with the place. `sample` makes the inputs of a small event, for
    `exatrkx-hpc workload check`.
    """

    name: str
    item: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    model: str
    modes: Mapping[str, tuple[Request, ...]]
    encode: Callable[[Tensors], bytes]
    decode: Callable[[Path, bytes], Tensors]
    suffix: str
    also: tuple[str, ...] = ()
    folder: str = "results"
    check: Callable[[Tensors], None] = _nothing
    agree: Callable[[Tensors, Tensors], None] = _nothing
    counts: Callable[[Tensors], Mapping[str, int]] = _no_counts
    in_process: Callable[[Path], Infer] | None = None
    in_process_models: str = ""
    parsers: Mapping[str, Parser] = field(default_factory=dict)
    sampler: Callable[[], Sampler] | None = None
    sample: Callable[[np.random.Generator], Tensors] | None = field(default=None)

    def requests(self, mode: str, model: str = "") -> tuple[Request, ...]:
        """Return the requests of a mode, in order; `model` replaces the default one.

        Raises ConfigError for a mode that this workload does not have, and for `direct`, which asks nothing.
        """
        if mode == DIRECT and self.in_process is not None:
            raise ConfigError("mode direct needs no endpoint; use 'exatrkx-hpc run-clients --mode direct'")
        if mode not in self.modes:
            raise ConfigError(f"mode is {mode!r}; workload {self.name} has {_listed(self.mode_names)}")
        chosen = model or self.model
        return tuple(replace(one, model=one.model.format(model=chosen)) for one in self.modes[mode])

    @property
    def mode_names(self) -> tuple[str, ...]:
        """The modes that there are, `direct` included where it is one."""
        return (*self.modes, *((DIRECT,) if self.in_process is not None else ()))

    def stages(self, mode: str) -> tuple[str, ...]:
        """Return the names of a mode's stages, in order; none where it asks once, or no server."""
        return tuple(dict.fromkeys(one.stage for one in self.modes.get(mode, ()) if one.stage))

    def models(self, mode: str, model: str = "") -> str:
        """Return the names of the models that a mode runs, in order, for a message or a report."""
        if mode == DIRECT and self.in_process is not None:
            return self.in_process_models
        return ", ".join(request.model for request in self.requests(mode, model))

    def items(self, inputs: Tensors) -> int:
        """Return how many items an event has."""
        for tensor in self.inputs:
            if self.item in tensor.shape:
                return int(inputs[tensor.name].shape[tensor.shape.index(self.item)])
        return 1


DIRECT: Final = "direct"
"""The mode that asks no server."""


def _listed(names: tuple[str, ...]) -> str:
    *some, last = names
    return f"{', '.join(some)} or {last}" if some else last


def single(tensors: Tensors) -> Any:  # noqa: ANN401 - an array, or a mapping of arrays
    """Return the one tensor of a mapping that has one, else the mapping: what a person expects back."""
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def sizes_of(specs: tuple[Tensor, ...], tensors: Tensors, known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the size of each named axis; raises ValueError, one line, for a tensor that has another type or shape.

    `known` are sizes that are fixed already, such as those of the inputs.
    """
    sizes = dict(known or {})
    for spec in specs:
        array = tensors[spec.name]
        fits = str(array.dtype) == spec.dtype and array.ndim == len(spec.shape)
        for axis, size in zip(spec.shape, array.shape, strict=False):
            fits = fits and size == (axis if isinstance(axis, int) else sizes.setdefault(axis, size))
        if not fits:
            shape = ", ".join(str(sizes.get(axis, axis)) if isinstance(axis, str) else str(axis) for axis in spec.shape)
            raise ValueError(f"{spec.name} {array.dtype} {list(array.shape)}, not {spec.dtype} [{shape}]")
    return sizes


def check_outputs(workload: Workload, inputs: Tensors, outputs: Tensors, *, who: str) -> None:
    """Raise ModelError for outputs that are not of the workload, or do not fit the inputs; `who` sent them."""
    known = sizes_of(workload.inputs, inputs)
    try:
        sizes_of(workload.outputs, outputs, known)
    except ValueError as error:
        item = f"{workload.items(inputs)} {workload.item}"
        raise ModelError(f"{who} sent {error}, for {item}") from error
    workload.agree(inputs, outputs)
