"""The fused model's `execute()` without a server, on a CPU and on a GPU: its answers, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

from devices import CUDA, need_gpu
from gpu_lane import triton_api
from gpu_lane.base import Lane, event
from gpu_lane.fused import Refused, ask, fused_stage

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.scoring.agreement import hits_in_other_tracks
from exatrkx_hpc.tracking.serving_fused import FusedStage

pytestmark = pytest.mark.slow


SHIPPED = asset("model_repos/exatrkx")


@pytest.fixture(scope="module", params=["cpu", CUDA])
def stage(request: pytest.FixtureRequest) -> FusedStage:
    """The fused model as Triton loads it."""
    if request.param == "cuda":
        need_gpu()
    device = {"cpu": "cpu", "cuda": "cuda:0"}[request.param]
    return fused_stage(Lane(device=device, quick=True, folder=Path(), repository=SHIPPED))


@pytest.mark.parametrize("hits", [0, 1, 2, 700])
def test_it_gives_the_tracks_of_the_cpus_pipeline(stage: FusedStage, hits: int):
    labels = ask(stage, FEATURES=event(hits))
    assert (labels.dtype, labels.shape) == (np.int64, (hits,))
    expected = Pipeline.load(SHIPPED).find_tracks(event(hits))
    # A GPU rounds otherwise; a score within rounding of a cut may move a hit.
    assert hits_in_other_tracks(expected, labels) <= (0 if stage.pipeline.device == "cpu" else 12)


def test_a_bad_request_fails_alone_and_the_next_one_is_answered(stage: FusedStage):
    good = triton_api.Request(FEATURES=event(300))
    bad = triton_api.Request(FEATURES=np.full((2, 3), np.nan, np.float32))
    first, second, third = stage.execute([good, bad, good])
    assert not first.has_error()
    assert str(second.error()) == "exatrkx_fused: FEATURES has a NaN or an infinity in row 0; expected finite numbers"
    assert not third.has_error()
    with pytest.raises(Refused, match=r"FEATURES has shape \[5, 4\]; expected \[N, 3\]"):
        ask(stage, FEATURES=np.zeros((5, 4), np.float32))
    assert len(ask(stage, FEATURES=event(300))) == 300


def test_answers_may_be_changed_in_place(stage: FusedStage):
    labels = stage.compute({"FEATURES": stage.take(triton_api.Tensor("FEATURES", event(50)))})[0]
    labels += 1
    assert int(labels.min()) == 1
