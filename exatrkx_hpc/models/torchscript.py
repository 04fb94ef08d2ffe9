"""Load a TorchScript file, or report what it is instead.

Only `torch.jit.load` reads the file. Unlike `torch.load`, it runs no pickled Python. A TorchScript file is still a
program: use files from trusted sources only.
"""

from __future__ import annotations

import warnings
import zipfile
from pathlib import Path
from typing import Any

from exatrkx_hpc.base.errors import MissingComponent, ModelError
from exatrkx_hpc.base.files import LFS_REMEDY, is_lfs_pointer

#: The member of a TorchScript archive that a checkpoint of torch.save lacks.
_PROGRAM = "constants.pkl"
_REMEDY = "make one with torch.jit.script(module.eval()).save(FILE)"


def load_torchscript(name: str, path: Path, *, evaluate: bool = True) -> Any:  # noqa: ANN401 - torch is optional
    """Load the network of a file to the CPU, whatever device it was saved on; `name` is the model's name.

    The network is in evaluation mode or, without `evaluate`, in the mode in which it was saved.

    Raises ModelError when the file cannot be read or is not TorchScript, MissingComponent without PyTorch.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingComponent(f"checking weights needs PyTorch ({error}); pip install 'exatrkx-hpc[train]'") from error
    _refuse_other_files(name, path)
    try:
        with warnings.catch_warnings():
            # torch 2.9 and later deprecate TorchScript, but Triton's PyTorch backend reads it.
            warnings.simplefilter("ignore", DeprecationWarning)
            network = torch.jit.load(str(path), map_location="cpu")
            return network.eval() if evaluate else network
    except (RuntimeError, ValueError, OSError) as error:
        raise ModelError(f"{name}: {path} cannot be loaded: {reason(error)}; {_help(error)}") from error


def reason(error: Exception) -> str:
    """Return the line of torch's long message that names the cause."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if line.startswith("Unknown builtin op")]
    # The message of an error inside a TorchScript program ends with the cause; a message of the loader begins with it.
    raised = [line for line in lines if line.startswith("RuntimeError: ")]
    line = (telling or raised[-1:] or lines or [type(error).__name__])[0]
    return line.removeprefix("RuntimeError: ").removesuffix(".")[:300]


def _help(error: Exception) -> str:
    if "Unknown builtin op" in str(error):
        return "it was made with operators of another package; export it with those of torch alone"
    return f"copy it again, or {_REMEDY}"


def _refuse_other_files(name: str, path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        raise ModelError(f"{name}: {path} cannot be read: {error.strerror}; choose a TorchScript file") from error
    if not start:
        raise ModelError(f"{name}: {path} is empty; copy it again")
    if is_lfs_pointer(path):
        raise ModelError(f"{name}: {path} is a Git LFS pointer, not the file itself; {LFS_REMEDY}")
    members = zipfile.ZipFile(path).namelist() if zipfile.is_zipfile(path) else []
    held = {member.rpartition("/")[2] for member in members}
    # Protocol 2 and later of Python's pickle begin with this byte.
    if (members and _PROGRAM not in held and "data.pkl" in held) or (not members and start.startswith(b"\x80")):
        raise ModelError(
            f"{name}: {path} is a checkpoint of torch.save (a state_dict or a pickled module), not TorchScript; "
            f"{_REMEDY}"
        )
    if _PROGRAM not in held:
        raise ModelError(f"{name}: {path} is neither a TorchScript nor an ONNX file; {_REMEDY}")
