"""`models install` puts a site's networks and constants into a repository: checked, and all of them or none."""

from __future__ import annotations

import json
import shutil
import warnings
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc
from repositories import edit
from tritonclient.grpc.model_config_pb2 import ModelConfig

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ConfigError, ExatrkxError, ModelError, OutputError
from exatrkx_hpc.models.build import MARK, build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.install import RECORD, Installed, install
from exatrkx_hpc.models.pipeline import load_tracker, pipeline_settings
from exatrkx_hpc.models.repository import CONFIG, read_config
from exatrkx_hpc.models.signature import check_network
from exatrkx_hpc.tracking.scoring.agreement import same_partition
from exatrkx_hpc.tracking.simulation.synthetic import generate_event

pytestmark = pytest.mark.slow


torch = pytest.importorskip("torch")

SHIPPED = asset("model_repos/exatrkx")
NETWORKS = {name: SHIPPED / name / "1" / "model.pt" for name in ("embed", "filter", "gnn")}


class Wide(torch.nn.Module):
    """An embedding of twelve dimensions."""

    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return 20 * hits.repeat(1, 4)


class Flat(torch.nn.Module):
    """An edge network that gives one number an edge, not a row of one."""

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return 4 - 400 * (hits[edges[0], 1] - hits[edges[1], 1]).abs()


class Column(torch.nn.Module):
    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return (4 - 400 * (hits[edges[0], 1] - hits[edges[1], 1]).abs()).reshape(-1, 1)


class Squeezed(torch.nn.Module):
    """What breaks for one edge, as in the original networks."""

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return (4 - 400 * (hits[edges[0], 1:2] - hits[edges[1], 1:2]).abs()).squeeze()


class Largest(torch.nn.Module):
    """What breaks for no edge."""

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        score = 4 - 400 * (hits[edges[0], 1] - hits[edges[1], 1]).abs()
        return 4 * score / score.max()


class Double(torch.nn.Module):
    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return hits.to(torch.float64)


