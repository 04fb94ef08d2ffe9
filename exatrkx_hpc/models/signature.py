"""Check that a TorchScript or ONNX file is the expected network: run it on a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.models.network_file import is_onnx, load_network_file
from exatrkx_hpc.models.torchscript import reason
from exatrkx_hpc.tracking.constants import Float32, Int64
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Features, features_of
from exatrkx_hpc.tracking.simulation.synthetic import generate_event

_OUTPUT = "OUTPUT__0"
#: The smallest events: numbers of hits and of edges.
_SMALL = {"embed": ((0, 0), (1, 0), (2, 0)), "filter": ((0, 0), (1, 0), (2, 0), (2, 1))}


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Result of checking a network on a sample: its file, the file's SHA-256, its output's dims, and warnings.

    `dims` is `(-1, D)` for an embedding, `(-1,)` or `(-1, 1)` for an edge network. `notes` are warnings about small
    events that fail and about invalid edges. `onnx` says whether the file is ONNX instead of TorchScript.
    """

    model: str
    file: Path
    sha256: str
    dims: tuple[int, ...]
    notes: tuple[str, ...]
    onnx: bool = False


def check_network(model: str, file: Path, features: Features = DEFAULT_FEATURES) -> Signature:
    """Return the signature of the network in `file` as `model`, which is embed, filter or gnn.

    The network must take hits (float32 `[N, F]`) and, if it is an edge network, edges (int64 `[2, E]`). It must return
    finite float32 numbers: `[N, D]` for an embedding, `[E]` or `[E, 1]` for an edge network. Otherwise raises
    ModelError, which names model, file, tensor and the expected tensor. Raises MissingComponent without PyTorch or, for
    an ONNX file, onnxruntime.
    """
    network, onnx = load_network_file(model, file, features=features), is_onnx(file)
    if not onnx:
        _check_arguments(model, file, network, columns=len(features))
    hits, edges = _sample(features)
    answer = _ask(model, file, network, hits, edges)
    rows = len(hits) if model == "embed" else edges.shape[1]
    fault = _fault(model, answer, rows)
    if fault:
        raise ModelError(f"{model}: {file}: {fault}; choose another file")
    dims = (-1, *answer.shape[1:])
    return Signature(
        model=model,
        file=file,
        sha256=hashlib.sha256(file.read_bytes()).hexdigest(),
        dims=dims,
        notes=tuple(_notes(model, file, network, dims, hits)),
        onnx=onnx,
    )


def _sample(features: Features) -> tuple[Float32, Int64]:
    """Return hits `[N, F]` of a synthetic event and edges `[2, E]` between them, the larger hit number first."""
    rng = np.random.default_rng(0)
    hits, _ = features_of(generate_event(rng, n_tracks=20).hits, features)
    pairs = rng.integers(len(hits), size=(2, 3 * len(hits)))
    return hits, np.stack([pairs.max(axis=0), pairs.min(axis=0)])[:, pairs[0] != pairs[1]]


def _inputs(number: int, columns: int) -> str:
    return " and ".join((f"INPUT__0 float32 [N, {columns}]", "INPUT__1 int64 [2, E]")[:number])


def _check_arguments(model: str, file: Path, network: Any, *, columns: int) -> None:  # noqa: ANN401 - a TorchScript module
    wanted = 1 if model == "embed" else 2
    names = _inputs(wanted, columns)
    try:
        arguments = network.forward.schema.arguments[1:]
    except AttributeError as error:
        raise ModelError(f"{model}: {file} has no forward(); save a module that takes {names}") from error
    needed = sum(not argument.has_default_value() for argument in arguments)
    if not needed <= wanted <= len(arguments):
        swapped = "; are --embed and the other files swapped?" if {needed, wanted} == {1, 2} else ""
        taken = ", ".join(f"{argument.name}: {argument.type}" for argument in arguments)
        raise ModelError(f"{model}: {file} takes ({taken}); expected {names}{swapped or '; choose another file'}")


