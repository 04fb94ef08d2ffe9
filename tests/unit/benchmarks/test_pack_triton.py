"""The packed Triton: it is small enough to be brought along, and serves the fused model from where it is unpacked."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from paths import ROOT

pytest.importorskip("torch")

from gpu_lane import triton as packed_triton

from exatrkx_hpc.base.process import run

pytestmark = pytest.mark.slow


SCRIPT = str(ROOT / "benchmarks" / "pack_triton.sh")
LANE = str(ROOT / "benchmarks" / "gpu.py")
PACKING = {**os.environ, "PYTHON": sys.executable}


@pytest.mark.triton
@pytest.mark.usefixtures("triton")
def test_the_packed_server_serves_the_fused_model(tmp_path: Path):
    tar = tmp_path / "triton.tar.gz"
    done = run([SCRIPT, str(tar)], env=PACKING, timeout=200)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{tar}: ")
    assert tar.stat().st_size < 60 << 20
    argv = [sys.executable, LANE, "--device", "cpu", "--quick", "--only", "triton", "--triton", str(tar)]
    done = run(argv, env=dict(os.environ), timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    line, last = map(json.loads, done.stdout.splitlines())
    assert (line["instances"], line["ok"], line["hits_in_other_tracks"]) == (2, True, 0)
    assert "FEATURES has a NaN" in line["invalid_says"]
    assert line["events_per_s"] > 0
    assert line["balanced_events_per_s"] > 0
    assert last["triton_answers"] is True


@pytest.mark.triton
@pytest.mark.usefixtures("triton")
def test_a_pack_that_is_too_large_is_not_kept(tmp_path: Path):
    (tmp_path / "gzip").write_text("#!/bin/sh\nexec cat\n")
    (tmp_path / "gzip").chmod(0o755)
    tar = tmp_path / "triton.tar.gz"
    done = run([SCRIPT, str(tar)], env={**PACKING, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, timeout=200)
    assert done.returncode == 1
    assert "bytes; at most 62914560 can be brought along" in done.stderr
    assert not tar.exists()


def test_what_is_missing_is_said_in_one_line(tmp_path: Path):
    tar = tmp_path / "triton.tar.gz"
    nothing = tmp_path / "python"
    nothing.write_text("#!/bin/sh\nexit 0\n")
    nothing.chmod(0o755)
    for python, says in ((nothing, "nvidia-pytriton is not installed for"), (tmp_path / "none", "is not here")):
        done = run([SCRIPT, str(tar)], env={**PACKING, "PYTHON": str(python)})
        assert done.returncode == 1
        assert says in done.stderr
        assert done.stderr.count("\n") == 1
    assert not tar.exists()


def test_a_folder_that_is_no_pack_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no packed server; make it with benchmarks/pack_triton\.sh"):
        packed_triton.unpacked(tmp_path, tmp_path / "there")


def test_the_packed_python_finds_the_packages_of_this_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    library = tmp_path / f"python{version}" / "lib" / f"libpython{version}.so.1.0"
    (library.parent / f"python{version}").mkdir(parents=True)
    library.touch()
    # As on a machine whose Python has no shared library.
    found = packed_triton.python_environment(tmp_path, tmp_path / "links", library=None)
    assert found["PATH"].split(":")[0] == str(tmp_path / f"python{version}" / "bin")
    assert found["LD_LIBRARY_PATH"].split(":")[0] == str(library.parent)
    (file,) = library.parent.rglob("*.pth")
    assert str(Path(pytest.__file__).parents[1]) in file.read_text().splitlines()
    library.unlink()
    with pytest.raises(FileNotFoundError, match="neither this machine nor the packed server has libpython"):
        packed_triton.python_environment(tmp_path, tmp_path / "links", library=None)
