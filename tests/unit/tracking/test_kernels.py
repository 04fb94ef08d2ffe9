"""The kernels of the GPU: they compile for it, agree with the CPU on whole events, and hold under contention.

The cases of test_frnn.py and test_components.py run on their CPU twin, too.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from devices import CUDA, edges_on_cuda, labels_on_cuda
from paths import FAKES
from twins import SOURCE, Twin, twin

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.process import find_program, run
from exatrkx_hpc.tracking import gpu, kernels
from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges
from exatrkx_hpc.tracking.scoring.agreement import compare_edges, same_partition

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_the_compiler_of_cuda_takes_the_kernels(architecture: str, tmp_path: Path):
    try:
        compiler = find_program("nvcc", remedy="install the CUDA toolkit")
    except MissingComponent as error:
        pytest.skip(f"GPU: {error}")
    wanted = ["-cubin", f"-arch={architecture}", "-std=c++14", "-Werror", "all-warnings"]
    done = run([compiler, *wanted, "-o", str(tmp_path / "kernels.cubin"), str(SOURCE)], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    code = (tmp_path / "kernels.cubin").read_bytes()
    for name in ("frnn_count", "frnn_limit", "frnn_write", "component_start", "component_join", "component_finish"):
        assert name.encode() in code


def embedding(n: int, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.9, (n, 8)).astype(np.float32)


class OnTwin:
    """The kernels compiled for the CPU."""

    def edges(self, places: np.ndarray, **options) -> np.ndarray:
        return kernels.edges_within(twin(), places, **options)

    def labels(self, edges: np.ndarray, logits: np.ndarray, **options) -> np.ndarray:
        return kernels.labels_of(twin(), edges, logits, **options)


class OnCuda:
    """The kernels on a GPU."""

    edges = staticmethod(edges_on_cuda)
    labels = staticmethod(labels_on_cuda)


@pytest.fixture(params=["twin", CUDA])
def device(request: pytest.FixtureRequest) -> OnTwin | OnCuda:
    """Where the kernels run."""
    return {"twin": OnTwin, "cuda": OnCuda}[request.param]()


@pytest.mark.parametrize(("n", "limit"), [(300, 15), (1500, 500)])
def test_the_kernels_find_the_edges_that_the_cpu_finds_in_a_whole_event(device: OnTwin | OnCuda, n: int, limit: int):
    places = embedding(n)
    ours = fixed_radius_edges(places, radius=1.6, max_neighbours=limit)
    theirs = device.edges(places, radius=1.6, max_neighbours=limit)
    found = compare_edges(ours, theirs, places, radius=1.6)
    assert (found.common, found.at_radius, found.different) == (ours.shape[1], 0, 0)
    assert np.array_equal(ours, theirs)


def test_the_rare_kernel_runs_for_crowded_hits_only():
    counted = Twin(twin().library)
    kernels.edges_within(counted, embedding(200), radius=1.0, max_neighbours=500)
    assert counted.launched == ["frnn_count", "frnn_write"]
    counted.launched.clear()
    kernels.edges_within(counted, embedding(200), radius=1.6, max_neighbours=3)
    assert counted.launched == ["frnn_count", "frnn_limit", "frnn_count", "frnn_write"]


def test_threads_that_join_the_same_hits_at_once_lose_no_edge(device: OnTwin | OnCuda):
    # Every block of threads pulls at the same few roots; on the twin they change hands at each atomic operation.
    rng, n = np.random.default_rng(6), 4000
    for _ in range(5):
        edges = np.stack([rng.permutation(n), rng.permutation(n)])
        edges = np.concatenate([edges, np.stack([np.arange(n), np.arange(n) % 7])], axis=1)
        logits = rng.normal(0, 3, edges.shape[1]).astype(np.float32)
        ours = label_components(edges, logits, cut=0.75, n_hits=n)
        theirs = device.labels(edges, logits, cut=0.75, n_hits=n)
        assert same_partition(ours, theirs)
        assert np.array_equal(ours, theirs)
        probable = (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
        for found in (
            kernels.labels_of(twin(), edges, probable, cut=0.75, n_hits=n, scores="probabilities"),
            label_components(edges, probable, cut=0.75, n_hits=n, scores="probabilities"),
        ):
            assert same_partition(ours, found)


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch):
    """A CuPy of its own, on the CPU."""
    monkeypatch.syspath_prepend(str(FAKES / "cupy_on_cpu"))
    gpu._module.cache_clear()
    twin()
    yield pytest.importorskip("cupy")
    sys.modules.pop("cupy")
    gpu._module.cache_clear()
    gpu._as_cupy_stream.cache_clear()


def test_arrays_of_cupy_go_through_every_stage_and_stay_what_they_are(cupy):
    places = embedding(150)
    logits = np.random.default_rng(7).normal(0, 3, 10_000).astype(np.float32)
    edges = fixed_radius_edges(places, radius=1.6, max_neighbours=9)
    logits = logits[: edges.shape[1]]
    kept = apply_filter(edges, logits, cut=0.21)
    labels = label_components(edges, logits, cut=0.75, n_hits=150)

    on_gpu = fixed_radius_edges(cupy.asarray(places), radius=1.6, max_neighbours=9)
    scores = cupy.asarray(logits)
    on_gpu_too = (
        apply_filter(on_gpu, scores, cut=0.21),
        label_components(on_gpu, scores, cut=0.75, n_hits=150),
        label_components(on_gpu, scores, cut=0.75),
    )
    assert all(isinstance(array, cupy.ndarray) for array in (on_gpu, *on_gpu_too))
    assert np.array_equal(on_gpu, edges)
    for ours, theirs in zip((kept, labels, labels), on_gpu_too, strict=True):
        assert np.array_equal(ours[..., : theirs.shape[-1]], theirs)


def test_an_embedding_too_wide_for_the_kernels_is_refused(cupy):
    with pytest.raises(ValueError, match="65 columns; the kernels take 1 to 64"):
        fixed_radius_edges(cupy.asarray(np.zeros((3, 65), np.float32)), radius=1.0, max_neighbours=5)


def test_the_stream_of_torch_is_taken_by_its_address_and_kept(cupy, monkeypatch: pytest.MonkeyPatch):
    first = gpu._as_cupy_stream(0, 7)
    assert (type(first), first.address) == (cupy.cuda.Stream, 7)
    assert gpu._as_cupy_stream(0, 7) is first
    assert gpu._as_cupy_stream(1, 7) is not first

    class ExternalStream:
        """What CuPy 13 has instead."""

        def __init__(self, address, device):
            self.address, self.device = address, device

    monkeypatch.delattr(cupy.cuda.Stream, "from_external")
    monkeypatch.setattr(cupy.cuda, "ExternalStream", ExternalStream, raising=False)
    gpu._as_cupy_stream.cache_clear()
    older = gpu._as_cupy_stream(1, 9)
    assert (older.address, older.device) == (9, 1)


class OnGpu:
    """An array on a GPU of some other library, where CuPy is not installed."""

    __cuda_array_interface__ = {"version": 3}  # noqa: RUF012
    shape = (2, 8)


def test_without_cupy_an_array_on_a_gpu_says_which_extra_is_missing():
    if sys.modules.get("cupy"):
        pytest.skip("GPU: CuPy is here")
    with pytest.raises(gpu.MissingCupy, match=r"need CuPy .*pip install 'exatrkx-hpc\[gpu-cuda1[23]\]'"):
        fixed_radius_edges(OnGpu(), radius=1.0, max_neighbours=5)
