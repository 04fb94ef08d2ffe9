"""The twin as a model of Triton's Python backend; its `1/model.py` only names the class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exatrkx_hpc.traccc.chain import Chain
from exatrkx_hpc.traccc.tensors import CURRENT_INPUTS, OUTPUTS, RAW_INPUTS, pack_tracks, read_buffer, read_cells
from exatrkx_hpc.tracking.serving import Array, Stage


class TracccStage(Stage):
    """Cells to fitted tracks, the four tensors of the public service.

    The inputs of config.pbtxt say which contract it is: CELL_POSITIONS, int64 `[N, 4]`, with CELL_PROPERTIES, float32
    `[N, 2]`; or CELLS, uint8 `[8 + 20 N]`. A geometry ID that the detector does not have is an error of that request,
    which names the ID.
    """

    outputs = OUTPUTS

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Load the detector; raises ValueError for inputs of another contract, ImportError without pyacts."""
        self.inputs = tuple(entry["name"] for entry in config["input"])
        if set(self.inputs) not in (set(CURRENT_INPUTS), set(RAW_INPUTS)):
            known = f"{' and '.join(CURRENT_INPUTS)}, or {RAW_INPUTS[0]}"
            raise ValueError(
                f"{self.model}: config.pbtxt has the inputs {', '.join(self.inputs)}; this model knows {known}"
            )
        self.chain = Chain()

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the tracks of one event."""
        if len(self.inputs) == 1:
            cells = read_buffer(inputs["CELLS"], self.chain.detector)
        else:
            cells = read_cells(inputs["CELL_POSITIONS"], inputs["CELL_PROPERTIES"])
        return pack_tracks(self.chain.find_tracks(cells))