class Pair(torch.nn.Module):
    def forward(self, hits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return hits, hits


class Short(torch.nn.Module):
    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return hits[1:]


class NotFinite(torch.nn.Module):
    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return hits / 0.0


class Cells(torch.nn.Module):
    """Takes more features than there are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(44, 8)

    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return self.layer(hits)


class OnGpu(torch.nn.Module):
    """What a trace on a GPU leaves: a device in the code."""

    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return torch.zeros([hits.size(0), 8], device="cuda:0")


def saved(folder: Path, module: torch.nn.Module) -> Path:
    path = folder / f"{type(module).__name__}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module), str(path))
    return path


def saved_on_gpu(source: Path, path: Path) -> Path:
    """Copy a TorchScript file so that every weight says that it was saved on cuda:0."""
    before = zipfile.ZipFile(source)
    with zipfile.ZipFile(path, "w") as after:
        for info in before.infolist():
            data = before.read(info)
            if info.filename.endswith(("data.pkl", "constants.pkl")):
                data = data.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
            after.writestr(info.filename, data)
    assert any(b"cuda:0" in zipfile.ZipFile(path).read(name) for name in after.namelist() if name.endswith("data.pkl"))
    return path


def put(out: Path, constants: dict[str, float] | None = None, **weights: Path) -> Installed:
    return install(out, source=SHIPPED, weights=weights, constants=constants or {})


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SHIPPED, tmp_path / "models", ignore=shutil.ignore_patterns("__pycache__")))


def dims(repository: Path, model: str, tensor: str) -> list[int]:
    config = read_config(repository / model / CONFIG)
    return next(list(entry.dims) for entry in (*config.input, *config.output) if entry.name == tensor)


def test_a_new_repository_has_the_networks_and_the_constants(tmp_path: Path) -> None:
    flat = saved(tmp_path, Flat())
    constants = {"radius": 0.9, "max_neighbours": 300, "filter_cut": 0.1, "gnn_cut": 0.5}
    done = put(tmp_path / "deep" / "models", constants, **NETWORKS | {"filter": flat})
    assert [one.model for one in done.networks] == ["embed", "filter", "gnn"]
    assert (done.path / "filter/1/model.pt").read_bytes() == flat.read_bytes()
    missing, warning = done.warnings
    assert missing.startswith("filter: Flat.pt does not return NaN for an edge of a hit that does not exist")
    assert warning.startswith("embed and gnn are of the shipped stand-ins, not trained with filter; install --embed")
    assert asdict(pipeline_settings(done.path)) == constants | {"scores": "logits", "edge_order": "number"}
    assert check(done.path) == ()
    record = json.loads((done.path / RECORD).read_text())
    assert record["filter"] == {"file": str(flat), "sha256": done.networks[1].sha256}
    assert list((tmp_path / "deep").iterdir()) == [done.path], "something was left beside it"


def test_the_shapes_of_the_networks_go_into_the_configuration(repository: Path, tmp_path: Path) -> None:
    put(repository, embed=saved(tmp_path, Wide()), filter=saved(tmp_path, Flat()), gnn=saved(tmp_path, Column()))
    assert dims(repository, "embed", "OUTPUT__0") == dims(repository, "frnn", "INPUT0") == [-1, 12]
    assert dims(repository, "filter", "OUTPUT__0") == dims(repository, "applyfilter", "FILTER_SCORES") == [-1]
    assert dims(repository, "gnn", "OUTPUT__0") == dims(repository, "wcc", "INPUT1") == [-1, 1]
    assert check(repository) == ()


def test_what_was_saved_on_a_gpu_loads_on_the_cpu(repository: Path, tmp_path: Path) -> None:
    there = saved_on_gpu(NETWORKS["gnn"], tmp_path / "gnn.pt")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        with pytest.raises((RuntimeError, NotImplementedError)):  # what it would be without a word of where to
            torch.jit.load(str(there))
    assert check_network("gnn", there).dims == (-1,)
    put(repository, gnn=there)
    assert (repository / "gnn/1/model.pt").read_bytes() == there.read_bytes()


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def state_dict(path: Path, *, old: bool = False) -> Path:
    torch.save(Cells().state_dict(), path, _use_new_zipfile_serialization=not old)
    return path


WRONG = {
    "state_dict": ("embed", lambda f: state_dict(f / "a.pt"), "is a checkpoint of torch.save"),
    "old state_dict": ("gnn", lambda f: state_dict(f / "a.pt", old=True), "is a checkpoint of torch.save"),
    "text": ("filter", lambda f: write(f / "a.pt", b"weights"), "is neither a TorchScript nor an ONNX file"),
    "empty": ("filter", lambda f: write(f / "a.pt", b""), "is empty"),
    "missing": ("filter", lambda f: f / "a.pt", "No such file"),
    "folder": ("filter", lambda f: f, "Is a directory"),
    "cut off": (
        "gnn",
        lambda f: write(f / "a.pt", NETWORKS["gnn"].read_bytes()[:9000]),
        "is neither a TorchScript nor an ONNX file",
    ),
    "gnn as embed": ("embed", lambda _: NETWORKS["gnn"], "expected INPUT__0 float32 [N, 3]; are --embed and"),
    "embed as gnn": ("gnn", lambda _: NETWORKS["embed"], "INPUT__1 int64 [2, E]; are --embed and"),
    "features": ("embed", lambda f: saved(f, Cells()), "fails on INPUT__0 float32 [N, 3]: mat1 and mat2"),
    "double": ("embed", lambda f: saved(f, Double()), "OUTPUT__0 is float64 ["),
    "two tensors": ("embed", lambda f: saved(f, Pair()), "OUTPUT__0 is a tuple; expected one tensor"),
    "too few": ("embed", lambda f: saved(f, Short()), "; expected float32 ["),
    "not finite": ("embed", lambda f: saved(f, NotFinite()), "OUTPUT__0 has a NaN or an infinity"),
    "traced on a GPU": ("embed", lambda f: saved(f, OnGpu()), "has a hard-coded GPU device"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_is_named_and_nothing_changes(case: str, repository: Path, tmp_path: Path) -> None:
    model, make, says = WRONG[case]
    files = tmp_path / "files"
    files.mkdir()
    wrong = make(files)
    before = content(repository)
    with pytest.raises(ModelError) as caught:
        # The embedding is good and is checked first; it must not be there either.
        put(repository, {"radius": 0.5}, **{"embed": saved(tmp_path, Wide()), model: wrong})
    message = str(caught.value)
    assert message.startswith(f"{model}: {wrong}") and says in message and "\n" not in message
    assert content(repository) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["Wide.pt", "files", "models"]


@pytest.mark.parametrize(
    ("module", "says"),
    [
        (Squeezed(), "fails for 2 hit(s) and 1 edge(s)"),
        (Largest(), "fails for 2 hit(s) and 0 edge(s)"),
    ],
    ids=["squeezed", "largest"],
)
def test_what_fails_for_the_smallest_events_is_a_warning(
    repository: Path, tmp_path: Path, module: torch.nn.Module, says: str
) -> None:
    warned = put(repository, gnn=saved(tmp_path, module)).warnings
    assert any(line.startswith("gnn: ") and says in line for line in warned), warned


def test_two_edge_networks_the_other_way_round_are_a_warning(repository: Path) -> None:
    done = put(repository, filter=NETWORKS["gnn"], gnn=NETWORKS["filter"])
    assert any("are --filter and --gnn swapped?" in line for line in done.warnings)
    assert any(
        "are the same file" in line for line in put(repository, filter=NETWORKS["gnn"], gnn=NETWORKS["gnn"]).warnings
    )


@pytest.mark.parametrize(
    ("constants", "says"),
    [
        ({"radius": 0.0}, "--radius is 0"),
        ({"radius": float("inf")}, "--radius is inf"),
        ({"max_neighbours": 0}, "--max-neighbours is 0"),
        ({"filter_cut": 1.0}, "--filter-cut is 1"),
        ({"gnn_cut": float("nan")}, "--gnn-cut is nan"),
        ({}, "nothing to install"),
    ],
)
def test_constants_that_make_no_sense_are_refused(repository: Path, constants: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        put(repository, constants)


class Sigmoid(torch.nn.Module):
    """A good edge network that gives probabilities."""

    def __init__(self, name: str) -> None:
        super().__init__()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            self.network = torch.jit.load(str(NETWORKS[name]))

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(hits, edges))


@pytest.fixture
def probabilities(tmp_path: Path) -> dict[str, Path]:
    files = {}
    for name in ("filter", "gnn"):
        (tmp_path / name).mkdir()
        files[name] = saved(tmp_path / name, Sigmoid(name))
    return files


def test_probabilities_are_refused_until_they_are_said_to_be(
    repository: Path, tmp_path: Path, probabilities: dict[str, Path]
) -> None:
    before = content(repository)
    with pytest.raises(ModelError, match=r"filter: .* seems to give probabilities: .* say which with --scores"):
        put(repository, **probabilities)
    assert content(repository) == before
    put(repository, {"scores": "probabilities"}, **probabilities)
    assert check(repository) == ()
    assert pipeline_settings(repository).scores == "probabilities"
    for name in ("applyfilter", "wcc", "exatrkx_fused"):
        assert read_config(repository / name / CONFIG).parameters["scores"].string_value == "probabilities"
    hits = generate_event(np.random.default_rng(7), n_tracks=40).hits
    assert same_partition(load_tracker(repository)(hits), load_tracker(SHIPPED)(hits))


def test_stages_that_take_scores_for_different_things_are_a_fault(repository: Path) -> None:
    edit(repository, "wcc", lambda config: _set(config, "scores", "probabilities"))
    (finding,) = check(repository)
    assert finding.model == "wcc"
    assert finding.what == "wcc takes the scores for probabilities, but applyfilter for logits"
    with pytest.raises(ModelError, match="wcc takes the scores for probabilities, but applyfilter for logits"):
        pipeline_settings(repository)
    edit(repository, "applyfilter", lambda config: _set(config, "scores", "probabilities"))
    assert [finding.model for finding in check(repository)] == ["exatrkx_fused"]
    edit(repository, "exatrkx_fused", lambda config: _set(config, "scores", "odds"))
    (finding,) = check(repository)
    assert (finding.model, finding.what) == ("exatrkx_fused", "its parameter scores is 'odds'")


def _set(config: ModelConfig, name: str, value: str) -> None:
    config.parameters[name].string_value = value


OWN_STAGE = """\
import triton_python_backend_utils as pb_utils

CUT = 0.5

class TritonPythonModel:
    def execute(self, requests):
        return [pb_utils.InferenceResponse([]) for _ in requests]
"""


def test_a_constant_that_the_code_does_not_read_is_refused(repository: Path) -> None:
    (repository / "wcc/1/model.py").write_text(OWN_STAGE)
    before = content(repository)
    for constant in ({"gnn_cut": 0.5}, {"scores": "logits"}):
        with pytest.raises(ModelError, match=r"wcc does not read the parameter (cut|scores), so --.* change nothing"):
            put(repository, constant)
    assert content(repository) == before
    put(repository, {"filter_cut": 0.3})
    (repository / "wcc/1/model.py").write_text(OWN_STAGE + "# reads\nNAME = 'cut'\n")
    put(repository, {"gnn_cut": 0.5})
    assert pipeline_settings(repository).gnn_cut == 0.5


def test_one_network_among_stand_ins_is_told_in_an_old_repository_too(repository: Path, tmp_path: Path) -> None:
    said = put(repository, embed=saved(tmp_path, Wide())).warnings
    assert (
        "filter and gnn are of the shipped stand-ins, not trained with embed; install --filter and --gnn of"
        in "".join(said)
    )
    assert not any("stand-ins" in line for line in put(repository, embed=NETWORKS["embed"]).warnings)


def test_constants_alone_are_installed_too(repository: Path) -> None:
    before = content(repository)
    put(repository, {"gnn_cut": 0.5})
    after = content(repository)
    assert pipeline_settings(repository).gnn_cut == 0.5
    assert pipeline_settings(repository).filter_cut == 0.21
    assert {name for name in before if after[name] != before[name]} <= {
        "wcc/config.pbtxt",
        "exatrkx_fused/config.pbtxt",
    }


def test_a_new_repository_wants_networks_that_belong_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="also set --filter and --gnn"):
        put(tmp_path / "models", embed=NETWORKS["embed"])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("one")
    with pytest.raises(ModelError, match="is not a model repository"):
        put(tmp_path / "thesis", **NETWORKS)
    with pytest.raises((ModelError, OutputError)):
        put(tmp_path / "thesis" / "chapter.txt", **NETWORKS)
    assert content(tmp_path) == {"thesis/chapter.txt": b"one"}


def test_a_repository_with_another_version_is_refused(repository: Path) -> None:
    shutil.copytree(repository / "gnn/1", repository / "gnn/2")
    with pytest.raises(ModelError, match="gnn has the versions 1, 2"):
        put(repository, gnn=NETWORKS["gnn"])


def test_a_build_does_not_replace_what_was_installed(tmp_path: Path) -> None:
    out = tmp_path / "built"
    build(SHIPPED, out, device="cpu")
    put(out, gnn=saved(tmp_path, Flat()))
    assert not (out / MARK).exists()
    assert check(out) == ()
    with pytest.raises(ModelError, match="was not built by exatrkx-hpc"):
        build(SHIPPED, out, device="cpu")
    again = tmp_path / "again"
    build(out, again, device="cpu")
    assert (again / "gnn/1/model.pt").read_bytes() == (tmp_path / "Flat.pt").read_bytes()


def test_a_link_keeps_pointing_to_the_repository(repository: Path, tmp_path: Path) -> None:
    link = tmp_path / "current"
    link.symlink_to(repository)
    assert put(link, {"radius": 1.1}).path == repository
    assert link.is_symlink() and pipeline_settings(link).radius == 1.1


def test_every_error_is_one_of_ours(repository: Path) -> None:
    (repository / "frnn" / CONFIG).write_text("nonsense")
    with pytest.raises(ExatrkxError, match="is not a Triton model configuration"):
        put(repository, **NETWORKS)


def test_the_command(tmp_path: Path) -> None:
    words = [part for name, path in NETWORKS.items() for part in (f"--{name}", path)]
    done = exatrkx_hpc("models", "install", *words, "--radius", "1.5", "--out", "mine", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert [one["model"] for one in facts["networks"]] == ["embed", "filter", "gnn"]
    assert (facts["constants"], facts["warnings"], done.stderr) == ({"radius": 1.5}, [], "")
    refused = exatrkx_hpc("models", "install", "--embed", NETWORKS["gnn"], "--out", "mine", cwd=tmp_path)
    assert "are --embed and the other files swapped?" in complaint(refused, 7)
