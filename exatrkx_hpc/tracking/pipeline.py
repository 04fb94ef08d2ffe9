"""The full pipeline in one process: TorchScript or ONNX files of a model repository, no server."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from exatrkx_hpc.tracking import gpu
from exatrkx_hpc.tracking.arrays import AnyArray, in_kind, is_tensor, on_gpu, on_host
from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.constants import (
    DEFAULT_SETTINGS,
    NETWORK_NAMES,
    Float32,
    Int64,
    PipelineSettings,
)
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Features, radii_of, read_features, require_radii
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges, in_order
from exatrkx_hpc.tracking.inference import Network, load_network
from exatrkx_hpc.tracking.onnx_network import ONNX_WEIGHT, NoOnnxruntime, load_onnx, network_file, on_tensors
from exatrkx_hpc.tracking.tensors import BadTensor, check_hits


@dataclass(frozen=True, kw_only=True)
class Stages:
    """Output of each stage for one event of N hits, in order; E candidate edges, E' after the filter.

    The arrays have the kind of the hits: NumPy, torch or CuPy. The logits are probabilities if the settings have
    `scores` set to `probabilities`.
    """

    embedding: Float32
    candidates: Int64
    filter_logits: Float32
    edges: Int64
    gnn_logits: Float32
    labels: Int64


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Finds tracks: embed, frnn, filter, applyfilter, gnn, connected components.

    The networks are callables on tensors of `device` (`cpu`, `cuda`, `cuda:1`): plain modules, or networks that `load`
    reads. Every stage runs on that device, and intermediate results stay there. The caller sets the number of torch's
    threads.
    """

    embed: Network
    filter: Network
    gnn: Network
    settings: PipelineSettings = DEFAULT_SETTINGS
    device: str = "cpu"
    features: Features = DEFAULT_FEATURES

    @classmethod
    def load(
        cls,
        repository: Path,
        *,
        settings: PipelineSettings = DEFAULT_SETTINGS,
        device: str = "cpu",
        threads: int = 1,
    ) -> Pipeline:
        """Return the pipeline of `repository/{embed,filter,gnn}/1/model.pt` (or `model.onnx`) on `device`.

        The repository's features define a hit. `threads` is the number of threads of an ONNX network on a CPU. Raises
        ValueError when a file is missing or is not a network, or the features cannot be read.
        """
        features = read_features(repository)
        if settings.edge_order == "radius":
            require_radii(features)
        loaded = {name: _network(repository, name, features, device, threads) for name in NETWORK_NAMES}
        return cls(**loaded, settings=settings, device=device, features=features)

    def find_tracks(self, hits: Float32, *, name: str = "hits") -> Int64:
        """Return one track label (int64) for each hit, `[N]`; `hits` float32 `[N, 3]` (r/3000, phi/pi, z/400).

        `hits` is a NumPy array, a torch tensor or a CuPy array, on any device; the labels have the same kind and
        device. Raises BadTensor, a ValueError, for hits of another shape or type or out of range; the message calls
        the hits `name`.
        """
        labels: Int64 = _answer(self._run(hits, name).labels, hits)
        return labels

    def stages(self, hits: Float32) -> Stages:
        """Return the output of each stage for `hits` float32 `[N, 3]`; raises BadTensor as `find_tracks` does."""
        stages = self._run(hits)
        return Stages(**{field.name: _answer(getattr(stages, field.name), hits) for field in fields(Stages)})

    def _run(self, given: AnyArray, name: str = "hits") -> Stages:
        """Return the stages as tensors on this pipeline's device."""
        settings = self.settings
        with torch.inference_mode():
            hits = self._tensor(given, name)
            embedding = self._embedding(hits)
            candidates = fixed_radius_edges(embedding, radius=settings.radius, max_neighbours=settings.max_neighbours)
            if settings.edge_order != "number":
                candidates = in_order(candidates, settings.edge_order, radii_of(hits, self.features))
            filter_logits = self._logits("filter", self.filter, hits, candidates)
            edges = apply_filter(candidates, filter_logits, cut=settings.filter_cut, scores=settings.scores)
            gnn_logits = self._logits("gnn", self.gnn, hits, edges)
            return Stages(
                embedding=embedding,
                candidates=candidates,
                filter_logits=filter_logits,
                edges=edges,
                gnn_logits=gnn_logits,
                labels=label_components(
                    edges, gnn_logits, cut=settings.gnn_cut, n_hits=len(hits), scores=settings.scores
                ),
            )

    def _tensor(self, hits: AnyArray, name: str) -> torch.Tensor:
        """Check hits, and return them as a tensor on the device; without a copy from CPU to CPU."""
        if on_gpu(hits):
            tensor = hits if is_tensor(hits) else gpu.as_tensor(hits)
            if not _look_good(tensor, self.features):
                check_hits(name, on_host(tensor), self.features)  # raises the error
        else:
            array = _host_array(hits)
            check_hits(name, array, self.features)
            tensor = torch.from_numpy(np.require(array, requirements=["C", "W"]))
        return tensor.to(self.device)

    def _embedding(self, hits: torch.Tensor) -> torch.Tensor:
        embedding = self.embed(hits)
        if embedding.ndim != 2 or len(embedding) != len(hits):
            raise BadTensor(f"the embedding has shape {list(embedding.shape)}; expected [{len(hits)}, D]")
        if len(embedding) and not math.isfinite(float(embedding.sum())) and not bool(torch.isfinite(embedding).all()):
            raise BadTensor("the embedding has a NaN or an infinity; expected finite numbers: check embed's weights")
        return embedding

    def _logits(self, name: str, network: Network, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        logits = network(hits, edges)
        if logits.numel() != edges.shape[1]:
            raise BadTensor(f"{name} gave shape {list(logits.shape)}; expected one logit for {edges.shape[1]} edges")
        return logits.reshape(-1)


def _network(repository: Path, name: str, features: Features, device: str, threads: int) -> Network:
    file = network_file(repository / name / "1")
    if file.name != ONNX_WEIGHT:
        return load_network(file, device=device, columns=len(features))
    inputs = 1 if name == "embed" else 2
    try:
        network = load_onnx(file, inputs=inputs, features=features, device=device, threads=threads)
    except NoOnnxruntime as error:
        raise ValueError(f"{name}: {error}") from error
    return on_tensors(network, device)


def _host_array(hits: AnyArray) -> NDArray[Any]:
    """Return hits that are not on a GPU as a NumPy array; raises BadTensor for masked, sparse or other hits."""
    if isinstance(hits, np.ma.MaskedArray) and np.any(hits.mask):
        raise BadTensor(f"hits has {int(np.sum(hits.mask))} masked values; leave those hits out, or fill them")
    if is_tensor(hits) and hits.layout != torch.strided:
        raise BadTensor("hits is a sparse tensor; use hits.to_dense()")
    try:
        return on_host(hits)
    except Exception as error:  # from the library of the array
        raise BadTensor(
            f"hits is not an array: {' '.join(str(error).split())[:200]}; expected float32 [N, 3]"
        ) from error


def _look_good(hits: torch.Tensor, features: Features) -> bool:
    """Return whether `check_hits` would accept the hits; runs on the device and reads back only one number."""
    if hits.dtype != torch.float32 or hits.ndim != 2 or hits.shape[1] != len(features):
        return False
    low, high = hits.new_tensor(features.lowest), hits.new_tensor(features.highest)
    return bool(((hits >= low) & (hits <= high)).all())


def _answer(tensor: torch.Tensor, hits: AnyArray) -> AnyArray:
    """Return a tensor in the kind and on the device of the hits."""
    if is_tensor(hits):
        there = tensor.to(hits.device)
        # A tensor made in inference mode cannot be changed by the caller; a copy made outside of that mode can.
        return there.clone() if there.is_inference() else there
    if on_gpu(hits) and tensor.is_cuda:
        return gpu.as_cupy(tensor)
    return in_kind(on_host(tensor), hits)
