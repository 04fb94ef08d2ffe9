"""The whole pipeline in one process: TorchScript files of a model repository, no server."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.constants import (
    DEFAULT_SETTINGS,
    N_FEATURES,
    NETWORK_NAMES,
    Float32,
    Int64,
    PipelineSettings,
)
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges

Network = Callable[..., torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Stages:
    """What each stage gave for one event of N hits, in order; E candidate edges, E' after the filter."""

    embedding: Float32
    candidates: Int64
    filter_logits: Float32
    edges: Int64
    gnn_logits: Float32
    labels: Int64


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """Finds tracks: embed, frnn, filter, applyfilter, gnn, connected components.

    The networks are any callables on tensors: plain modules, or what `load` reads. How many threads torch uses
    is left to the caller.
    """

    embed: Network
    filter: Network
    gnn: Network
    settings: PipelineSettings = DEFAULT_SETTINGS

    @classmethod
    def load(cls, repository: Path, *, settings: PipelineSettings = DEFAULT_SETTINGS) -> Pipeline:
        """Return the pipeline of `repository/{embed,filter,gnn}/1/model.pt`, on the CPU.

        Raises ValueError when one of the files is not there or no TorchScript.
        """
        loaded = {name: _load(repository / name / "1" / "model.pt") for name in NETWORK_NAMES}
        return cls(**loaded, settings=settings)

    def find_tracks(self, hits: Float32) -> Int64:
        """Return one track label (int64) for each hit, `[N]`; `hits` float32 `[N, 3]` (r/3000, phi/pi, z/400)."""
        return self.stages(hits).labels

    def stages(self, hits: Float32) -> Stages:
        """Return what each stage gives for `hits` float32 `[N, 3]`; raises ValueError for another shape."""
        if hits.ndim != 2 or hits.shape[1] != N_FEATURES:
            raise ValueError(f"hits have the shape {list(hits.shape)}; [N, {N_FEATURES}] is needed")
        settings = self.settings
        embedding = _run(self.embed, hits)
        candidates = fixed_radius_edges(embedding, radius=settings.radius, max_neighbours=settings.max_neighbours)
        filter_logits = _run(self.filter, hits, candidates).reshape(-1)
        edges = apply_filter(candidates, filter_logits, cut=settings.filter_cut)
        gnn_logits = _run(self.gnn, hits, edges).reshape(-1)
        return Stages(
            embedding=embedding,
            candidates=candidates,
            filter_logits=filter_logits,
            edges=edges,
            gnn_logits=gnn_logits,
            labels=label_components(edges, gnn_logits, cut=settings.gnn_cut, n_hits=len(hits)),
        )


def _run(network: Network, hits: Float32, *edges: Int64) -> Float32:
    with torch.inference_mode():
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in (hits, *edges)]
        return np.asarray(network(*tensors).numpy())


def _load(path: Path) -> Network:
    try:
        with warnings.catch_warnings():
            # torch 2.9 and later advise against TorchScript, which is what Triton's PyTorch backend reads.
            warnings.simplefilter("ignore", DeprecationWarning)
            module: Network = torch.jit.load(str(path), map_location="cpu").eval()
    except (ValueError, RuntimeError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is no TorchScript file that can be read: {reason}") from error
    return module
