"""An environment is packed with its interpreter, works wherever it lies, and what would not work is refused."""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from repositories import edit
from triton_helper import running_triton
from tritonclient.grpc import InferenceServerClient, InferInput

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.base.process import run
from exatrkx_hpc.models.build import build
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.pack_env import MANIFEST, pack_environment

pytestmark = pytest.mark.slow


MODEL = """\
import sys

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        text = np.array([sys.prefix, np.__file__], dtype=object)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("WHERE", text)]) for _ in requests]
"""
CONFIG = """\
backend: "python"
input [ { name: "ANY" data_type: TYPE_FP32 dims: [ 1 ] } ]
output [ { name: "WHERE" data_type: TYPE_STRING dims: [ 2 ] } ]
instance_group [ { kind: KIND_CPU } ]
parameters { key: "EXECUTION_ENV_PATH" value { string_value: "%s" } }
"""


class Source:
    """A small venv with packages that are written by hand, the way pip leaves them."""

    def __init__(self, folder: Path) -> None:
        done = run([sys.executable, "-m", "venv", "--without-pip", str(folder)])
        assert done.returncode == 0, done.complaint
        self.python = folder / "bin" / "python"
        (self.site,) = folder.glob("lib/python*/site-packages")

    def add(self, name: str, version: str = "1.0", *, requires: tuple[str, ...] = (), code: str = "", **files: str):
        info = f"{name}-{version}.dist-info"
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        texts = {
            f"{name.replace('-', '_')}/__init__.py": code,
            f"{info}/METADATA": "\n".join([*lines, *(f"Requires-Dist: {one}" for one in requires)]) + "\n",
            **files,
        }
        for path, text in texts.items():
            (self.site / path).parent.mkdir(exist_ok=True)
            (self.site / path).write_text(text)
        record = "".join(f"{path},,\n" for path in [*texts, f"{info}/RECORD", "../../../bin/program"])
        (self.site / info / "RECORD").write_text(record)


@pytest.fixture
def source(tmp_path) -> Source:
    return Source(tmp_path / "source")


def python_in(environment: Path, code: str) -> str:
    """Run code as Triton would run a model: through the environment's activate, and with nothing else."""
    command = 'source "$1/bin/activate" && exec python3 -I -c "$2"'
    done = run(["env", "-i", "PATH=/usr/bin:/bin", "bash", "-c", command, "bash", str(environment), code])
    assert done.returncode == 0, done.complaint
    return done.stdout.strip()


def test_an_environment_works_elsewhere_and_without_its_source(source, tmp_path):
    source.add("tiny-model", requires=("helper>=1", 'missing; sys_platform == "win32"', 'other; extra == "more"'))
    source.add("helper", "2.5", code="value = 42")
    source.add("other")
    packed = pack_environment(tmp_path / "packed", python=source.python, packages=["Tiny_Model"])
    assert [(one.name, one.version) for one in packed.packages] == [("helper", "2.5"), ("tiny-model", "1.0")]
    assert packed.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.rmtree(tmp_path / "source")
    moved = (tmp_path / "packed").rename(tmp_path / "elsewhere")
    text = python_in(moved, "import sys, tiny_model, helper, ssl, ctypes; print(sys.prefix, helper.value)")
    assert text == f"{moved} 42"
    assert "ModuleNotFoundError" in python_in(
        moved, "import importlib.util as u; print('ModuleNotFoundError' if not u.find_spec('other') else '')"
    )
    assert json.loads((moved / MANIFEST).read_text())["packages"] == {"helper": "2.5", "tiny-model": "1.0"}
    assert moved.stat().st_mode & 0o777 == 0o755


def test_nothing_of_the_environment_leads_out_of_it(source, tmp_path):
    source.add("tiny")
    pack_environment(tmp_path / "packed", python=source.python, packages=["tiny"])
    links = [path for path in (tmp_path / "packed").rglob("*") if path.is_symlink()]
    assert links
    assert all(path.readlink() == Path(path.readlink().name) for path in links)
    folders = python_in(tmp_path / "packed", "import sys; print(*sys.path)").split()
    assert folders
    assert all(Path(folder).is_relative_to(tmp_path / "packed") for folder in folders)


def test_an_archive_holds_the_same(source, tmp_path):
    source.add("tiny", code="value = 42")
    pack_environment(tmp_path / "packed.tar.gz", python=source.python, packages=["tiny"])
    with tarfile.open(tmp_path / "packed.tar.gz") as archive:
        archive.extractall(tmp_path / "out", filter="tar")
    assert python_in(tmp_path / "out", "import tiny; print(tiny.value)") == "42"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "packed.tar.gz", "source"]
    pack_environment(tmp_path / "packed.tar.gz", python=source.python, packages=["tiny"])  # once more
    foreign = tmp_path / "thesis.tar.gz"
    packed = (tmp_path / "packed.tar.gz").read_bytes()
    with tarfile.open(tmp_path / "empty.tar.gz", "w:gz"):
        pass
    empty = (tmp_path / "empty.tar.gz").read_bytes()
    damaged = (b"", b"thesis", empty, packed[:50], packed[:20] + b"\xff" * 200, gzip.compress(b"thesis" * 500))
    for content in damaged:
        foreign.write_bytes(content)
        before = foreign.read_bytes()
        with pytest.raises(ModelError, match=r"thesis\.tar\.gz exists and was not packed by exatrkx-hpc"):
            pack_environment(foreign, python=source.python, packages=["tiny"])
        assert foreign.read_bytes() == before


