"""Each engine says a container in its own words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.config.engines import ENGINES
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.values import Engine
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.engines.table import engine_named
from exatrkx_hpc.launch.plan import engine_faults
from exatrkx_hpc.launch.words import Var, Word, directive, sh

IMAGE = "docker.io/nvcr/tritonserver:24.10"
SPEC = ContainerSpec(
    image=IMAGE,
    command=("tritonserver", ("--id=", Var("server"))),
    folders=("/models", "/python 1"),
    mounts=(("/host", "/inside"), ("/models", "/models")),
    environment=(("PYTHONPATH", "/python 1"), ("A", "b,c $HOME")),
    modules=("gpu", "nccl"),
    shm_size="8g",
)
BARE = ContainerSpec(image=IMAGE, command=("tritonserver",), gpus=False)
ENV_INSIDE = ("env", "PYTHONPATH=/python 1", "A=b,c $HOME", *SPEC.command)


def test_none_is_the_command_itself():
    assert engine_named("none").argv(SPEC) == ENV_INSIDE
    assert engine_named("none").argv(BARE) == ("tritonserver",)
    assert engine_named("none").directives(SPEC) == ()


def test_shifter_names_image_modules_and_volumes_to_slurm_and_has_no_flags_for_network_or_memory():
    volume = ("volume", "/host:/inside:ro")  # what keeps its place is not mounted
    assert engine_named("shifter").directives(SPEC) == (("image", f"docker:{IMAGE}"), ("module", "gpu,nccl"), volume)
    two = replace(SPEC, mounts=(("/a", "/b"), ("/c", "/d")))
    assert dict(engine_named("shifter").directives(two))["volume"] == "/a:/b:ro;/c:/d:ro"
    assert engine_named("shifter").directives(BARE) == (("image", f"docker:{IMAGE}"),)
    argv = engine_named("shifter").argv(SPEC)
    assert argv == ("shifter", "--env=PYTHONPATH=/python 1", "--env=A=b,c $HOME", *SPEC.command)
    assert engine_named("shifter").argv(BARE) == ("shifter", "tritonserver")


def test_shifter_is_told_the_same_by_variables_where_no_script_of_a_job_can():
    exports = dict(engine_named("shifter").exports(SPEC))
    said = {
        "SHIFTER_IMAGEREQUEST": f"docker:{IMAGE}",
        "SHIFTER_MODULE": "gpu,nccl",
        "SHIFTER_VOLUME": "/host:/inside:ro",
    }
    assert exports == said
    assert dict(engine_named("shifter").exports(BARE)) == {"SHIFTER_IMAGEREQUEST": f"docker:{IMAGE}"}
    assert not any(
        engine_named(engine).exports(SPEC) or engine_named(engine).foreign()
        for engine in ENGINES
        if engine != "shifter"
    )


#: One name of an image, however a person writes it, and what each engine knows it by.
NAMES = [
    ("nvcr.io/a/b:1", "docker:nvcr.io/a/b:1", "nvcr.io/a/b:1", "nvcr.io/a/b:1"),
    ("docker:nvcr.io/a/b:1", "docker:nvcr.io/a/b:1", "nvcr.io/a/b:1", "docker://nvcr.io/a/b:1"),
    ("docker://nvcr.io/a/b:1", "docker:nvcr.io/a/b:1", "nvcr.io/a/b:1", "docker://nvcr.io/a/b:1"),
    ("localhost:5000/a:1", "docker:localhost:5000/a:1", "localhost:5000/a:1", "localhost:5000/a:1"),
    ("custom:mine:1", "custom:mine:1", None, None),
    ("id:7f1a3c9f0e5d", "id:7f1a3c9f0e5d", None, None),
    ("local:/images/a", "local:/images/a", None, None),
    ("/images/a.sif", None, None, "/images/a.sif"),
]


@pytest.mark.parametrize("names", NAMES, ids=[names[0] for names in NAMES])
def test_each_engine_has_its_own_name_for_an_image(names):
    image, shifter, podman, apptainer = names
    spec = replace(BARE, image=image)
    if shifter is not None:
        assert dict(engine_named("shifter").directives(spec))["image"] == shifter
        assert engine_named("shifter").faults(spec) == ()
    for engine, name in (("podman", podman), ("podman-hpc", podman), ("apptainer", apptainer)):
        if name is not None:
            assert engine_named(engine).argv(spec)[-2] == name
            assert engine_named(engine).faults(spec) == ()


def test_podman_says_everything_itself():
    assert engine_named("podman").argv(SPEC) == (
        *("podman", "run", "--rm", "--replace", "--name", Var("container")),
        *("--device", "nvidia.com/gpu=all"),
        *("--net", "host", "--shm-size=8g", "--log-driver=none"),
        *("-v", "/models:/models:ro", "-v", "/python 1:/python 1:ro", "-v", "/host:/inside:ro"),
        *("-e", "CUDA_VISIBLE_DEVICES", "-e", "PYTHONPATH=/python 1", "-e", "A=b,c $HOME"),
        IMAGE,
        *SPEC.command,
    )


def test_podman_hpc_has_a_flag_for_each_module():
    argv = engine_named("podman-hpc").argv(SPEC)
    assert argv[:8] == ("podman-hpc", "run", "--rm", "--replace", "--name", Var("container"), "--gpu", "--nccl")
    assert argv[8:] == engine_named("podman").argv(SPEC)[8:]
    assert "--module" not in argv
    assert "--gpu" not in engine_named("podman-hpc").argv(BARE)


def test_only_what_podman_is_told_crosses_into_it():
    for engine in ("podman", "podman-hpc"):
        argv = engine_named(engine).argv(SPEC)
        crossing = [argv[i + 1] for i, word in enumerate(argv) if word == "-e"]
        assert crossing == ["CUDA_VISIBLE_DEVICES", "PYTHONPATH=/python 1", "A=b,c $HOME"]
        assert not any(str(word).startswith("--env") for word in argv)


def test_apptainer_leaves_the_variables_to_env_inside():
    assert engine_named("apptainer").argv(SPEC) == (
        *("apptainer", "exec", "--nv"),
        *("--bind", "/models:/models:ro", "--bind", "/python 1:/python 1:ro", "--bind", "/host:/inside:ro"),
        IMAGE,
        *ENV_INSIDE,
    )
    assert engine_named("apptainer").argv(BARE) == ("apptainer", "exec", IMAGE, "tritonserver")


@pytest.mark.parametrize("engine", ENGINES)
def test_every_engine_runs_the_command_last_and_without_a_terminal(engine: Engine):
    argv = engine_named(engine).argv(SPEC)
    assert argv[-len(SPEC.command) :] == SPEC.command
    assert not {"-it", "-i", "-t", "--tty", "--interactive"} & {word for word in argv if isinstance(word, str)}


def test_only_podmans_leave_something_to_remove():
    for engine in ("podman", "podman-hpc"):
        assert engine_named(engine).removal() == (engine, "rm", "--force", "--time", "0", "--ignore", Var("container"))
    assert not any(engine_named(engine).removal() for engine in ("none", "shifter", "apptainer"))


FULL = ContainerSpec(image="name:1", command=("tritonserver",), folders=("/models",), modules=("gpu",))
FAULTS = [
    ("none", {"mounts": (("/a", "/b"),)}, "engine none has no container, so /a cannot be mounted as /b"),
    ("shifter", {"image": ""}, "no image is set; set server.image"),
    ("shifter", {"image": "-x"}, "'-x' is not a valid image name"),
    ("shifter", {"shm_size": "1g"}, "shifter cannot set the size of /dev/shm"),
    ("shifter", {"folders": ("/var/models",)}, "shifter shows the image's own /var/models"),
    ("shifter", {"folders": ("/etc",)}, "shifter shows the image's own /etc"),
    ("shifter", {"mounts": (("/a", "/etc/b"),)}, "shifter refuses /etc/b as the target"),
    ("shifter", {"mounts": (("/a", "/var"),)}, "shifter refuses /var as the target"),
    ("shifter", {"mounts": (("/a", "/opt"),)}, "shifter refuses /opt as the target"),
    ("shifter", {"mounts": (("/a", "/opt/udiImage/x"),)}, "shifter refuses /opt/udiImage/x as the target"),
    ("shifter", {"mounts": (("/a", "/"),)}, "shifter refuses / as the target"),
    ("shifter", {"mounts": (("/a b", "/c"),)}, "shifter drops characters of the mount /a b:/c"),
    ("shifter", {"mounts": (("/a;b", "/c"),)}, "shifter drops characters of the mount /a;b:/c"),
    ("shifter", {"mounts": (("/a", "/var/tmp/b"),)}, "shifter refuses /var/tmp/b as the target"),
    ("shifter", {"environment": (("A", "b"), ("B", ""))}, "shifter refuses the empty value of B"),
    ("shifter", {"modules": ("gpu,mpich",)}, "shifter has no module 'gpu,mpich'"),
    ("shifter", {"modules": ("",)}, "shifter has no module ''"),
    ("podman", {"image": ""}, "no image is set"),
    ("podman", {"image": "--privileged"}, "'--privileged' is not a valid image name"),
    ("podman", {"shm_size": "much"}, "podman reads no amount of memory in 'much'"),
    ("podman", {"modules": ("gpu", "nccl")}, "podman has no site module 'nccl'"),
    ("podman-hpc", {"modules": ("gpu --privileged",)}, "podman-hpc has no module 'gpu --privileged'"),
    ("podman-hpc", {"shm_size": "0"}, "podman-hpc reads no amount of memory in '0'"),
    ("podman-hpc", {"command": ("tritonserver", "--help")}, "podman-hpc takes --help for an option of its own"),
    ("podman-hpc", {"command": ("tritonserver", "--gpu")}, "podman-hpc takes --gpu for an option of its own"),
    ("apptainer", {"image": ""}, "no image is set"),
    ("apptainer", {"shm_size": "1g"}, "apptainer cannot set the size of /dev/shm"),
    ("apptainer", {"modules": ("mpich",)}, "apptainer has no site module 'mpich'"),
    ("apptainer", {"mounts": (("/a,b", "/c"),)}, "apptainer cannot mount /a,b as /c"),
]


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "shifter"])
def test_every_other_engine_takes_an_empty_value(engine: Engine):
    assert engine_named(engine).faults(replace(FULL, environment=(("A", ""),))) == ()


@pytest.mark.parametrize(("engine", "change", "fault"), FAULTS)
def test_an_engine_says_what_it_cannot_do(engine: Engine, change: dict[str, object], fault: str):
    faults = engine_named(engine).faults(replace(FULL, **change))
    assert len(faults) == 1
    assert faults[0].startswith(fault)
    assert "; " in faults[0], "what to do about it"


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_has_nothing_to_say_against_what_it_can_do(engine: Engine):
    assert engine_named(engine).faults(FULL) == ()
    shared = replace(FULL, mounts=(("/environment", "/environment"),), environment=(("A", "b c"),))
    assert engine_named(engine).faults(shared) == ()


def test_shifter_mounts_below_opt_and_beside_var():
    assert engine_named("shifter").faults(replace(FULL, mounts=(("/a", "/opt/models"), ("/b", "/variable")))) == ()


def test_a_farm_that_its_engine_cannot_run_is_refused_before_anything_is_written(tmp_path):
    flags = {"run_root": str(tmp_path / "run"), "server.engine": "shifter", "server.image": "docker:a:1"}
    what = resolve(flags={**flags, "server.mounts": ["/a:/etc"], "server.shm_size": "1g"}).farm
    assert len(engine_faults(what)) == 2
    with pytest.raises(LaunchError, match=r"engine shifter: .*; remove server.shm_size \(and 1 more\)"):
        farm.deploy(what)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("engine", ["none", "podman", "podman-hpc", "apptainer"])
def test_slurm_knows_of_shifter_only(engine: Engine):
    assert engine_named(engine).directives(SPEC) == ()


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
