"""Networks as ONNX files: the stage that runs them, what it refuses, and a repository of them in a real Triton."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc
from repositories import edit
from triton_helper import DidNotStart, RunningTriton, running_triton
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("torch")

import onnx
import onnxruntime
from gpu_lane import triton_api
from gpu_lane.fused import ask
from onnx import TensorProto
from onnx_networks import EDGES, HITS, WEIGHTS, edge_network, embedding, export_shipped, node, write

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.base.process import run
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.install import Installed, install
from exatrkx_hpc.models.pack_env import MANIFEST
from exatrkx_hpc.models.pipeline import load_pipeline, load_tracker, pipeline_digest
from exatrkx_hpc.models.repository import CONFIG, read_config
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.serving import Refused
from exatrkx_hpc.tracking.serving_onnx import OnnxStage
from exatrkx_hpc.work.inference.channel import RequestFailed

SHIPPED = asset("model_repos/exatrkx")
TORCHSCRIPT = {name: SHIPPED / name / "1" / "model.pt" for name in ("embed", "filter", "gnn")}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
ONE = [{"name": "INPUT__0", "dims": [-1, 3]}]
TWO = [*ONE, {"name": "INPUT__1", "dims": [2, -1]}]


def hits(n: int, seed: int = 7) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.uniform((0.01, -1, -1), (0.3, 1, 1), size=(n, 3)).astype(np.float32)


def edges_of(n_hits: int, n_edges: int) -> np.ndarray:
    return np.random.default_rng(n_edges).integers(n_hits, size=(2, n_edges), dtype=np.int64)


def configured(
    file: Path, *, dims: list[int], inputs: list[dict] = ONE, kind: str = "CPU", **parameters: str
) -> OnnxStage:
    """Return the stage as Triton loads it, of the network in `file`."""
    triton_api.install()
    version = file.parent / "repository" / "network" / "1"
    version.mkdir(parents=True, exist_ok=True)
    if file.is_file():
        shutil.copyfile(file, version / "model.onnx")
    config = {
        "parameters": {name: {"string_value": value} for name, value in parameters.items()},
        "input": inputs,
        "output": [{"name": "OUTPUT__0", "dims": dims}],
    }
    stage = OnnxStage()
    stage.initialize(
        {
            "model_name": "network",
            "model_config": json.dumps(config),
            "model_repository": str(version.parent),
            "model_version": "1",
            "model_instance_kind": kind,
            "model_instance_device_id": "1",
        }
    )
    return stage


@pytest.mark.parametrize("n", [0, 1, 2, 300])
def test_an_embedding_gives_what_onnxruntime_gives(tmp_path: Path, n: int) -> None:
    answer = ask(configured(embedding(tmp_path / "e.onnx"), dims=[-1, 8], threads="2"), INPUT__0=hits(n))
    assert (answer.dtype, answer.shape) == (np.float32, (n, 8))
    np.testing.assert_allclose(answer, hits(n) @ WEIGHTS, atol=1e-6)


@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("promised", [[-1], [-1, 1]])
@pytest.mark.parametrize(("n", "e"), [(0, 0), (1, 0), (2, 1), (50, 400)])
def test_an_edge_network_gives_the_shape_of_the_configuration(
    tmp_path: Path, rank: int, promised: list[int], n: int, e: int
) -> None:
    stage = configured(edge_network(tmp_path / "g.onnx", rank=rank), dims=promised, inputs=TWO)
    edges = edges_of(max(n, 1), e)
    answer = ask(stage, INPUT__0=hits(n), INPUT__1=edges)
    assert (answer.dtype, answer.shape) == (np.float32, (e, *[1] * (len(promised) - 1)))
    np.testing.assert_allclose(answer.reshape(-1), hits(n)[edges[0], 0] - hits(n)[edges[1], 0], atol=1e-6)


def test_inputs_are_told_apart_by_their_types_not_their_order_or_names(tmp_path: Path) -> None:
    stage = configured(edge_network(tmp_path / "g.onnx", inputs=(EDGES, HITS)), dims=[-1], inputs=TWO)
    assert ask(stage, INPUT__0=hits(5), INPUT__1=edges_of(5, 9)).shape == (9,)


def test_no_hit_needs_no_network(tmp_path: Path) -> None:
    # The largest of nothing is an error of onnxruntime.
    file = write(
        tmp_path / "a.onnx",
        [node("ReduceMax", ["hits"], "top"), node("Sub", ["hits", "top"])],
        outputs=(("answer", TensorProto.FLOAT, ["N", 3]),),
    )
    stage = configured(file, dims=[-1, 3])
    assert ask(stage, INPUT__0=hits(0)).shape == (0, 3)
    assert ask(stage, INPUT__0=hits(4)).shape == (4, 3)


def fussy(path: Path) -> Path:
    """Write a network of its input, which onnxruntime refuses for 4 hits or more: there is no hit 3 for three."""
    return write(
        path,
        [node("Shape", ["hits"], "size"), node("Slice", ["size", "from", "to"], "n"),
         node("Sub", ["n", "three"], "over"), node("Max", ["over", "none"], "far"),
         node("Neg", ["far"], "back"), node("Sub", ["back", "one"], "last"),
         node("Gather", ["marks", "last"], "mark"), node("Mul", ["hits", "mark"])],
        outputs=(("answer", TensorProto.FLOAT, ["N", 3]),),
        constants={
            "from": np.array([0]), "to": np.array([1]), "three": np.array([3]), "none": np.array([0]),
            "one": np.array([1]), "marks": np.ones(1, np.float32),
        },
    )  # fmt: skip


def test_what_onnxruntime_raises_is_one_line_of_that_request_alone(tmp_path: Path) -> None:
    stage = configured(fussy(tmp_path / "a.onnx"), dims=[-1, 3])
    good, bad = triton_api.Request(INPUT__0=hits(3)), triton_api.Request(INPUT__0=hits(4))
    first, second, third = stage.execute([good, bad, good])
    assert not first.has_error() and not third.has_error()
    said = second.error().message()
    assert said.startswith("network: RuntimeError: ") and "Gather" in said and "\n" not in said and "/" not in said[:40]
    with pytest.raises(Refused, match=r"^network: RuntimeError: .*Gather"):
        ask(stage, INPUT__0=hits(4))
    assert ask(stage, INPUT__0=hits(3)).tolist() == hits(3).tolist()


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"INPUT__0": np.full((2, 3), np.nan, np.float32)}, "INPUT__0 has a NaN or an infinity in row 0"),
        ({"INPUT__0": np.zeros((2, 4), np.float32)}, "INPUT__0 has shape [2, 4]; expected [N, 3]"),
        ({"INPUT__0": np.zeros((2, 3))}, "INPUT__0 is float64; expected float32"),
        ({"INPUT__0": hits(2), "INPUT__1": np.full((2, 1), 2)}, "INPUT__1 has hit numbers from 2 to 2"),
        ({"INPUT__0": hits(2), "INPUT__1": np.full((2, 1), -1)}, "INPUT__1 has hit numbers from -1 to -1"),
        ({"INPUT__0": hits(2), "INPUT__1": np.zeros((3, 1), np.int64)}, "INPUT__1 has shape [3, 1]; expected [2, E]"),
    ],
)
def test_bad_input_never_reaches_the_network(tmp_path: Path, tensors: dict, says: str) -> None:
    tensors = {"INPUT__1": edges_of(2, 1)} | tensors
    stage = configured(edge_network(tmp_path / "g.onnx"), dims=[-1, 1], inputs=TWO)
    with pytest.raises(Refused) as error:
        ask(stage, **tensors)
    assert str(error.value).startswith(f"network: {says}")


def a_file(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def torn(path: Path, keep: Callable[[int], int]) -> Path:
    content = embedding(path).read_bytes()
    return a_file(path, content[: keep(len(content))])


def answer_of(kind: int, shape: list) -> tuple:
    return (("answer", kind, shape),)


F, D, H = TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16
#: Files that no embedding `[N, 8]` is, by what is said of them.
BAD = {
    "missing": (lambda p: p, "cannot be read: No such file"),
    "pointer": (lambda p: a_file(p, POINTER), "is a Git LFS pointer, not the file itself; fetch its content with 'git"),
    "empty": (lambda p: a_file(p, b""), "is empty"),
    "text": (lambda p: a_file(p, b"weights"), "is not an ONNX file"),
    "one byte": (lambda p: a_file(p, b"\x08"), "is not an ONNX file"),
    "head alone": (lambda p: a_file(p, b"\x08\x08"), "is not a usable ONNX file: "),
    "torn": (lambda p: torn(p, lambda n: n // 2), "is not a usable ONNX file: Protobuf parsing failed"),
    "last byte": (lambda p: torn(p, lambda n: n - 1), "is not a usable ONNX file: Protobuf parsing failed"),
    "edges": (edge_network, "takes hits float32 [N, 3], edges int64 [2, E]; expected hits float32 [N, 3]"),
    "no input": (
        lambda p: embedding(p, inputs=(), constants={"W": WEIGHTS, "hits": hits(3)}),
        "takes nothing; expected hits float32 [N, 3]",
    ),
    "double": (
        lambda p: embedding(
            p,
            inputs=(("hits", D, ["N", 3]),),
            outputs=answer_of(D, ["N", 8]),
            constants={"W": WEIGHTS.astype(np.float64)},
        ),
        "takes hits float64 ['N', 3]; expected hits float32 [N, 3]".replace("'", ""),
    ),
    "four features": (
        lambda p: embedding(p, inputs=(("hits", F, ["N", 4]),), constants={"W": np.ones((4, 8), np.float32)}),
        "takes hits as [N, 4]; expected hits float32 [N, 3]",
    ),
    "rank three": (
        lambda p: embedding(p, inputs=(("hits", F, ["B", "N", 3]),), outputs=answer_of(F, ["B", "N", 8])),
        "takes hits as [B, N, 3]; expected hits float32 [N, 3]",
    ),
    "fixed size": (
        lambda p: embedding(p, inputs=(("hits", F, [100, 3]),), outputs=answer_of(F, [100, 8])),
        "takes 100 hits alone (hits); export it with that size left free",
    ),
    "double answer": (
        lambda p: write(p, [node("Cast", ["hits"], to=D)], outputs=answer_of(D, ["N", 3])),
        "gives answer float64 [N, 3]; expected one tensor of float32",
    ),
    "half answer": (
        lambda p: write(p, [node("Cast", ["hits"], to=H)], outputs=answer_of(H, ["N", 3])),
        "gives answer tensor(float16) [N, 3]; expected one tensor of float32",
    ),
    "two answers": (
        lambda p: write(
            p,
            [node("Neg", ["hits"]), node("Abs", ["hits"], "more")],
            outputs=(("answer", F, ["N", 3]), ("more", F, ["N", 3])),
        ),
        "gives answer float32 [N, 3], more float32 [N, 3]; expected one tensor of float32",
    ),
    "one number": (
        lambda p: write(p, [node("ReduceSum", ["hits"], keepdims=0)], outputs=answer_of(F, [])),
        "gives [] for 3 hits; expected 3 rows",
    ),
    "turned": (
        lambda p: write(
            p, [node("MatMul", ["hits", "W"], "there"), node("Transpose", ["there"])],
            outputs=answer_of(F, [8, "N"]), constants={"W": WEIGHTS},
        ),
        "gives [8, 3] for 3 hits; expected 3 rows",
    ),
    "fails": (
        lambda p: write(
            p, [node("Add", ["hits", "seven"])], outputs=answer_of(F, ["N", 3]),
            constants={"seven": np.ones((7, 3), np.float32)},
        ),
        "fails on a sample of 3 hits: ",
    ),
    "foreign operator": (lambda p: write(p, [node("Frobnicate", ["hits"])]), "export it with ONNX's own operators"),
    "new opset": (
        lambda p: embedding(p, opset=99), "take a newer onnxruntime, or export it for an older opset"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_file_that_does_not_fit_is_refused_at_configure_in_one_line(tmp_path: Path, case: str) -> None:
    make, says = BAD[case]
    file = make(tmp_path / "network.onnx")
    with pytest.raises((ValueError, OSError)) as error:
        configured(file, dims=[-1, 8])
    assert "\n" not in str(error.value) and str(error.value).startswith("network: ")
    assert says in str(error.value) or (case == "missing" and "is missing" in str(error.value))


@pytest.mark.parametrize("case", BAD)
def test_install_refuses_it_too_and_names_the_file(tmp_path: Path, case: str) -> None:
    make, says = BAD[case]
    file = make(tmp_path / "network.onnx")
    with pytest.raises(ModelError) as error:
        install(tmp_path / "out", source=SHIPPED, weights=TORCHSCRIPT | {"embed": file}, constants={})
    assert str(error.value).startswith(f"embed: {file}") and says in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_weights_in_another_file_are_refused_where_they_are_not(tmp_path: Path) -> None:
    made = onnx.load(embedding(tmp_path / "one.onnx"))
    (tmp_path / "there").mkdir()
    file = tmp_path / "there" / "two.onnx"
    onnx.save(made, file, save_as_external_data=True, location="two.data", size_threshold=0)
    with pytest.raises(ModelError, match=f"^embed: {file} .*weights are in another file: export it as"):
        install(tmp_path / "out", source=SHIPPED, weights=TORCHSCRIPT | {"embed": file}, constants={})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("dims", "inputs", "options", "says"),
    [
        ([-1, 9], ONE, {}, r"gives OUTPUT__0 as float32 \[3, 8\] for 3 hits; expected float32 \[3, 9\]"),
        ([-1, 8], TWO, {}, r"takes hits float32 \[N, 3\]; expected hits .* and edges int64"),
        ([-1, 8], [*TWO, TWO[1]], {}, "config.pbtxt has 3 inputs and 1 outputs"),
        ([-1, 8], ONE, {"threads": "0"}, "threads is '0' in config.pbtxt; use 1 or more"),
        ([-1, 8], ONE, {"threads": "many"}, "threads is 'many' in config.pbtxt; use 1 or more"),
        ([-1, 8], ONE, {"weights": "other.onnx"}, "other.onnx is missing"),
    ],
)
def test_a_configuration_that_does_not_fit_the_file_is_refused(
    tmp_path: Path, dims: list[int], inputs: list[dict], options: dict, says: str
) -> None:
    with pytest.raises((ValueError, OSError), match=f"^network: .*{says}"):
        configured(embedding(tmp_path / "e.onnx"), dims=dims, inputs=inputs, **options)


def test_an_instance_of_a_gpu_does_not_load_where_onnxruntime_has_no_cuda(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("GPU: this onnxruntime has CUDA")
    with pytest.raises(
        ValueError, match=r"^network: onnxruntime .* has no CUDAExecutionProvider for cuda:1, only"
    ) as e:
        configured(embedding(tmp_path / "e.onnx"), dims=[-1, 8], kind="GPU")
    assert "\n" not in str(e.value) and "install onnxruntime-gpu instead" in str(e.value)


# --- a repository -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The shipped networks as ONNX files."""
    return export_shipped(tmp_path_factory.mktemp("exported"))


