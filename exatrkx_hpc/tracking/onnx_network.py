"""Run a network of an ONNX file with onnxruntime, which is imported when a network is loaded."""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.devices import NoDevice
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Features
from exatrkx_hpc.tracking.signatures import sample_of
from exatrkx_hpc.tracking.tensors import BadTensor

#: The file of a network in the version folder of its model, where it is ONNX.
ONNX_WEIGHT = "model.onnx"
#: How the text begins that Git LFS leaves in the place of a file; this room imports nothing of the rest.
LFS_POINTER = b"version https://git-lfs"
#: What onnxruntime begins its messages with, and where in its own sources it noticed.
_NOISE = re.compile(
    r"Load model from .*? failed: ?|\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |/\S+\.(?:cc|cpp|h|cu):\d+ .*?\) (?=[A-Z])"
)
#: Nothing below what ends the process: an error is raised, and told in one line.
_FATAL_ONLY = 4
_KINDS = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(double)": "float64"}


class NoOnnxruntime(ImportError):
    """There is no onnxruntime in this Python, or one that cannot be imported."""


def looks_like_onnx(path: Path) -> bool:
    """Say whether a file's content begins as an ONNX model does: a protobuf message whose first field is its version.

    A file that cannot be read does not.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return False
    return len(start) == 2 and start[0] == 0x08 and 0 < start[1] < 0x80


def network_file(folder: Path) -> Path:
    """Return the file of a network in its version folder: `model.pt`, or `model.onnx` where only that is there."""
    onnx, torchscript = folder / ONNX_WEIGHT, folder / "model.pt"
    return onnx if onnx.is_file() and not torchscript.is_file() else torchscript


class OnnxNetwork:
    """A network that answers arrays with an array: hits float32 `[N, F]` and, of an edge network, edges int64 `[2, E]`.

    The answer is float32, a row for each hit (each edge) of `columns` further axes. No row needs no network: not every
    one can do that.
    """

    def __init__(self, session: Any, names: Sequence[str], columns: tuple[int, ...]) -> None:  # noqa: ANN401 - optional
        self._session = session
        self._names = tuple(names)
        self.columns = columns

    def __call__(self, *arrays: NDArray[Any]) -> NDArray[np.float32]:
        """Return the answer; raises RuntimeError, one line, for whatever onnxruntime raises, BadTensor for a shape."""
        rows = arrays[1].shape[1] if len(arrays) > 1 else len(arrays[0])
        if rows == 0:
            return np.empty((0, *self.columns), dtype=np.float32)
        answer = _answer(self._session, self._names, arrays)
        if answer.size != rows * math.prod(self.columns):
            raise BadTensor(f"the network gives {list(answer.shape)} for {rows} rows; expected {[rows, *self.columns]}")
        return answer.reshape(rows, *self.columns)


def load_onnx(
    path: Path, *, inputs: int, features: Features = DEFAULT_FEATURES, device: str = "cpu", threads: int = 1
) -> OnnxNetwork:
    """Return the network of an ONNX file, with one of `inputs` for the hits and, of two, one for the edges.

    It runs on `device` (`cpu`, `cuda`, `cuda:1`), on a CPU with so many `threads`. Hits have the columns of `features`.
    A sample is run at once. Raises NoOnnxruntime, and ValueError, one line, when the file cannot be read, is something
    else or does not fit, or when the device cannot be had (NoDevice).
    """
    if threads < 1:
        raise ValueError(f"threads is {threads}; use 1 or more")
    session = _session(path, device, threads)
    names = _input_names(path, session.get_inputs(), inputs, len(features))
    _check_output(path, session.get_outputs())
    sample = sample_of(features, inputs)
    rows = sample[-1].shape[1] if inputs > 1 else len(sample[0])
    try:
        answer = _answer(session, names, sample)
    except RuntimeError as error:
        raise ValueError(f"{path} fails on a sample of {_sizes(sample)}: {error}") from error
    if answer.ndim == 0 or len(answer) != rows:
        raise ValueError(f"{path} gives {list(answer.shape)} for {_sizes(sample)}; expected {rows} rows")
    return OnnxNetwork(session, names, answer.shape[1:])


def on_tensors(network: OnnxNetwork, device: str) -> Callable[..., Any]:
    """Return the network as a function of torch's tensors on `device`: they go through the memory of the CPU."""
    torch = importlib.import_module("torch")

    def call(*tensors: Any) -> Any:  # noqa: ANN401 - torch is optional
        return torch.from_numpy(network(*(tensor.cpu().numpy() for tensor in tensors))).to(device)

    return call


def _onnxruntime(device: str) -> Any:  # noqa: ANN401 - optional
    try:
        return importlib.import_module("onnxruntime")
    except Exception as error:  # one that does not fit its numpy raises more than ImportError
        package = "onnxruntime" if device == "cpu" else "onnxruntime-gpu"
        raise NoOnnxruntime(
            f"an ONNX network needs {package} ({_one_line(error)}); put it into the models' Python environment"
        ) from error


