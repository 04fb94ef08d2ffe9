"""The stages whose tensors are torch's, in a real Triton under numpy 1 and 2: what they answer, and how they fail."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from repositories import edit, small_repository
from triton_helper import DidNotStart, RunningTriton, running_triton
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype
from waiting import until

pytest.importorskip("torch")

import torch

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import run
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.repository import CONFIG, read_config
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.work.inference.channel import RequestFailed

pytestmark = [
    pytest.mark.usefixtures("triton"),
    pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning"),
]
SHIPPED = asset("model_repos/exatrkx")
Infer = Callable[..., np.ndarray]
#: Put at the end of a model's code, so that the log tells under which numpy it runs.
TELL = "\nimport numpy\nprint('MODEL UNDER NUMPY', numpy.__version__, flush=True)\n"


@pytest.fixture(scope="module")
def numpy_2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a numpy 2, which goes before the numpy of the environment."""
    folder = tmp_path_factory.mktemp("numpy2")
    wanted = ["--no-deps", "--target", str(folder), "numpy>=2,<3"]
    done = run([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted], timeout=120)
    if done.returncode:
        pytest.skip(f"numpy 2 cannot be installed beside numpy 1: {done.complaint}")
    return folder


@pytest.fixture(scope="module", params=[1, 2], ids=["numpy1", "numpy2"])
def server(request, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """A server of the networks and the fused model alone, and of a network that is made to be awkward."""
    work_dir = tmp_path_factory.mktemp("torch_stages")
    repository = build(SHIPPED, work_dir / "repository", device="cpu").path
    for name in ("exatrkx", "frnn", "applyfilter", "wcc"):
        shutil.rmtree(repository / name)
    add_network(repository, "awkward", Awkward())
    for code in repository.glob("*/1/model.py"):
        code.write_text(code.read_text() + TELL)
    with pytest.MonkeyPatch.context() as patch:
        if request.param == 2:
            patch.setenv("PYTHONPATH", f"{request.getfixturevalue('numpy_2')}:{os.environ.get('PYTHONPATH', '')}")
        with running_triton(repository, work_dir, deadline=180) as running:
            versions = {line.split()[-1][0] for line in running.log.read_text().splitlines() if "UNDER NUMPY" in line}
            assert versions == {str(request.param)}
            yield running


@pytest.fixture(scope="module")
def infer(server: RunningTriton) -> Iterator[Infer]:
    """`infer(model, TENSOR=array, ...)` returns the model's one output."""
    with InferenceServerClient(server.grpc) as client:

        def call(model: str, **tensors: np.ndarray) -> np.ndarray:
            inputs = []
            for name, array in tensors.items():
                entry = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
                entry.set_data_from_numpy(array)
                inputs.append(entry)
            output = "LABELS" if model == "exatrkx_fused" else "OUTPUT__0"
            return client.infer(model, inputs, client_timeout=60).as_numpy(output)

        yield call


class Awkward(torch.nn.Module):
    """Says for certain numbers of hits what torch says when a GPU fails, or has no memory left.

    Otherwise it answers with its input itself, memory that is Triton's, or with the double of it, numbers that do not
    lie one behind the other.
    """

    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        if hits.shape[0] == 13:
            raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")
        if hits.shape[0] == 14:
            raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has 8.00 GiB free")
        if hits.shape[0] == 15:
            raise RuntimeError("something else")
        return hits if hits.shape[0] % 2 == 0 else (2.0 * hits).t().contiguous().t()


def add_network(repository: Path, name: str, network: torch.nn.Module) -> None:
    """Add a model that runs `network` on hits and gives `[N, 3]`."""
    shutil.copytree(repository / "embed", repository / name)
    torch.jit.script(network).save(str(repository / name / "1" / "model.pt"))

    def change(config) -> None:
        config.name = name
        config.output[0].dims[:] = [-1, 3]

    edit(repository, name, change)


def told(error: InferenceServerException) -> str:
    """Return the one line of ours, without the words that Triton puts around it."""
    line = RequestFailed("INTERNAL", error.message()).message
    assert "\n" not in line
    return line


def hits(n: int, seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform((0.01, -1, -1), (0.3, 1, 1), size=(n, 3)).astype(np.float32)


@cache
def shipped() -> Pipeline:
    """The same pipeline in this process; loading it takes seconds."""
    return Pipeline.load(SHIPPED)


@pytest.mark.parametrize("n_hits", [0, 1, 2, 3, 300])
def test_answers_are_those_of_the_pipeline_in_this_process(infer: Infer, n_hits: int) -> None:
    here = shipped().stages(hits(n_hits))
    for _ in range(2):
        embedding = infer("embed", INPUT__0=hits(n_hits))
        assert (embedding.dtype, embedding.shape) == (np.float32, (n_hits, 8))
        np.testing.assert_allclose(embedding, here.embedding, atol=1e-5)
        judged = infer("filter", INPUT__0=hits(n_hits), INPUT__1=here.candidates)
        assert judged.shape == (here.candidates.shape[1], 1)
        np.testing.assert_allclose(judged.reshape(-1), here.filter_logits, atol=1e-3)
        judged = infer("gnn", INPUT__0=hits(n_hits), INPUT__1=here.edges)
        assert judged.shape == (here.edges.shape[1],)
        np.testing.assert_allclose(judged, here.gnn_logits, atol=1e-3)
        labels = infer("exatrkx_fused", FEATURES=hits(n_hits))
        assert (labels.dtype, labels.shape) == (np.int64, (n_hits,))
        assert labels.tolist() == here.labels.tolist()


@pytest.mark.parametrize("n_hits", [0, 1, 2, 3, 5000, 5001])
def test_an_answer_may_be_the_input_or_lie_otherwise_in_memory(infer: Infer, n_hits: int) -> None:
    for seed in range(20):
        event = hits(n_hits, seed)
        assert np.array_equal(infer("awkward", INPUT__0=event), event if n_hits % 2 == 0 else 2 * event)


@pytest.mark.parametrize(
    ("model", "tensors", "says"),
    [
        ("embed", {"INPUT__0": np.full((2, 3), np.nan, np.float32)}, "embed: INPUT__0 has a NaN or an infinity in row"),
        ("gnn", {"INPUT__0": hits(2), "INPUT__1": np.full((2, 1), 2)}, "gnn: INPUT__1 has hit numbers from 2 to 2"),
        ("exatrkx_fused", {"FEATURES": 1e3 + hits(2)}, "exatrkx_fused: FEATURES has r / 3000 mm = "),
    ],
)
def test_bad_input_is_still_one_line(infer: Infer, model: str, tensors: dict, says: str) -> None:
    with pytest.raises(InferenceServerException) as error:
        infer(model, **tensors)
    assert told(error.value).startswith(says)


def test_a_gpu_out_of_memory_fails_its_request_alone_and_in_one_line(server: RunningTriton, infer: Infer) -> None:
    for n_hits, says in (
        (14, "awkward: not enough GPU memory for this event (CUDA out of memory. Tried to allocate 20.00"),
        (15, "awkward: Error: something else"),
    ):
        with pytest.raises(InferenceServerException) as error:
            infer("awkward", INPUT__0=hits(n_hits))
        assert told(error.value).startswith(says)
        assert infer("awkward", INPUT__0=hits(3)).shape == (3, 3)
    assert server.is_ready()


def test_a_gpu_that_failed_ends_the_server_in_order_and_says_why(tmp_path: Path) -> None:
    # Triton 2.51 starts no other process for a model whose own has ended, and stays ready: the server has to end.
    add_network(build(SHIPPED, tmp_path / "built", device="cpu").path, "awkward", Awkward())
    repository = tmp_path / "repository"
    shutil.copytree(tmp_path / "built" / "awkward", repository / "awkward")
    tensor = InferInput("INPUT__0", [13, 3], "FP32")
    tensor.set_data_from_numpy(hits(13))
    with running_triton(repository, tmp_path) as server, InferenceServerClient(server.grpc) as client:
        with pytest.raises(InferenceServerException) as error:
            client.infer("awkward", [tensor])
        says = "awkward: CUDA error: device-side assert triggered; this server exits in order to be restarted"
        assert error.value.message() == says
        assert error.value.status() == "StatusCode.UNAVAILABLE"  # which every client of ours asks again elsewhere
        until(lambda: server.child.returncode() is not None, what="the server's end", deadline=90)
        assert server.segments() == []
        assert says in server.log.read_text()


def test_the_warm_up_of_the_configuration_is_one_that_a_server_can_do(tmp_path: Path) -> None:
    # The embedded Triton has no PyTorch backend; its Python backend runs the same weights on the same samples.
    built = build(SHIPPED, tmp_path / "built", device="cpu").path
    repository = tmp_path / "repository"
    samples_of = {name: read_config(SHIPPED / name / CONFIG).model_warmup for name in ("embed", "filter", "gnn")}
    for name, samples in samples_of.items():
        shutil.copytree(built / name, repository / name)
        edit(repository, name, lambda config, samples=samples: config.model_warmup.extend(samples))
    options = ("--log-verbose=1",)
    with (
        running_triton(repository, tmp_path, options=options, deadline=180) as server,
        InferenceServerClient(server.grpc) as client,
    ):
        counts = [client.get_inference_statistics(name).model_stats[0].inference_stats for name in samples_of]
        log = server.log.read_text()
    for name in samples_of:
        for sample in ("small", "usual", "large"):
            for turn in (1, 2):
                assert f"instance {name}_0_0 is running warmup sample '{sample}' for iteration {turn}" in log
    assert [(count.success.count, count.fail.count) for count in counts] == [(6, 0)] * 3


def test_a_stage_whose_tensors_are_numpys_does_not_load_under_numpy_2(
    tmp_path: Path, numpy_2: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = small_repository(tmp_path / "repository")
    monkeypatch.setenv("PYTHONPATH", f"{numpy_2}:{os.environ.get('PYTHONPATH', '')}")
    with (
        pytest.raises(DidNotStart, match=r"numpy 2\..*put numpy<2 into the models' Python environment"),
        running_triton(repository, tmp_path),
    ):
        pass
