"""Results as numpy archives, `.npz`: the default format of a workload."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.workloads.base import Tensors


def encode_npz(outputs: Tensors) -> bytes:
    """Return the outputs as the bytes of an `.npz` file, which are the same for the same outputs."""
    file = io.BytesIO()
    np.savez(file, **dict(outputs))
    return file.getvalue()


def decode_npz(path: Path, data: bytes) -> Tensors:
    """Return the outputs that `encode_npz` wrote to `path`; raises InputError for bytes that are something else."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a complete numpy archive ({error}); its event must be done again") from error