def _session(path: Path, device: str, threads: int) -> Any:  # noqa: ANN401 - optional
    _refuse_other_files(path)
    runtime = _onnxruntime(device)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Threads that wait by spinning take the cores of the other instances.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ONLY
    provider = _provider(runtime, device)
    try:
        session = runtime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # each kind of failure is a class of its own
        raise ValueError(f"{path} is not a usable ONNX file: {_one_line(error)}; {_help(error)}") from error
    # Where the libraries of CUDA are missing, onnxruntime would go on, on the CPU.
    if provider[0] not in session.get_providers():
        raise NoDevice(f"onnxruntime cannot use {device}: {provider[0]} did not start; check CUDA and cuDNN")
    session.disable_fallback()
    return session


def _provider(runtime: Any, device: str) -> tuple[str, dict[str, str]]:  # noqa: ANN401 - optional
    if device == "cpu":
        return "CPUExecutionProvider", {}
    if (provider := "CUDAExecutionProvider") not in (found := runtime.get_available_providers()):
        raise NoDevice(
            f"onnxruntime {runtime.__version__} has no {provider} for {device}, only {', '.join(found)}; install "
            "onnxruntime-gpu instead, or run on the CPU"
        )
    return provider, {"device_id": device.partition(":")[2] or "0"}


def _refuse_other_files(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not start:
        raise ValueError(f"{path} is empty; copy it again")
    if start == LFS_POINTER:
        raise ValueError(f"{path} is a Git LFS pointer, not the file itself; fetch its content with 'git lfs pull'")
    if not looks_like_onnx(path):
        raise ValueError(f"{path} is not an ONNX file; export the network as one")


def _help(error: Exception) -> str:
    said = str(error)
    if "xternal" in said or "Deserialize tensor" in said:
        return "its weights are in another file: export it as one file"
    if "No Op registered" in said or "not a registered" in said:
        return "export it with ONNX's own operators alone"
    if "version" in said or "opset" in said.lower():
        return "take a newer onnxruntime, or export it for an older opset"
    return "copy or export it again"


def _input_names(path: Path, given: Sequence[Any], wanted: int, columns: int) -> tuple[str, ...]:
    """Return the names of the inputs, hits first: they are told apart by their types. Raises ValueError, one line."""
    kinds = {"float32": f"hits float32 [N, {columns}]", "int64": "edges int64 [2, E]"}
    names = {_kind(one): one.name for one in given}
    if len(given) != wanted or set(names) != set(list(kinds)[:wanted]):
        found = ", ".join(f"{one.name} {_kind(one)} {_shape(one)}" for one in given) or "nothing"
        raise ValueError(f"{path} takes {found}; expected {' and '.join(list(kinds.values())[:wanted])}")
    for one in given:
        shape, size = list(one.shape), columns if _kind(one) == "float32" else 2
        # [] stands for a shape that the file does not tell: the sample will.
        fixed, free = (1, 0) if _kind(one) == "float32" else (0, 1)
        if shape and (len(shape) != 2 or (isinstance(shape[fixed], int) and shape[fixed] != size)):
            raise ValueError(f"{path} takes {one.name} as {_shape(one)}; expected {kinds[_kind(one)]}")
        if shape and isinstance(shape[free], int):
            what = "hits" if free == 0 else "edges"
            raise ValueError(
                f"{path} takes {shape[free]} {what} alone ({one.name}); export it with that size left free"
            )
    return tuple(names[kind] for kind in list(kinds)[:wanted])


def _check_output(path: Path, given: Sequence[Any]) -> None:
    if len(given) != 1 or _kind(given[0]) != "float32":
        found = ", ".join(f"{one.name} {_kind(one)} {_shape(one)}" for one in given) or "nothing"
        raise ValueError(f"{path} gives {found}; expected one tensor of float32")


def _kind(entry: Any) -> str:  # noqa: ANN401 - an onnxruntime.NodeArg
    return _KINDS.get(entry.type, str(entry.type))


def _shape(entry: Any) -> str:  # noqa: ANN401 - as above
    return f"[{', '.join(str(size) if size is not None else '?' for size in entry.shape)}]"


def _answer(session: Any, names: Sequence[str], arrays: Sequence[NDArray[Any]]) -> NDArray[np.float32]:  # noqa: ANN401
    try:
        given = {name: np.ascontiguousarray(array) for name, array in zip(names, arrays, strict=True)}
        answer: NDArray[np.float32] = session.run(None, given)[0]
    except Exception as error:  # whatever it is, it is this request's
        raise RuntimeError(_one_line(error)) from error
    return answer


def _sizes(sample: Sequence[NDArray[Any]]) -> str:
    hits = f"{len(sample[0])} hits"
    return hits if len(sample) == 1 else f"{hits} and {sample[1].shape[1]} edges"


def _one_line(error: Exception) -> str:
    said = _NOISE.sub("", " ".join(str(error).split())) or type(error).__name__
    return said[:300].rstrip(" .")
