"""Each engine says a container in its own words."""

from __future__ import annotations

import pytest

from exatrkx_hpc.launch.containers import ENGINES, ContainerSpec
from exatrkx_hpc.launch.words import Var, Word, directive, sh
from exatrkx_hpc.values import Engine

IMAGE = "docker.io/nvcr/tritonserver:24.10"
SPEC = ContainerSpec(
    image=IMAGE,
    command=("tritonserver", ("--id=", Var("server"))),
    folders=("/models", "/python 1"),
    environment=(("PYTHONPATH", "/python 1"), ("A", "b,c $HOME")),
    modules=("gpu", "nccl"),
    shm_size="8g",
)
BARE = ContainerSpec(image=IMAGE, command=("tritonserver",), gpus=False)
ENV_INSIDE = ("env", "PYTHONPATH=/python 1", "A=b,c $HOME", *SPEC.command)


def test_none_is_the_command_itself():
    assert ENGINES["none"].argv(SPEC) == ENV_INSIDE
    assert ENGINES["none"].argv(BARE) == ("tritonserver",)
    assert ENGINES["none"].directives(SPEC) == ()


def test_shifter_names_image_and_modules_to_slurm_and_has_no_flags_for_network_memory_or_volumes():
    assert ENGINES["shifter"].directives(SPEC) == (("image", IMAGE), ("module", "gpu,nccl"))
    assert ENGINES["shifter"].directives(BARE) == (("image", IMAGE),)
    argv = ENGINES["shifter"].argv(SPEC)
    assert argv == ("shifter", "--env=PYTHONPATH=/python 1", "--env=A=b,c $HOME", *SPEC.command)
    assert ENGINES["shifter"].argv(BARE) == ("shifter", "tritonserver")


def test_podman_says_everything_itself():
    assert ENGINES["podman"].argv(SPEC) == (
        *("podman", "run", "--rm", "--name", Var("container")),
        *("--device", "nvidia.com/gpu=all"),
        *("--net", "host", "--shm-size=8g"),
        *("-v", "/models:/models:ro", "-v", "/python 1:/python 1:ro"),
        *("-e", "CUDA_VISIBLE_DEVICES", "-e", "PYTHONPATH=/python 1", "-e", "A=b,c $HOME"),
        IMAGE,
        *SPEC.command,
    )


def test_podman_hpc_has_a_flag_for_each_module():
    argv = ENGINES["podman-hpc"].argv(SPEC)
    assert argv[:7] == ("podman-hpc", "run", "--rm", "--name", Var("container"), "--gpu", "--nccl")
    assert argv[7:] == ENGINES["podman"].argv(SPEC)[7:]
    assert "--module" not in argv
    assert "--gpu" not in ENGINES["podman-hpc"].argv(BARE)


def test_only_what_podman_is_told_crosses_into_it():
    for engine in ("podman", "podman-hpc"):
        argv = ENGINES[engine].argv(SPEC)
        crossing = [argv[i + 1] for i, word in enumerate(argv) if word == "-e"]
        assert crossing == ["CUDA_VISIBLE_DEVICES", "PYTHONPATH=/python 1", "A=b,c $HOME"]
        assert not any(str(word).startswith("--env") for word in argv)


def test_apptainer_leaves_the_variables_to_env_inside():
    assert ENGINES["apptainer"].argv(SPEC) == (
        *("apptainer", "exec", "--nv"),
        *("--bind", "/models:/models:ro", "--bind", "/python 1:/python 1:ro"),
        IMAGE,
        *ENV_INSIDE,
    )
    assert ENGINES["apptainer"].argv(BARE) == ("apptainer", "exec", IMAGE, "tritonserver")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_runs_the_command_last_and_without_a_terminal(engine: Engine):
    argv = ENGINES[engine].argv(SPEC)
    assert argv[-len(SPEC.command) :] == SPEC.command
    assert not {"-it", "-i", "-t", "--tty", "--interactive"} & {word for word in argv if isinstance(word, str)}


@pytest.mark.parametrize("engine", ["none", "podman", "podman-hpc", "apptainer"])
def test_slurm_knows_of_shifter_only(engine: Engine):
    assert ENGINES[engine].directives(SPEC) == ()


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("plain", "plain"),
        ("", "''"),
        ("a b", "'a b'"),
        ("a'; echo foo", "'a'\"'\"'; echo foo'"),
        ("$HOME", "'$HOME'"),
        ("~/x", "'~/x'"),
        ("[0]=x", "'[0]=x'"),
        (Var("server"), '"${server}"'),
        (("--id=", Var("server")), '--id="${server}"'),
        (("$a ", Var("b"), "c"), "'$a '\"${b}\"c"),
    ],
)
def test_a_word_stays_one_word_for_bash(word: Word, quoted: str):
    assert sh(word) == quoted


def test_a_backslash_is_doubled_for_sbatch():
    assert directive("a\\b") == "'a\\\\b'"
    assert directive("gpu&hbm80g") == "'gpu&hbm80g'"
    assert directive("gpu") == "gpu"
