"""Results as numpy archives, `.npz`: the default format of a workload."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.workloads.base import Tensors


def encode_npz(outputs: Tensors) -> bytes:
    """Return the outputs as the bytes of an `.npz` file; equal outputs give equal bytes."""
    file = io.BytesIO()
    np.savez(file, **dict(outputs))
    return file.getvalue()


def decode_npz(path: Path, data: bytes) -> Tensors:
    """Return the outputs in the `.npz` bytes of the file at `path`; raises InputError for other or damaged bytes."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as held:
            return {name: held[name] for name in held.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is not a complete numpy archive ({error}); its event must be done again") from error
