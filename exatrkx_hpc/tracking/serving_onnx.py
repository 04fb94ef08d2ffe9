"""An ONNX network as a model of Triton's Python backend."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exatrkx_hpc.tracking.arrays import AnyArray
from exatrkx_hpc.tracking.devices import device_of
from exatrkx_hpc.tracking.features import read_features
from exatrkx_hpc.tracking.onnx_network import ONNX_WEIGHT, NoOnnxruntime, load_onnx
from exatrkx_hpc.tracking.serving import Array, Stage, require_weight
from exatrkx_hpc.tracking.signatures import check_signature
from exatrkx_hpc.tracking.tensors import check_edges, check_hits


class OnnxStage(Stage):
    """An ONNX network, run by onnxruntime; torch is not needed.

    Inputs are the hits `[N, F]` (float32) and, for an edge network, the edges `[2, E]` (int64). Tensor names come from
    config.pbtxt; the file may use other names. Parameters: `weights`, the file in the version folder, and `threads`,
    CPU threads per instance. An instance of KIND_GPU runs on its GPU or does not load; an instance of KIND_CPU never
    uses a GPU.
    """

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Load the network and run it on a sample; raises ValueError, one line, for any later failure."""
        weights = Path(args["model_repository"]) / args["model_version"] / parameters.get("weights", ONNX_WEIGHT)
        require_weight(self.model, weights)
        self.features = read_features(Path(args["model_repository"]).parent)
        self.inputs = tuple(entry["name"] for entry in config["input"])
        self.outputs = tuple(entry["name"] for entry in config["output"])
        try:
            if len(self.inputs) not in (1, 2) or len(self.outputs) != 1:
                found = f"{len(self.inputs)} inputs and {len(self.outputs)} outputs"
                raise ValueError(f"config.pbtxt has {found}; expected the hits, maybe the edges, and one output")
            self.dims = [int(size) for size in config["output"][0]["dims"]]
            self.network = load_onnx(
                weights,
                inputs=len(self.inputs),
                features=self.features,
                device=device_of(args),
                threads=_threads(parameters.get("threads", "1")),
            )
            check_signature(
                self.network,
                inputs=self.inputs,
                output=self.outputs[0],
                columns=self.dims[1:],
                features=self.features,
            )
        except (ValueError, NoOnnxruntime) as error:
            raise ValueError(f"{self.model}: {error}") from error

    def compute(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Return the network's output in the shape of config.pbtxt."""
        hits, *rest = (inputs[name] for name in self.inputs)
        check_hits(self.inputs[0], hits, self.features)
        for name, edges in zip(self.inputs[1:], rest, strict=True):
            check_edges(name, edges, n_hits=len(hits))
        rows = rest[0].shape[1] if rest else len(hits)
        answer: Array = self.network(hits, *rest)
        return (answer.reshape(rows, *(self.network.columns if -1 in self.dims[1:] else self.dims[1:])),)


def _threads(stated: str) -> int:
    if not stated.isdecimal() or int(stated) < 1:
        raise ValueError(f"threads is {stated!r} in config.pbtxt; use 1 or more")
    return int(stated)
