"""Run an ONNX network with onnxruntime, which is imported when a network is loaded."""

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

#: The file name of an ONNX network in the version folder of its model.
ONNX_WEIGHT = "model.onnx"
#: Start of a Git LFS pointer file. Defined here again, because `tracking` imports no other part of the package.
LFS_POINTER = b"version https://git-lfs"
#: Prefixes of onnxruntime's messages, and locations in its source code.
_NOISE = re.compile(
    r"Load model from .*? failed: ?|\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : |/\S+\.(?:cc|cpp|h|cu):\d+ .*?\) (?=[A-Z])"
)
#: Log level of onnxruntime: fatal errors only, because other errors are raised and reported in one line.
_FATAL_ONLY = 4
_KINDS = {"tensor(float)": "float32", "tensor(int64)": "int64", "tensor(double)": "float64"}


class NoOnnxruntime(ImportError):
    """The Python environment has no onnxruntime, or cannot import it."""


def looks_like_onnx(path: Path) -> bool:
    """Return whether a file begins like an ONNX model: a protobuf message whose first field is its version.

    Returns False for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError:
        return False
    return len(start) == 2 and start[0] == 0x08 and 0 < start[1] < 0x80


def network_file(folder: Path) -> Path:
    """Return the file of a network in its version folder: `model.pt`, or `model.onnx` if only that exists."""
    onnx, torchscript = folder / ONNX_WEIGHT, folder / "model.pt"
    return onnx if onnx.is_file() and not torchscript.is_file() else torchscript


class OnnxNetwork:
    """An ONNX network on NumPy arrays: hits float32 `[N, F]` and, for an edge network, edges int64 `[2, E]`.

    The output is float32, one row per hit (per edge), with the further axes `columns`. Input without rows skips the
    network, because some networks fail on it.
    """

    def __init__(self, session: Any, names: Sequence[str], columns: tuple[int, ...]) -> None:  # noqa: ANN401 - optional
        self._session = session
        self._names = tuple(names)
        self.columns = columns

    def __call__(self, *arrays: NDArray[Any]) -> NDArray[np.float32]:
        """Return the output; raises RuntimeError, one line, for errors of onnxruntime, BadTensor for a wrong shape."""
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
    """Return the network of an ONNX file with 1 or 2 `inputs`: hits and, for an edge network, edges.

    The network runs on `device` (`cpu`, `cuda`, `cuda:1`), on a CPU with `threads` threads. Hits have the columns of
    `features`. A sample is run immediately. Raises NoOnnxruntime; ValueError, one line, when the file cannot be read,
    has another format or does not fit; NoDevice (a ValueError) when the device is not available.
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
    """Return the network as a function of torch tensors on `device`; the data passes through CPU memory."""
    torch = importlib.import_module("torch")

    def call(*tensors: Any) -> Any:  # noqa: ANN401 - torch is optional
        return torch.from_numpy(network(*(tensor.cpu().numpy() for tensor in tensors))).to(device)

    return call


def _onnxruntime(device: str) -> Any:  # noqa: ANN401 - optional
    try:
        return importlib.import_module("onnxruntime")
    except Exception as error:  # with the wrong numpy, it raises more than ImportError
        package = "onnxruntime" if device == "cpu" else "onnxruntime-gpu"
        raise NoOnnxruntime(
            f"an ONNX network needs {package} ({_one_line(error)}); put it into the models' Python environment"
        ) from error


def _session(path: Path, device: str, threads: int) -> Any:  # noqa: ANN401 - optional
    _refuse_other_files(path)
    runtime = _onnxruntime(device)
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    # Spinning threads would take the cores of the other instances.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _FATAL_ONLY
    provider = _provider(runtime, device)
    try:
        session = runtime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime has one class per kind of failure
        raise ValueError(f"{path} is not a usable ONNX file: {_one_line(error)}; {_help(error)}") from error
    # Without the CUDA libraries, onnxruntime would fall back to the CPU.
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
    """Return the names of the inputs, hits first; their types tell them apart. Raises ValueError, one line."""
    kinds = {"float32": f"hits float32 [N, {columns}]", "int64": "edges int64 [2, E]"}
    names = {_kind(one): one.name for one in given}
    if len(given) != wanted or set(names) != set(list(kinds)[:wanted]):
        found = ", ".join(f"{one.name} {_kind(one)} {_shape(one)}" for one in given) or "nothing"
        raise ValueError(f"{path} takes {found}; expected {' and '.join(list(kinds.values())[:wanted])}")
    for one in given:
        shape, size = list(one.shape), columns if _kind(one) == "float32" else 2
        # [] means that the file does not state the shape; the sample run checks it.
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
    except Exception as error:  # any error concerns only this request
        raise RuntimeError(_one_line(error)) from error
    return answer


def _sizes(sample: Sequence[NDArray[Any]]) -> str:
    hits = f"{len(sample[0])} hits"
    return hits if len(sample) == 1 else f"{hits} and {sample[1].shape[1]} edges"


def _one_line(error: Exception) -> str:
    said = _NOISE.sub("", " ".join(str(error).split())) or type(error).__name__
    return said[:300].rstrip(" .")