def test_what_was_packed_here_is_replaced_and_nothing_else(source, tmp_path):
    source.add("tiny", code="value = 1")
    for value in (1, 2):
        source.add("tiny", code=f"value = {value}")
        pack_environment(tmp_path / "packed", python=source.python, packages=["tiny"])
    assert python_in(tmp_path / "packed", "import tiny; print(tiny.value)") == "2"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis").write_text("")
    with pytest.raises(ModelError, match="was not packed by exatrkx-hpc"):
        pack_environment(tmp_path / "mine", python=source.python, packages=["tiny"])
    assert (tmp_path / "mine" / "thesis").exists()


def test_a_package_that_does_not_work_leaves_the_old_environment(source, tmp_path):
    source.add("tiny", code="value = 1")
    pack_environment(tmp_path / "packed", python=source.python, packages=["tiny"])
    source.add("tiny", code="import nowhere")
    with pytest.raises(ModelError, match=r"does not work: .*No module named 'nowhere'"):
        pack_environment(tmp_path / "packed", python=source.python, packages=["tiny"])
    assert python_in(tmp_path / "packed", "import tiny; print(tiny.value)") == "1"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["packed", "source"]


def test_what_cannot_be_packed_is_refused_in_one_line(source, tmp_path):
    def refused(match: str, *, packages: tuple[str, ...] = ("numpy",), **changes: Path) -> None:
        arguments = {"out": tmp_path / "packed", "python": source.python, **changes}
        with pytest.raises(ModelError, match=match) as caught:
            pack_environment(arguments["out"], python=arguments["python"], packages=packages)
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "packed").exists()

    refused("has no numpy; install it with '.*/python -m pip install numpy'")
    source.add("numpy", "2.1.0")
    refused("has numpy 2.1.0, with which Triton's Python backend returns 0 bytes")
    source.add("linked", **{"__editable__.linked.pth": "/somewhere"})
    refused("linked is installed as a link to its sources", packages=("linked",))
    refused("cannot pack .*", python=Path("/bin/false"))
    refused("contains ' '", out=tmp_path / "a b")
    (tmp_path / "file").write_text("")
    source.add("tiny")
    refused("cannot write .*/file/below: File exists", out=tmp_path / "file" / "below", packages=("tiny",))


def test_numpy_2_goes_with_torch_and_check_names_the_models_that_cannot_use_it(source, tmp_path, request):
    source.add("numpy", "2.1.0")
    source.add("torch", "2.13")
    pack_environment(tmp_path / "packed", python=source.python, packages=["numpy", "torch"])
    shipped = request.config.rootpath / "model_repos" / "exatrkx"
    built = build(shipped, tmp_path / "models", device="cpu", environment=tmp_path / "packed").path
    findings = check(built)
    assert {finding.model for finding in findings} == {"frnn", "applyfilter", "wcc"}
    assert findings[0].what == (
        f"the Python environment {tmp_path}/packed has numpy 2.1.0, with which Triton 2.51 reads zeros and returns "
        "0 bytes"
    )
    for name in ("frnn", "applyfilter", "wcc"):
        edit(built, name, lambda config: setattr(config.parameters["numpy2"], "string_value", "allow"))
    assert check(built) == ()


@pytest.mark.parametrize(("device", "lacks"), [("cpu", {"torch"}), ("gpu", {"torch", "CuPy"})])
def test_check_names_what_a_packed_environment_lacks(source, tmp_path, request, device, lacks):
    source.add("numpy", "1.26.4")
    pack_environment(tmp_path / "packed", python=source.python, packages=["numpy"])
    shipped = request.config.rootpath / "model_repos" / "exatrkx"
    built = build(shipped, tmp_path / "models", device=device, environment=tmp_path / "packed").path
    found = {finding.what.rpartition(" ")[2]: finding for finding in check(built) if finding.model == "exatrkx_fused"}
    assert found.keys() == lacks
    assert all(finding.remedy.endswith(", or build with --no-fused") for finding in found.values())
    without = build(shipped, tmp_path / "other", device=device, environment=tmp_path / "packed", fused=False).path
    assert {finding.model for finding in check(without)} == ({"embed", "filter", "gnn"} if device == "cpu" else set())


@pytest.mark.triton
@pytest.mark.usefixtures("triton")
def test_triton_runs_a_model_in_a_packed_folder_and_in_a_packed_archive(tmp_path):
    repository = tmp_path / "models"
    for name in ("packed", "packed.tar.gz"):
        pack_environment(tmp_path / name, python=Path(sys.executable), packages=["numpy"])
        model = repository / name.replace(".", "_")
        (model / "1").mkdir(parents=True)
        (model / "1" / "model.py").write_text(MODEL)
        (model / "config.pbtxt").write_text(CONFIG % (tmp_path / name))
    tensor = InferInput("ANY", [1], "FP32")
    tensor.set_data_from_numpy(np.zeros(1, dtype=np.float32))
    with (
        running_triton(repository, tmp_path) as server,
        InferenceServerClient(server.grpc) as client,
    ):
        for model in ("packed", "packed_tar_gz"):
            answer = client.infer(model, [tensor]).as_numpy("WHERE")
            prefix, file = (Path(text.decode()) for text in answer)
            assert file.is_relative_to(prefix)
            assert prefix != Path(sys.prefix)
            assert prefix == tmp_path / "packed" or model == "packed_tar_gz"


def test_a_packed_environment_is_one_that_models_build_accepts(source, tmp_path, request):
    source.add("tiny")
    pack_environment(tmp_path / "packed", python=source.python, packages=["tiny"])
    built = build(
        request.config.rootpath / "model_repos" / "exatrkx",
        tmp_path / "models",
        device="cpu",
        environment=tmp_path / "packed",
    )
    assert f'"{tmp_path}/packed"' in (built.path / "frnn" / "config.pbtxt").read_text()
