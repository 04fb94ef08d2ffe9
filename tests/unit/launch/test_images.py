"""Images: pulled by setup, and then asked for, because a pull that fails may end with status 0."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
from pathlib import Path

import pytest
from command import complaint, exatrkx_hpc
from paths import FAKES
from repositories import tiny_repository

from exatrkx_hpc.base.process import Completed

pytestmark = pytest.mark.slow


NAME = "nvcr.io/nvidia/tritonserver:24.10-py3"
IMAGE = f"docker:{NAME}"
#: What a line of setup begins with.
MOMENT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


class Site:
    """A folder with a model repository and with engines first on PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        tiny_repository(folder / "models")
        self.env: dict[str, str] = {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"}

    def write(self, name: str, script: str) -> None:
        """Write a program that notes its words in the file `called`."""
        path = self.bin / name
        note = f'printf "%s\\n" "$*" >>{shlex.quote(str(self.folder))}/called'
        path.write_text(f"#!/bin/bash\n{note}\n{script}\n")
        path.chmod(0o755)

    def setup(self, engine: str, image: str = IMAGE, **variables: str):
        """Run `exatrkx-hpc setup` for the engine and the image."""
        values = {
            "RUN_ROOT": str(self.folder / "runs"),
            "CLUSTER_SCHEDULER": "slurm",
            "SERVER_ENGINE": engine,
            "SERVER_IMAGE": image,
            "SERVER_MODEL_REPOSITORY": str(self.folder / "models"),
        }
        env = {f"EXATRKX_HPC_{name}": value for name, value in values.items()}
        return exatrkx_hpc("setup", "--trust-run-root", cwd=self.folder, env={**self.env, **env, **variables})

    def called(self) -> list[str]:
        return (self.folder / "called").read_text().splitlines()


def refused(done: Completed) -> str:
    """Return the one line of the refusal, which follows what setup said of its steps."""
    *steps, last = done.stderr.splitlines()
    assert all(re.fullmatch(rf"{MOMENT} image: .*", step) for step in steps), done.stderr
    assert "ready" not in done.stdout
    return complaint(dataclasses.replace(done, stderr=last), 4)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def shifter(site: Site) -> Site:
    """With shifter's image gateway; its registry has one image."""
    for name in ("shifter", "shifterimg"):
        (site.bin / name).symlink_to(FAKES / name)
    (site.folder / "registry").write_text(f"{IMAGE}\n")
    (site.folder / "gateway").write_text("custom:mine:1\n")
    site.env |= {"FAKE_SHIFTERIMG": str(site.folder / "gateway"), "FAKE_REGISTRY": str(site.folder / "registry")}
    return site


@pytest.mark.parametrize("image", [IMAGE, NAME, f"docker://{NAME}"])
def test_shifter_pulls_an_image_by_each_of_its_names(shifter, image):
    for _ in range(2):  # safe to repeat
        done = shifter.setup("shifter", image)
        assert done.returncode == 0, done.stderr
        told = rf"{MOMENT} image: shifterimg pull {IMAGE}\n{MOMENT} image: {IMAGE}, 7f1a3c9f0e5d\n"
        assert re.search(told, done.stderr), done.stderr
    assert (shifter.folder / "gateway").read_text().count(IMAGE) == 1


def test_a_pull_that_fails_with_status_0_is_no_setup(shifter):
    done = shifter.setup("shifter", "docker:nvcr.io/nvidia/tritonserver:99")
    said = refused(done)
    assert "the image gateway has no docker:nvcr.io/nvidia/tritonserver:99, after a pull that said: 20" in said
    assert "status: FAILURE; check the name in server.image" in said
    assert "\x1b" not in said and "PULLING" not in said, "what the terminal would have written over"
    assert "ready" not in done.stdout


def test_a_gateway_that_is_dead_fails_the_setup_in_its_words(shifter):
    done = shifter.setup("shifter", FAKE_GATEWAY="dead")
    assert "shifterimg pull " in (said := refused(done))
    assert "failed to contact the image gateway" in said


def test_an_image_of_the_gateways_own_is_asked_for_and_not_pulled(shifter):
    done = shifter.setup("shifter", "custom:mine:1")
    assert (done.returncode, "pull" in done.stderr) == (0, False), done.stderr
    assert "image: custom:mine:1, 7f1a3c9f0e5d" in done.stderr
    said = refused(shifter.setup("shifter", "custom:other:1"))
    assert said.endswith(
        "the image gateway has no custom:other:1; correct server.image; 'shifterimg images' lists the images"
    )


ROW = f"{NAME.rpartition(':')[0]}  24.10-py3  1c6b2f1a9d3e  2 days ago  14.1 GB"


@pytest.mark.parametrize("image", [NAME, IMAGE, f"docker://{NAME}"])
def test_podman_hpc_pulls_and_shows_the_image_to_the_nodes(site, image):
    site.write("podman-hpc", f"[ $1 != images ] || echo '{ROW}  true'")
    done = site.setup("podman-hpc", image)
    assert done.returncode == 0, done.stderr
    assert site.called() == [f"pull {NAME}", f"images --noheading {NAME}"]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (f"[ $1 != images ] || echo '{ROW}  false'", f"{NAME} exists only on this machine"),
        ("true", f"podman-hpc has no {NAME}"),
        ("echo 'no space left' >&2; [ $1 = images ]", "podman-hpc pull"),
    ],
)
def test_a_migration_that_says_nothing_of_its_failure_is_no_setup(site, script, words):
    site.write("podman-hpc", script)
    assert words in refused(site.setup("podman-hpc"))


def test_podman_that_has_no_image_after_its_pull(site):
    site.write("podman", "[ $1 != image ]")
    assert f"podman has no {NAME}" in refused(site.setup("podman"))


def test_an_image_file_of_apptainers_that_is_not_there(site):
    (site.bin / "apptainer").symlink_to(FAKES / "apptainer")
    assert "triton.sif does not exist; create it with 'apptainer pull" in refused(
        site.setup("apptainer", "/nowhere/triton.sif")
    )
    assert site.setup("apptainer").returncode == 0, "each server fetches it"