def put(out: Path, **weights: Path) -> Installed:
    return install(out, source=SHIPPED, weights=weights, constants={})


@pytest.fixture(scope="module")
def site(exported: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository made of them, as `models install` makes it."""
    done = put(tmp_path_factory.mktemp("site") / "site", **exported)
    assert done.warnings == () and all(one.onnx for one in done.networks)
    assert [one.dims for one in done.networks] == [(-1, 8), (-1, 1), (-1,)]
    return done.path


def instances(repository: Path, model: str) -> list[tuple[int, int]]:
    return [(group.kind, group.count) for group in read_config(repository / model / CONFIG).instance_group]


def test_an_installed_network_is_a_model_of_the_python_backend(site: Path, exported: dict[str, Path]) -> None:
    assert check(site) == ()
    for name, file in exported.items():
        config = read_config(site / name / CONFIG)
        assert (config.backend, config.default_model_filename, list(config.model_warmup)) == ("python", "", [])
        assert {key: value.string_value for key, value in config.parameters.items()} == {
            "weights": "model.onnx",
            "threads": "1",
        }
        assert sorted(path.name for path in (site / name / "1").iterdir()) == ["model.onnx", "model.py"]
        assert (site / name / "1" / "model.onnx").read_bytes() == file.read_bytes()


def test_a_build_keeps_it_on_the_cpu_and_on_the_gpu(site: Path, tmp_path: Path) -> None:
    cpu = build(site, tmp_path / "cpu", device="cpu", instances=3, threads=2).path
    gpu = build(site, tmp_path / "gpu", device="gpu", instances=2, gpus=4).path
    again = build(cpu, tmp_path / "again", device="cpu").path
    for repository in (cpu, gpu, again):
        assert check(repository) == ()
        for name in TORCHSCRIPT:
            config = read_config(repository / name / CONFIG)
            assert (config.backend, config.parameters["weights"].string_value) == ("python", "model.onnx")
            assert "OnnxStage" in (repository / name / "1" / "model.py").read_text()
    for name in TORCHSCRIPT:
        assert read_config(cpu / name / CONFIG).parameters["threads"].string_value == "2"
        assert instances(cpu, name) == [(ModelInstanceGroup.KIND_CPU, 3)]
        assert instances(gpu, name) == [(ModelInstanceGroup.KIND_GPU, 2)]  # on each of the GPUs


def test_one_onnx_file_among_torchscript(exported: dict[str, Path], tmp_path: Path) -> None:
    built = build(SHIPPED, tmp_path / "built", device="cpu").path
    for repository in (tmp_path / "new", built):
        weights = TORCHSCRIPT if not repository.exists() else {}
        out = put(repository, **weights | {"filter": exported["filter"]}).path
        assert check(out) == ()
        event = hits(200)
        assert load_tracker(out)(event).tolist() == load_tracker(SHIPPED)(event).tolist()
    assert read_config(tmp_path / "new/gnn" / CONFIG).backend == "pytorch"
    put(built, filter=exported["filter"])  # a second time


def test_torchscript_in_the_place_of_onnx_is_refused(site: Path) -> None:
    before = (site / "gnn" / CONFIG).read_bytes()
    with pytest.raises(ModelError, match=r"gnn of this repository runs an ONNX file, .* install into a new repository"):
        put(site, gnn=TORCHSCRIPT["gnn"])
    assert (site / "gnn" / CONFIG).read_bytes() == before and (site / "gnn/1/model.onnx").is_file()


def test_the_trial_refuses_onnx_networks_that_find_nothing(exported: dict[str, Path], tmp_path: Path) -> None:
    same = write(
        tmp_path / "same.onnx",
        [node("MatMul", ["hits", "W"])],
        constants={"W": np.zeros((3, 8), np.float32)},
    )
    with pytest.raises(ModelError, match="maps every hit to the same point"):
        put(tmp_path / "out", **exported | {"embed": same})
    with pytest.raises(ModelError, match=r"filter: .*step.onnx (scores pairs|lets|tells|gives|seems)"):
        put(tmp_path / "out", **exported | {"filter": edge_network(tmp_path / "step.onnx")})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda file: file.unlink(), "1/model.onnx is missing"),
        (lambda file: file.write_bytes(b""), "1/model.onnx is empty"),
        (lambda file: file.write_bytes(POINTER), "1/model.onnx is a Git LFS pointer, not the file itself"),
    ],
    ids=["missing", "empty", "pointer"],
)
def test_check_finds_what_is_wrong_with_the_file(site: Path, tmp_path: Path, spoil: Callable, says: str) -> None:
    repository = Path(shutil.copytree(site, tmp_path / "site"))
    spoil(repository / "gnn/1/model.onnx")
    assert [(finding.model, finding.what) for finding in check(repository) if finding.model == "gnn"] == [("gnn", says)]
    with pytest.raises(ModelError, match=says):
        build(repository, tmp_path / "built", device="cpu")


def test_check_finds_another_file_than_the_fused_model_would_run(site: Path, tmp_path: Path) -> None:
    repository = Path(shutil.copytree(site, tmp_path / "site"))
    shutil.copyfile(TORCHSCRIPT["gnn"], repository / "gnn/1/model.pt")
    (finding,) = check(repository)
    assert finding.what == "it runs 1/model.pt of gnn, but Triton serves 1/model.onnx"


@pytest.mark.parametrize(
    ("device", "packages", "lacks"),
    [
        ("cpu", {"numpy": "1.26.4"}, "onnxruntime"),
        ("cpu", {"numpy": "1.26.4", "onnxruntime": "1.20.0"}, ""),
        ("cpu", {"numpy": "2.1.0", "onnxruntime": "1.20.0"}, "numpy 2.1.0"),
        ("gpu", {"numpy": "1.26.4", "onnxruntime": "1.20.0"}, "onnxruntime-gpu"),
        ("gpu", {"numpy": "1.26.4", "onnxruntime-gpu": "1.20.0"}, ""),
    ],
)
def test_check_finds_what_a_packed_environment_lacks(
    site: Path, tmp_path: Path, device: str, packages: dict[str, str], lacks: str
) -> None:
    environment = tmp_path / "environment"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin/activate").write_text("")
    (environment / MANIFEST).write_text(json.dumps({"packages": packages | {"torch": "2.4", "cupy-cuda12x": "13"}}))
    repository = build(site, tmp_path / "built", device=device, environment=environment).path
    found = {one.model: one.what for one in check(repository)}
    if not lacks:
        assert found == {}
        return
    assert all(lacks in found[name] for name in TORCHSCRIPT)
    assert ("exatrkx_fused" in found) == lacks.startswith("onnxruntime")


def without_onnxruntime(*words: object, cwd: Path):
    """Run the command where onnxruntime cannot be imported."""
    code = "import sys; sys.modules['onnxruntime'] = None; from exatrkx_hpc.__main__ import main; main()"
    return run([sys.executable, "-c", code, *map(str, words)], cwd=cwd, timeout=60)


@pytest.mark.slow
def test_without_onnxruntime_the_command_says_what_to_install(
    site: Path, exported: dict[str, Path], tmp_path: Path
) -> None:
    words = [part for name, path in exported.items() for part in (f"--{name}", path)]
    said = without_onnxruntime("models", "install", *words, "--out", "mine", cwd=tmp_path)
    assert "an ONNX network needs onnxruntime" in complaint(said, 3) and "'exatrkx-hpc[onnx]'" in said.stderr
    assert list(tmp_path.iterdir()) == []
    code = (
        "import sys; sys.modules['onnxruntime'] = None; from pathlib import Path\n"
        "from exatrkx_hpc.models.pipeline import load_tracker\n"
        "from exatrkx_hpc.base.errors import MissingComponent\n"
        "try: load_tracker(Path(sys.argv[1]))\n"
        "except MissingComponent as error: print(error)"
    )
    said = run([sys.executable, "-c", code, str(site)], timeout=60)
    assert said.stdout.strip() == "tracks without a server need onnxruntime; pip install 'exatrkx-hpc[onnx]'"


def test_the_command_takes_onnx_by_content_not_by_name(exported: dict[str, Path], tmp_path: Path) -> None:
    words = []
    for name, path in exported.items():
        shutil.copyfile(path, tmp_path / f"{name}.pt")
        words += [f"--{name}", f"{name}.pt"]
    shutil.copyfile(TORCHSCRIPT["gnn"], tmp_path / "torch.onnx")
    done = exatrkx_hpc("models", "install", *words, "--gnn", "torch.onnx", "--out", "mine", "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert [one["onnx"] for one in json.loads(done.stdout)["networks"]] == [True, True, False]
    assert (tmp_path / "mine/gnn/1/model.pt").is_file()


def test_the_pipeline_without_a_server_finds_the_same_tracks(site: Path, tmp_path: Path) -> None:
    ours, shipped = load_pipeline(site), Pipeline.load(SHIPPED)
    for n in (0, 1, 2, 400):
        here, there = ours.stages(hits(n)), shipped.stages(hits(n))
        np.testing.assert_allclose(here.embedding, there.embedding, atol=1e-4)
        assert here.labels.tolist() == there.labels.tolist()
    other = Path(shutil.copytree(site, tmp_path / "other"))
    edge_network(other / "gnn/1/model.onnx", rank=1)
    assert pipeline_digest(other) != pipeline_digest(site)
    (other / "gnn/1/model.onnx").write_bytes(b"\x08\x08 torn")
    with pytest.raises(ModelError, match=r"gnn/1/model.onnx is not a usable ONNX file: Protobuf parsing failed"):
        load_pipeline(other)


# --- a real Triton ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(site: Path, triton, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """A server of the whole repository, and of one network that onnxruntime refuses for 4 hits."""
    work_dir = tmp_path_factory.mktemp("server")
    repository = build(site, work_dir / "repository", device="cpu").path
    shutil.copytree(repository / "embed", repository / "fussy")
    fussy(repository / "fussy/1/model.onnx")

    def change(config) -> None:
        config.name = "fussy"
        config.output[0].dims[:] = [-1, 3]

    edit(repository, "fussy", change)
    with running_triton(repository, work_dir, deadline=180) as running:
        yield running


@pytest.fixture(scope="module")
def infer(server: RunningTriton) -> Iterator[Callable[..., np.ndarray]]:
    """`infer(model, TENSOR=array, ...)` returns the model's one output."""
    with InferenceServerClient(server.grpc) as client:

        def call(model: str, **tensors: np.ndarray) -> np.ndarray:
            inputs = []
            for name, array in tensors.items():
                inputs.append(InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
                inputs[-1].set_data_from_numpy(array)
            output = "LABELS" if "FEATURES" in tensors else "OUTPUT__0"
            return client.infer(model, inputs, client_timeout=60).as_numpy(output)

        yield call


@pytest.mark.triton
@pytest.mark.parametrize("n", [0, 1, 2, 400])
def test_triton_answers_as_onnxruntime_does(infer: Callable, exported: dict[str, Path], site: Path, n: int) -> None:
    sessions = {
        name: onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for name, file in exported.items()
    }
    here = load_pipeline(site).stages(hits(n))
    answer = infer("embed", INPUT__0=hits(n))
    assert (answer.dtype, answer.shape) == (np.float32, (n, 8))
    if n:
        np.testing.assert_allclose(answer, sessions["embed"].run(None, {"hits": hits(n)})[0], atol=1e-5)
    for name, edges, tail in (("filter", here.candidates, (1,)), ("gnn", here.edges, ())):
        answer = infer(name, INPUT__0=hits(n), INPUT__1=edges)
        assert (answer.dtype, answer.shape) == (np.float32, (edges.shape[1], *tail))
        if edges.size:
            expected = sessions[name].run(None, {"hits": hits(n), "edges": edges})[0]
            np.testing.assert_allclose(answer, expected, atol=1e-3)
    for model in ("exatrkx", "exatrkx_fused"):
        labels = infer(model, FEATURES=hits(n))
        assert labels.tolist() == here.labels.tolist()


@pytest.mark.triton
def test_in_triton_a_failure_is_one_line_too_and_the_server_lives(infer: Callable, server: RunningTriton) -> None:
    for says, tensor in (("RuntimeError: ", hits(4)), ("INPUT__0 has a NaN", np.full((2, 3), np.nan, np.float32))):
        with pytest.raises(InferenceServerException) as error:
            infer("fussy", INPUT__0=tensor)
        told = RequestFailed("INTERNAL", error.value.message()).message  # without Triton's own words
        assert told.startswith(f"fussy: {says}") and "\n" not in told
        assert infer("fussy", INPUT__0=hits(3)).tolist() == hits(3).tolist()
    assert server.is_ready()


@pytest.mark.triton
@pytest.mark.usefixtures("triton")
@pytest.mark.parametrize("case", ["torn", "no onnxruntime"])
def test_triton_does_not_load_what_cannot_run_and_its_log_says_why(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    built = build(site, tmp_path / "built", device="cpu").path
    shutil.copytree(built / "gnn", tmp_path / "repository/gnn")
    if case == "torn":
        file = tmp_path / "repository/gnn/1/model.onnx"
        file.write_bytes(file.read_bytes()[:5000])
        says = "gnn: .*model.onnx is not a usable ONNX file: Protobuf parsing failed; copy or export it again"
    else:
        (tmp_path / "first").mkdir()
        (tmp_path / "first/onnxruntime.py").write_text("raise ImportError('libonnxruntime.so: no such file')")
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'first'}:{os.environ.get('PYTHONPATH', '')}")
        says = r"gnn: an ONNX network needs onnxruntime \(libonnxruntime.so: no such file\); put it into the models'"
    with pytest.raises(DidNotStart, match=says), running_triton(tmp_path / "repository", tmp_path):
        pass
