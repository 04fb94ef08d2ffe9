"""Definition of a workload: its tensors, the requests of each mode, its checks and its counts."""

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
"""Arrays by the workload's names, such as `hits`, not by the model's tensor names."""

Parser: TypeAlias = Callable[[Path, bytes], Tensors]
"""Reads the inputs of one event from the bytes of a file; raises InputError with file and line."""

Infer: TypeAlias = Callable[[Tensors], Tensors]
"""Turns the inputs of one event into its outputs."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One tensor of a workload.

    `shape` has a number for an axis of fixed size and a name for an axis whose size differs between events; axes with
    the same name have the same size in all tensors of an event. `columns` names the columns of event files: one per
    index of the second axis, or one for a tensor with one axis. `units` describes the values.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    columns: tuple[str, ...] = ()
    units: str = ""

    @property
    def shown(self) -> str:
        """Type and shape for messages: `float32 [hits, 3]`."""
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True, kw_only=True)
class Request:
    """One request of a mode.

    `inputs` maps the model's tensor names to their sources: inputs of the workload or results of earlier requests.
    `outputs` maps the model's tensor names to the names of their results. `stage` is the stage whose time includes this
    request, in a mode with several requests.

    A model may take other tensors than the workload has: then `pack` makes the sources that `inputs` names, and raises
    InputError for an event that they cannot hold; `unpack` makes results of the workload from those that `outputs`
    names, and raises ValueError for an invalid answer.
    """

    model: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    stage: str = ""
    pack: Callable[[Tensors], Tensors] | None = None
    unpack: Callable[[Tensors], Tensors] | None = None


@dataclass(frozen=True, kw_only=True)
class ModelTensors:
    """The tensors of a served model by its metadata: type and shape by name, such as `FP32 [-1, 2]`."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class Sampler(Protocol):
    """Checks the first events of a dataset for wrong units and similar doubts."""

    @property
    def full(self) -> bool:
        """Whether the sample is complete."""
        ...

    def add(self, inputs: Tensors) -> None:
        """Add the inputs of one event."""
        ...

    def doubt(self) -> str:
        """Return one line with the doubt and the remedy; empty without a doubt."""
        ...


#: Bytes in a file name, on every file system of a Linux machine; and in the random end of a temporary name.
_NAME_MAX: Final = 255
_RANDOM: Final = 8


def _nothing(*_: Tensors) -> None:
    return None


def _no_counts(_: Tensors) -> Mapping[str, int]:
    return {}


@dataclass(frozen=True, kw_only=True)
class Workload:
    """A kind of event.

    `item` is the unit that is counted in an event, in the plural (`hits`); it names an axis. `modes` has the requests
    of each mode that uses a server, in order; in their model names, `{model}` stands for the model that the user
    chose, by default `model`. `also` lists other models of this workload. `in_process` takes the path of a model
    repository and returns a function that does the same without a server; without it, there is no mode `direct`.

    Event files have named columns (CSV with a header, `.npz`, Parquet). `parsers`, by file suffix, replace CSV and
    `.npz`; Parquet always has the `columns` of the inputs.

    `check` raises InputError for inputs of the right type and shape that the service cannot use. `agree` raises
    ModelError for outputs that do not fit the inputs, in addition to the check of named axes. `counts` returns numbers
    to sum over all events (`tracks`). `sampler` checks the first events and warns, such as about wrong units.

    Results are in the folder `folder`, one file per event, with the suffix `suffix`. `encode` returns the bytes of the
    file; `decode` reads them, or raises InputError with the location. `sample` returns the inputs of a small event,
    for `exatrkx-hpc workload check`.

    If services take the events in different tensors, `recognise` returns the request for the tensors of the served
    model; it raises ModelError for a model that it does not know. With `stem`, the name of an event file ends with it
    before its suffix (`NAME-cells.csv`), and other files of this suffix are no events; Parquet files have any name.

    In Parquet, a result is one row, unless `rows` names an axis of the outputs: then each index of this axis is a row.
    The output `lengths` has the number of entries of each row on the other axis of the outputs.
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
    recognise: Callable[[Request, ModelTensors], Request] | None = None
    stem: str = ""
    rows: str = ""
    lengths: str = ""

    @property
    def longest_name(self) -> int:
        """The most bytes in the name of an event.

        Its result, its part and its quarantine note are named after it, and each is first written under a longer,
        temporary name (`base.files.write_whole`).
        """
        added = max(len(f"part-.{self.folder}.parquet".encode()), len(self.suffix.encode()), len(".json"))
        return _NAME_MAX - added - len("..") - _RANDOM

    def requests(self, mode: str, model: str = "") -> tuple[Request, ...]:
        """Return the requests of a mode, in order; `model` replaces the default model.

        Raises ConfigError for an unknown mode and for `direct`, which sends no requests.
        """
        if mode == DIRECT and self.in_process is not None:
            raise ConfigError("mode direct needs no endpoint; use 'exatrkx-hpc run-clients --mode direct'")
        if mode not in self.modes:
            raise ConfigError(f"mode is {mode!r}; workload {self.name} has {_listed(self.mode_names)}")
        chosen = model or self.model
        return tuple(replace(one, model=one.model.format(model=chosen)) for one in self.modes[mode])

    @property
    def mode_names(self) -> tuple[str, ...]:
        """The names of all modes, including `direct` if the workload has it."""
        return (*self.modes, *((DIRECT,) if self.in_process is not None else ()))

    def stages(self, mode: str) -> tuple[str, ...]:
        """Return the names of a mode's stages, in order; empty for a single request or mode `direct`."""
        return tuple(dict.fromkeys(one.stage for one in self.modes.get(mode, ()) if one.stage))

    def models(self, mode: str, model: str = "") -> str:
        """Return the names of the models that a mode runs, in order, as one text for messages and reports."""
        if mode == DIRECT and self.in_process is not None:
            return self.in_process_models
        return ", ".join(request.model for request in self.requests(mode, model))

    def items(self, inputs: Tensors) -> int:
        """Return the number of items in an event; 1 if no input has the item's axis."""
        for tensor in self.inputs:
            if self.item in tensor.shape:
                return int(inputs[tensor.name].shape[tensor.shape.index(self.item)])
        return 1


DIRECT: Final = "direct"
"""The mode without a server."""


def _listed(names: tuple[str, ...]) -> str:
    *some, last = names
    return f"{', '.join(some)} or {last}" if some else last


def single(tensors: Tensors) -> Any:  # noqa: ANN401 - an array, or a mapping of arrays
    """Return the tensor of a mapping with only one, else the mapping."""
    return next(iter(tensors.values())) if len(tensors) == 1 else tensors


def sizes_of(specs: tuple[Tensor, ...], tensors: Tensors, known: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return the size of each named axis; raises ValueError, one line, for a tensor of another type or shape.

    `known` has sizes that are already fixed, such as those of the inputs.
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
    """Raise ModelError for outputs of wrong type or shape, or that do not fit the inputs; `who` sent them."""
    known = sizes_of(workload.inputs, inputs)
    try:
        sizes_of(workload.outputs, outputs, known)
    except ValueError as error:
        item = f"{workload.items(inputs)} {workload.item}"
        raise ModelError(f"{who} sent {error}, for {item}") from error
    workload.agree(inputs, outputs)
