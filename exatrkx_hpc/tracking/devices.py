"""The torch device of a stage, and the meaning of GPU errors for the process."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping

#: Messages of CUDA, cuBLAS, cuDNN, torch, CuPy and onnxruntime ("CUDA failure 700: ...") about a failure of a device.
#: After most of these failures, every further call of the process also fails.
_BROKEN = re.compile(
    r"CUDA error|CUDA failure|CUDA out of memory|CUDA driver error|\bcudaError|\bCUDA_ERROR_|"
    r"\bCU(BLAS|DNN|SPARSE|SOLVER)_STATUS_"
)
_NO_MEMORY = re.compile(r"out of memory|cudaErrorMemoryAllocation|STATUS_ALLOC_FAILED", re.IGNORECASE)
_CAUSE = re.compile(r"[\w.]*(?:Error|Exception): (.+)")


class NoDevice(ValueError):
    """The process cannot use this GPU."""


def device_of(args: Mapping[str, str]) -> str:
    """Return the torch device of an instance: its GPU, or `cpu` for KIND_CPU, even on a machine with a GPU."""
    gpu = args["model_instance_kind"] == "GPU"
    return f"cuda:{args['model_instance_device_id']}" if gpu else "cpu"


def use_device(device: str) -> None:
    """Make a GPU `device` (`cuda`, `cuda:1`) torch's current one; `cpu` changes nothing. Raises NoDevice."""
    require_device(device)
    if device.startswith("cuda"):
        importlib.import_module("torch").cuda.set_device(device)


def require_device(device: str) -> None:
    """Raise NoDevice with the reason if `device` is a GPU that this process cannot use."""
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
    """Return whether an error means that GPU memory ran out; the process can continue with smaller events."""
    return _about_a_device(error) and _NO_MEMORY.search(reason(error)) is not None


def is_broken(error: BaseException) -> bool:
    """Return whether an error means that a GPU failed, so that the process can no longer use it."""
    return _about_a_device(error) and not is_out_of_memory(error)


def _about_a_device(error: BaseException) -> bool:
    """Return whether the cause of an error concerns a device; the rest of a TorchScript error quotes the program."""
    # CuPy's own error does not mention CUDA: "Out of memory allocating 512 bytes".
    return _BROKEN.search(reason(error)) is not None or type(error).__name__ == "OutOfMemoryError"


def reason(error: BaseException) -> str:
    """Return one line of an error's message: the first line, or the cause at the end of a TorchScript error."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    causes = [match[1] for match in map(_CAUSE.match, lines) if match]
    return causes[-1] if causes else lines[0]
