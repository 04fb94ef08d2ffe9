"""Load a network from a TorchScript or ONNX file; the format is detected from the content."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from exatrkx_hpc.base.errors import MissingComponent, ModelError
from exatrkx_hpc.models.torchscript import load_torchscript
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Features
from exatrkx_hpc.tracking.onnx_network import NoOnnxruntime, OnnxNetwork, load_onnx, looks_like_onnx, on_tensors


def is_onnx(path: Path) -> bool:
    """Return whether a file is ONNX by its content, or by its name if it is not a TorchScript archive."""
    return looks_like_onnx(path) or (path.suffix == ".onnx" and not zipfile.is_zipfile(path))


def load_network_file(name: str, path: Path, *, features: Features = DEFAULT_FEATURES, evaluate: bool = True) -> Any:  # noqa: ANN401 - torch is optional
    """Return the network of a file as a function of torch tensors on the CPU; `name` is the model's name.

    `load_torchscript` loads TorchScript files. Raises ModelError when the file cannot be read, has another format or,
    for ONNX, does not fit the model; MissingComponent without PyTorch or onnxruntime.
    """
    if not is_onnx(path):
        return load_torchscript(name, path, evaluate=evaluate)
    if importlib.util.find_spec("torch") is None:
        raise MissingComponent("checking weights needs PyTorch; pip install 'exatrkx-hpc[train]'")
    try:
        network = _load_alone(path, inputs=1 if name == "embed" else 2, features=features)
    except NoOnnxruntime as error:
        what = str(error).partition(";")[0]
        raise MissingComponent(f"{name}: {path}: {what}; pip install 'exatrkx-hpc[onnx]'") from error
    except ValueError as error:
        raise ModelError(f"{name}: {error}") from error
    return on_tensors(network, "cpu")


def _load_alone(path: Path, *, inputs: int, features: Features) -> OnnxNetwork:
    """Load a copy of the file without the files beside it, because only the file goes into a repository."""
    if not path.is_file():
        return load_onnx(path, inputs=inputs, features=features)  # raises ValueError with the reason
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copyfile(path, Path(folder) / path.name))
        try:
            return load_onnx(copy, inputs=inputs, features=features)
        except ValueError as error:
            raise ValueError(str(error).replace(str(copy), str(path))) from error
