"""Write a result file, for workers and for maps."""

from __future__ import annotations

import hashlib
from pathlib import Path

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.work.workloads.base import Tensors, Workload


def write_result(workload: Workload, path: Path, outputs: Tensors, *, remedy: str) -> tuple[int, str]:
    """Write the outputs of an event to `path` atomically; return size (bytes) and digest (hexadecimal) of the file.

    Raises OutputError, with `remedy`, when the file cannot be written.
    """
    data = workload.encode(outputs)
    try:
        write_whole(path, data)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; {remedy}") from error
    return len(data), hashlib.sha256(data).hexdigest()
