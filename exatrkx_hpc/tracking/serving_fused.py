"""The full pipeline as one model of Triton's Python backend: one process, one device."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exatrkx_hpc.tracking.arrays import AnyArray
from exatrkx_hpc.tracking.constants import NETWORK_NAMES
from exatrkx_hpc.tracking.devices import device_of, reason, use_device
from exatrkx_hpc.tracking.features import features_of
from exatrkx_hpc.tracking.onnx_network import network_file
from exatrkx_hpc.tracking.parameters import networks_folder, settings_of
from exatrkx_hpc.tracking.samples import sample_hits
from exatrkx_hpc.tracking.serving import Array, TorchStage, require_weight
from exatrkx_hpc.tracking.signatures import check_signature
from exatrkx_hpc.tracking.tensors import BadTensor

if TYPE_CHECKING:
    from exatrkx_hpc.tracking.inference import Network
    from exatrkx_hpc.tracking.pipeline import Pipeline


#: Tracks of the sample events: about 220, 1,400 and 3,500 hits.
_SAMPLE_TRACKS = (25, 165, 420)
#: Time (s) on a CPU after which the remaining sample events are skipped.
_ENOUGH = 10.0


class FusedStage(TorchStage):
    """Hits `[N, F]` (float32) to labels `[N]` (int64), the same labels as from the ensemble.

    Parameters are the fields of PipelineSettings, `threads` (CPU threads per instance), and `networks`: the folder of
    `embed`, `filter` and `gnn`, relative to the model's own folder. The default is `..`, so that a site's own weights
    in that folder change the ensemble and this model at once.
    """

    outputs = ("LABELS",)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Load the three networks and run sample events; raises ValueError, one line, for any later failure."""
        torch = importlib.import_module("torch")
        torch.set_num_threads(threads := int(parameters.get("threads", "1")))
        folder = networks_folder(Path(args["model_repository"]), parameters)
        for name in NETWORK_NAMES:
            require_weight(self.model, network_file(folder / name / "1"))
        pipeline = importlib.import_module("exatrkx_hpc.tracking.pipeline").Pipeline
        try:
            use_device(device := device_of(args))
            self.pipeline = pipeline.load(folder, settings=settings_of(parameters), device=device, threads=threads)
            warm_up(self.pipeline)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{self.model}: {reason(error)}") from error

    def compute(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Return the labels, of the kind of the hits."""
        hits = inputs["FEATURES"]
        return (self.pipeline.find_tracks(hits, name="FEATURES"),)


def warm_up(pipeline: Pipeline) -> None:
    """Run each network, then complete events of three sizes, twice, so that later events need no preparation.

    This compiles the kernels and fills the memory pools. Raises ValueError, one line, for any failure: a network with
    wrong inputs or outputs, a missing CuPy, a too wide embedding, too little memory.
    """
    check_networks(pipeline)
    rng = np.random.default_rng(0)
    plain = [sample_hits(rng, tracks=tracks) for tracks in _SAMPLE_TRACKS]
    events = [features_of(hits, pipeline.features)[0] for hits in plain]
    began = time.monotonic()
    for hits in events * 2:
        try:
            pipeline.find_tracks(hits)
        except Exception as error:  # any error here would fail events, too
            raise ValueError(f"a sample event of {len(hits)} hits fails: {reason(error)}") from error
        if pipeline.device == "cpu" and time.monotonic() - began > _ENOUGH:
            return  # A CPU compiles nothing per size, so large networks need not delay the start.


def check_networks(pipeline: Pipeline) -> None:
    """Run each network on a sample; raises BadTensor, a ValueError, for wrong inputs or outputs."""
    torch = importlib.import_module("torch")

    def arrays(network: Network) -> Callable[..., Array]:
        def call(*inputs: Array) -> Array:
            with torch.inference_mode():
                tensors = (torch.from_numpy(array).to(pipeline.device) for array in inputs)
                answer: Array = network(*tensors).cpu().numpy()
            return answer

        return call

    for name, network, inputs, columns in (
        ("embed", pipeline.embed, ("INPUT__0",), (-1,)),
        ("filter", pipeline.filter, ("INPUT__0", "INPUT__1"), ()),
        ("gnn", pipeline.gnn, ("INPUT__0", "INPUT__1"), ()),
    ):
        try:
            check_signature(
                arrays(network), inputs=inputs, output="OUTPUT__0", columns=columns, features=pipeline.features
            )
        except BadTensor as error:
            raise BadTensor(f"{name}: {error}") from error