def _ask(model: str, file: Path, network: Any, hits: Float32, edges: Int64) -> Any:  # noqa: ANN401 - as above
    try:
        return _run(model, network, hits, edges)
    except _errors() as error:
        names = _inputs(1 if model == "embed" else 2, hits.shape[1])
        if "cuda" in str(getattr(network, "inlined_graph", "")):
            raise ModelError(
                f"{model}: {file} has a hard-coded GPU device, so it runs nowhere else ({reason(error)}); "
                "trace it again on the CPU, or script it"
            ) from error
        raise ModelError(f"{model}: {file} fails on {names}: {reason(error)}; choose another file") from error


def _run(model: str, network: Any, hits: Float32, edges: Int64) -> Any:  # noqa: ANN401 - as above
    import torch

    arrays = (hits,) if model == "embed" else (hits, edges)
    # Each sample runs once, so compiling would take longer than running.
    with torch.inference_mode(), torch.jit.optimized_execution(False):
        return network(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def _errors() -> tuple[type[Exception], ...]:
    """Return the errors that a TorchScript program may raise; a `raise` in the program is a torch.jit.Error."""
    import torch

    return (RuntimeError, ValueError, TypeError, IndexError, torch.jit.Error)


def _fault(model: str, answer: Any, rows: int) -> str:  # noqa: ANN401 - as above
    """Return the fault of a network's output for `rows` hits or edges, or ''."""
    import torch

    expected = f"float32 [{rows}, D]" if model == "embed" else f"float32 [{rows}] or [{rows}, 1]"
    if not isinstance(answer, torch.Tensor):
        return f"{_OUTPUT} is a {type(answer).__name__}; expected one tensor, {expected}"
    shape = tuple(answer.shape)
    found = f"{_OUTPUT} is {str(answer.dtype).removeprefix('torch.')} {list(shape)}; expected {expected}"
    right = len(shape) == 2 and shape[0] == rows and shape[1] > 0 if model == "embed" else shape in ((rows,), (rows, 1))
    if answer.dtype != torch.float32 or not right:
        return found
    if not torch.isfinite(answer).all():
        return f"{_OUTPUT} has a NaN or an infinity for a valid event; expected finite numbers"
    return ""


def _notes(
    model: str,
    file: Path,
    network: Any,  # noqa: ANN401 - as above
    dims: tuple[int, ...],
    hits: Float32,
) -> Iterator[str]:
    """Yield warnings about the smallest events that fail, and about edges to hits that do not exist."""
    for n_hits, n_edges in _SMALL.get(model, _SMALL["filter"]):
        edges = np.array([[1], [0]], dtype=np.int64)[:, :n_edges]
        rows = n_hits if model == "embed" else n_edges
        try:
            answer = _run(model, network, hits[:n_hits], edges)
        except _errors() as error:
            fault = reason(error)
        else:
            fault = _fault(model, answer, rows) or _other_shape(tuple(answer.shape), (rows, *dims[1:]))
        if fault:
            what = f"{n_hits} hit(s)" if model == "embed" else f"{n_hits} hit(s) and {n_edges} edge(s)"
            yield f"{model}: {file.name} fails for {what}, so such events may fail: {fault}"
    # OnnxStage checks the edges before onnxruntime gets them.
    if model != "embed" and not is_onnx(file) and not _minds_strange_edges(model, network, hits[:2]):
        yield (
            f"{model}: {file.name} does not return NaN for an edge of a hit that does not exist; sent directly to "
            "this model on a GPU, such an edge makes the GPU unusable for the whole server: let only the ensemble send "
            "it edges"
        )


def _minds_strange_edges(model: str, network: Any, hits: Float32) -> bool:  # noqa: ANN401 - as above
    """Return whether the network returns NaN for an edge to a hit that does not exist, instead of reading it."""
    import torch

    try:
        answer = _run(model, network, hits, np.array([[len(hits)], [0]], dtype=np.int64))
    except _errors():
        return False
    return isinstance(answer, torch.Tensor) and bool(torch.isnan(answer).all())


def _other_shape(found: tuple[int, ...], expected: tuple[int, ...]) -> str:
    return "" if found == expected else f"{_OUTPUT} is {list(found)}; expected {list(expected)}"
