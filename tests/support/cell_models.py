"""Model repositories of traccc: the twin in its raw form, and a stub of an older contract."""

from __future__ import annotations

import shutil
from pathlib import Path

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.models.repository import CONFIG, read_config, write_config

TWIN = asset("model_repos/traccc") / "traccc-cpu"

_STUB = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        tensor = pb_utils.Tensor("TRK_PARAMS", np.zeros((0, 8), np.float32))
        return [pb_utils.InferenceResponse(output_tensors=[tensor]) for _ in requests]
"""


def raw_model(folder: Path) -> None:
    """Make a copy of the twin with the input of the raw contract."""
    shutil.copytree(TWIN, folder)
    config = read_config(folder / CONFIG)
    config.name = folder.name
    del config.input[1:]
    config.input[0].name = "CELLS"
    config.input[0].data_type = 2  # TYPE_UINT8
    config.input[0].dims[:] = [-1]
    write_config(folder / CONFIG, config)


def older_model(folder: Path) -> None:
    """Make a stub with the inputs of an older contract, which answers nothing of use."""
    shutil.copytree(TWIN, folder)
    config = read_config(folder / CONFIG)
    config.name = folder.name
    for entry, name, kind, dims in zip(
        config.input, ("GEOMETRY_ID", "FEATURES"), (5, 12), ([-1], [-1, 5]), strict=True
    ):
        entry.name, entry.data_type, entry.dims[:] = name, kind, dims  # TYPE_UINT64 and TYPE_FP64
    write_config(folder / CONFIG, config)
    (folder / "1" / "model.py").write_text(_STUB)
