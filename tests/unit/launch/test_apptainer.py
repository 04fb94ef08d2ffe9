"""A farm in apptainer, run by the embedded scheduler with a fake apptainer as strict as the real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from paths import FAKES
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.process import run
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.fleet.members.record import read_records

pytestmark = pytest.mark.slow


APPTAINER = str(FAKES / "apptainer")


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image, and the fake apptainer first on PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "apptainer").symlink_to(APPTAINER)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    image = tmp_path / "triton 1.sif"
    image.touch()
    return image


def test_the_script_starts_a_server_in_apptainer(image, tmp_path):
    models = tmp_path / "models"
    (models / "idle" / "1").mkdir(parents=True)
    (models / "idle" / "1" / "model.py").write_text("# never loaded\n")
    (models / "idle" / "config.pbtxt").write_text('backend: "python"\n')
    values = {
        "site": "local",
        "run_root": str(tmp_path / "runs"),
        "cluster.local_address": "127.0.88.1",
        "job.nodes": 1,
        "server.engine": "apptainer",
        "server.image": str(image),
        "server.triton": str(FAKES / "fake_tritonserver"),
        "server.model_repository": str(models),
        "server.mounts": [f"{tmp_path}:/in side"],
        "server.environment": {"SAID": "a,b $HOME"},
        "server.device": "gpu",
        "server.drain": 0,
        "server.exit_timeout": 2,
    }
    job = farm.deploy(resolve(flags=values).farm)
    try:
        record = until(lambda: next(iter(read_records(job.run_dir)), None), what="a record")
        environment = Path(f"/proc/{record.pid}/environ")
        until(lambda: b"SAID=a,b $HOME" in environment.read_bytes().split(b"\0"), what="the server's variables")
        words, wanted = Path(f"/proc/{record.pid}/cmdline"), f"--model-repository={models}".encode()
        until(
            lambda: wanted in words.read_bytes().split(b"\0"), what="the server's arguments"
        )  # one exec after another
        assert (record.state, record.starts) == ("starting", 1)
    finally:
        farm.stop(job, drain=False)
    assert "FATAL" not in next(job.run_dir.logs.glob("*.log")).read_text()


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["exec", "--shm-size=1g"], "unknown flag: --shm-size=1g"),
        (["exec", "--rm"], "unknown flag: --rm"),
        (["exec", "--gpu"], "unknown flag: --gpu"),
        (["exec", "-v", "/a:/b"], "unknown shorthand flag: 'v'"),
        (["exec", "--bind", "/tmp:/b:readonly"], "not a valid bind option"),
        (["exec", "--bind", "/tmp:/b:ro:x"], "not a valid bind path"),
        (["exec", "--bind", "/nowhere/at/all:/b:ro"], "doesn't exist"),
        (["exec", "--bind", "/tmp/a,b:/b:ro"], "doesn't exist"),
        (["exec", "/nowhere.sif"], "could not open image"),
        (["start"], "unknown command"),
    ],
)
def test_the_fake_refuses_what_apptainer_refuses(words, complaint, tmp_path):
    done = run([APPTAINER, *words, str(tmp_path), "true"])
    assert done.returncode in (1, 255)
    assert complaint in done.stderr
