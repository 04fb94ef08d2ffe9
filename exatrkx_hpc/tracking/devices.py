"""The device of a stage, as torch names it, and what GPU errors mean for the process."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping

#: How CUDA, cuBLAS, cuDNN, torch, CuPy and onnxruntime ("CUDA failure 700: ...") tell of a device's failure. After most
#: of these every further call of the process fails, too.
_BROKEN = re.compile(
    r"CUDA error|CUDA failure|CUDA out of memory|CUDA driver error|\bcudaError|\bCUDA_ERROR_|"
    r"\bCU(BLAS|DNN|SPARSE|SOLVER)_STATUS_"
)
_NO_MEMORY = re.compile(r"out of memory|cudaErrorMemoryAllocation|STATUS_ALLOC_FAILED", re.IGNORECASE)
_CAUSE = re.compile(r"[\w.]*(?:Error|Exception): (.+)")


class NoDevice(ValueError):
    """There is no such GPU for this process."""


def device_of(args: Mapping[str, str]) -> str:
    """Return where an instance runs, as torch calls it: its GPU, or `cpu` for KIND_CPU, even where there is a GPU."""
    gpu = args["model_instance_kind"] == "GPU"
    return f"cuda:{args['model_instance_device_id']}" if gpu else "cpu"


def use_device(device: str) -> None:
    """Make `device` (`cpu`, `cuda`, `cuda:1`) the one that torch works on by default; raises NoDevice, see below."""
    require_device(device)
    if device.startswith("cuda"):
        importlib.import_module("torch").cuda.set_device(device)


def require_device(device: str) -> None:
    """Raise NoDevice, which says why, when `device` is a GPU and this process cannot use it."""
    if not device.startswith("cuda"):
        return
    torch = importlib.import_module("torch")
    if torch.version.cuda is None:
        why = f"torch {torch.__version__} is built without CUDA; install its CUDA build, or run on the CPU"
        raise NoDevice(f"no CUDA on this machine for {device}: {why}")
    if not torch.cuda.is_available():
        why = "torch sees no GPU; check nvidia-smi, CUDA_VISIBLE_DEVICES and the driver, or run on the CPU"
        raise NoDevice(f"no CUDA on this machine for {device}: {why}")
    found, number = torch.cuda.device_count(), int(device.partition(":")[2] or 0)
    if number >= found:
        raise NoDevice(f"no {device} on this machine: torch sees {found} GPU(s), numbered from 0")


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error tells that the memory of a GPU did not suffice: the process can go on with less."""
    return _about_a_device(error) and _NO_MEMORY.search(reason(error)) is not None


def is_broken(error: BaseException) -> bool:
    """Say whether an error tells that a GPU failed, so that the process can do nothing more there."""
    return _about_a_device(error) and not is_out_of_memory(error)


def _about_a_device(error: BaseException) -> bool:
    """Look at the cause alone: the whole of a TorchScript error quotes the program, whatever words are in there."""
    # CuPy's own error names no CUDA: "Out of memory allocating 512 bytes".
    return _BROKEN.search(reason(error)) is not None or type(error).__name__ == "OutOfMemoryError"


def reason(error: BaseException) -> str:
    """Return what an error says in one line: its first one, or the cause that a TorchScript program ends with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    causes = [match[1] for match in map(_CAUSE.match, lines) if match]
    return causes[-1] if causes else lines[0]
