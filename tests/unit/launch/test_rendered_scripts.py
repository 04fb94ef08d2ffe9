"""The scripts of a job: whole goldens, and hostile names that bash, shellcheck, sbatch and a run must survive."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines import NAMES, add_example
from hostile_names import HOSTILE
from job_scripts import read_as_sbatch, shellcheck

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import run
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.values import Engine
from exatrkx_hpc.launch.engines.table import engine_named
from exatrkx_hpc.launch.plan import FarmPlan, Setting, make_plan
from exatrkx_hpc.launch.render import render_job, render_server
from exatrkx_hpc.launch.words import Var, Word, comment

IMAGE = "docker.io/nvcr/tritonserver:24.10"
NODE = "127.0.0.2"
#: What the node knows and the plan does not.
ON_THE_NODE = {
    "instance": "INSTANCE",  # holds the script's process id; the record has it, too
    "address": NODE,
    "http_port": "8000",
    "grpc_port": "8001",
    "metrics_port": "8002",
    "container": f"exatrkx-42-{NODE}-0",
    "shm_prefix": f"exatrkx_42_{NODE}-0_",
    "server_key": "k" * 64,
}
#: Stands for tritonserver and for every engine: notes its words and its variables, and ends.
FAKE_PROGRAM = """\
#!/usr/bin/env bash
printf '%s\\0' "${0##*/}" "$@" >"$NOTES/$$.argv"
env -0 >"$NOTES/$$.env"
"""


def make(**flags: object) -> FarmPlan:
    """Return the plan of a farm with these values; `section__key` names one."""
    found = resolve(Path(os.devnull), flags={k.replace("__", "."): v for k, v in flags.items()})
    return make_plan(found.farm, sources=found.sources)


def hostile_plan(folder: Path, name: str, engine: Engine) -> FarmPlan:
    """Return a plan with the hostile name wherever a person may write a text."""
    text = name.replace(",", "") if engine == "apptainer" else name
    place = str(folder / text).replace("$", "$$")
    return make(
        cluster__scheduler="local",  # for Slurm a backslash in run_root is refused
        run_root=place,
        job__account=name,
        job__constraint=name,
        job__extra_directives=[f"--wckey={name}"],
        server__engine=engine,
        server__image=IMAGE,
        server__model_repository=f"{place}/models",
        server__environment={"A": name},
        server__extra_arguments=[name],
        server__max_restarts=0,
    )


GOLDENS: dict[str, dict[str, object]] = {
    "farm.perlmutter.sbatch": {"site": "perlmutter", "job__nodes": 4, "job__account": "m1234"},
    "farm.perlmutter-four.sbatch": {
        "site": "perlmutter",
        "job__nodes": 2,
        "job__account": "m1234_g",
        "job__constraint": "gpu&hbm80g",
        "job__licenses": "scratch",
        "server__engine": "podman-hpc",
        "server__servers_per_node": 4,
        "server__gpus_per_server": 1,
    },
    "farm.none.sbatch": {"run_root": "/data/farm", "server__servers_per_node": 2},
    "farm.podman-hpc.sbatch": {
        "run_root": "/data/farm",
        "job__extra_directives": ["--exclusive", "--wckey=two words"],
        "server__engine": "podman-hpc",
        "server__image": IMAGE,
        "server__modules": ["nccl"],
        "server__environment": {"OMP_NUM_THREADS": "1"},
    },
    "farm.podman.sbatch": {"run_root": "/data/farm", "server__engine": "podman", "server__image": IMAGE},
    "farm.apptainer.sbatch": {
        "run_root": "/data/farm",
        "server__engine": "apptainer",
        "server__image": "/images/triton.sif",
        "server__device": "cpu",
    },
}


@pytest.mark.parametrize("name", GOLDENS)
def test_the_script_is_the_golden_one(
    name: str, golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", "/pscratch/sd/u/user")
    golden(name, render_job(make(**GOLDENS[name])))


def write_scripts(folder: Path, plan: FarmPlan, name: str) -> list[Path]:
    scripts = {f"{name}.sbatch": render_job(plan), f"{name}.server.sh": render_server(plan)}
    for file, text in scripts.items():
        (folder / file).write_text(text)
    return [folder / file for file in scripts]


@pytest.fixture
def every_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The scripts of every golden farm, and of every hostile name with every engine."""
    monkeypatch.setenv("SCRATCH", "/pscratch/sd/u/user")
    files = [file for name, flags in GOLDENS.items() for file in write_scripts(tmp_path, make(**flags), name)]
    add_example(monkeypatch)
    for engine in NAMES:
        for i, name in enumerate(HOSTILE):
            files += write_scripts(tmp_path, hostile_plan(tmp_path, name, engine), f"{engine}-{i}")
    return files


@pytest.mark.slow
def test_bash_can_parse_every_script(every_script: list[Path]) -> None:
    for file in every_script:
        done = run(["bash", "-n", str(file)])
        assert (done.returncode, done.stderr) == (0, ""), file.read_text()


@pytest.mark.slow
def test_shellcheck_finds_nothing_in_any_script(every_script: list[Path]) -> None:
    """Every golden farm, every engine and every hostile name, but not every pair of these: a script takes a second."""
    chosen = [
        file
        for file in every_script
        for engine, _, number in [file.name.partition(".")[0].rpartition("-")]
        if engine not in NAMES or int(number) % len(NAMES) == list(NAMES).index(engine)
    ]
    assert len(chosen) == 2 * (len(GOLDENS) + len(HOSTILE))
    # An argument that is the end mark, indented, ends nothing; shellcheck takes it for a slip.
    shellcheck([file for file in chosen if "  END_OF_SERVER_SH\n" not in file.read_text()])


def test_shellcheck_finds_nothing_in_the_scripts_that_are_shipped_as_they_are() -> None:
    shellcheck(sorted(asset("jobs").glob("*.sh")))


@pytest.mark.parametrize("name", HOSTILE)
def test_sbatch_reads_every_option_as_one_word(name: str, tmp_path: Path) -> None:
    plan = hostile_plan(tmp_path, name, "shifter")
    lines = [line for line in render_job(plan).splitlines() if line.startswith("#SBATCH")]
    read = [read_as_sbatch(line) for line in lines]
    wanted = [f"--{option}={value}" if value else f"--{option}" for option, value in plan.directives] + list(
        plan.extra_directives
    )
    assert read == [[word] for word in wanted]
    assert f"--account={name}" in wanted and f"--wckey={name}" in wanted and f"--image=docker:{IMAGE}" in wanted
    assert f"--output={tmp_path}/{name.replace('%', '%%')}/job-%j.log" in wanted


def test_every_option_stands_before_the_first_command(tmp_path: Path) -> None:
    lines = render_job(hostile_plan(tmp_path, "a b", "podman")).splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first:]), "sbatch does not read these"


#: Texts that would be commands, options or directives if they were more than a comment.
NOT_COMMENTS = [
    "x\ntouch MADE",
    "x\r\ntouch MADE\n",
    "x\n#SBATCH --array=1-1000",
    "x\x0btouch MADE\x0c",
    "x\u2028touch MADE\u2029\x85",
    "{% raw %}{{ 1 }}{# x #}",
    "shellcheck disable=SC1009",
    "'\"`$(touch MADE)",
]


@pytest.mark.parametrize("text", [*HOSTILE, *NOT_COMMENTS])
def test_what_was_set_stays_a_comment(text: str, tmp_path: Path) -> None:
    """A file's name may hold a line break, and the header names it; no value can, but that is checked elsewhere."""
    plain = make(run_root="/data/farm")
    settings = (Setting(key="job.comment", value=text, source=text), Setting(key="name", value="x", source=""))
    plan = plain.model_copy(update={"settings": settings, "model_repository": text})
    header, _, body = render_job(plan).partition("#SBATCH --job-name")
    assert all(line.startswith("# ") or line in ("", "#!/usr/bin/env bash") for line in header.split("\n"))
    assert len(header.splitlines()) == len(header.split("\n")) - 1 == 7, "no other kind of line break either"
    assert f"#   job.comment = {comment(text)}  <- {comment(text)}\n" in header
    assert "#   name = x\n" in header
    assert (
        body.partition("run_dir=")[0] == render_job(plain).partition("#SBATCH --job-name")[2].partition("run_dir=")[0]
    )
    done = run(["bash", "-euc", header], cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())


def test_the_header_names_what_was_set_and_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "my\nfarm.toml"
    file.write_text(
        '[job]\naccount = "m1234"\nprologue = ["module load x", "true"]\n[server.environment]\nA = "b é"\n',
        encoding="utf-8",
    )
    monkeypatch.setenv("EXATRKX_HPC_JOB_QOS", "debug")
    found = resolve(file, flags={"job.nodes": 4, "job.exclusive": True})
    header = render_job(make_plan(found.farm, sources=found.sources)).partition("#SBATCH")[0]
    place = str(file).replace("\n", "\\n")
    assert [line for line in header.splitlines() if line.startswith("#   ")] == [
        '#   site = "generic"  <- profile generic',
        '#   cluster.scheduler = "slurm"  <- profile generic',
        f'#   job.account = "m1234"  <- {place}',
        '#   job.qos = "debug"  <- environment',
        "#   job.nodes = 4  <- flag",
        "#   job.gpus_per_node = 1  <- profile generic",
        "#   job.exclusive = true  <- flag",
        f'#   job.prologue = ["module load x", "true"]  <- {place}',
        f'#   server.environment = {{A = "b é"}}  <- {place}',
        '#   balancer.host = "internal"  <- profile generic',
    ]
    bare = render_job(make_plan(found.farm)).partition("#SBATCH")[0]
    assert '#   job.qos = "debug"\n' in bare and "server.drain" not in bare, "from Python nobody knows where"


def test_a_node_without_the_run_root_says_so(tmp_path: Path) -> None:
    script = tmp_path / "farm.sbatch"
    script.write_text(render_job(make(run_root=str(tmp_path / "a'; echo foo"))))
    done = run(["bash", str(script)], env={"SLURM_JOB_ID": "42", "PATH": os.environ["PATH"]})
    assert (done.returncode, done.stdout) == (1, "")
    assert f"has no folder {tmp_path}/a'; echo foo/python/" in done.stderr
    assert not (tmp_path / "a'; echo foo").exists()


def on_the_node(word: Word) -> str:
    """Return what `word` is once the node has filled in what it knows."""
    if isinstance(word, Var):
        return ON_THE_NODE[word.name]
    return word if isinstance(word, str) else "".join(on_the_node(part) for part in word)


@pytest.fixture
def run_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[FarmPlan], list[tuple[list[str], dict[str, str]]]]]:
    """Run the whole job script with fake programs; return the words and variables of each call of one."""
    programs, notes = tmp_path / "programs", tmp_path / "notes"
    programs.mkdir()
    notes.mkdir()
    add_example(monkeypatch)
    for name in ("tritonserver", *(program for engine in NAMES for program in engine_named(engine).programs)):
        (programs / name).write_text(FAKE_PROGRAM)
        (programs / name).chmod(0o755)
    (programs / "srun").symlink_to(asset("jobs/embedded-srun.sh"))

    def call(plan: FarmPlan, **more: str) -> list[tuple[list[str], dict[str, str]]]:
        script = tmp_path / "farm.sbatch"
        script.write_text(render_job(plan))
        Path(plan.python).mkdir(parents=True, exist_ok=True)
        Path(plan.key_file).parent.mkdir(exist_ok=True)
        Path(plan.key_file).write_text(ON_THE_NODE["server_key"] + "\n")
        variables = {
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "NOTES": str(notes),
            "HOME": "/home/nobody",
            "SLURM_JOB_ID": "42",
            "SLURM_JOB_NODELIST": NODE,
            **more,
        }
        done = run(["bash", str(script)], env=variables, cwd=tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (1, "", ""), "no restarts: it gives up, and says nothing"
        return [(_items(file), _variables(file.with_suffix(".env"))) for file in notes.glob("*.argv")]

    yield call


def _items(file: Path) -> list[str]:
    return file.read_text().split("\0")[:-1]


def _variables(file: Path) -> dict[str, str]:
    return dict(item.split("=", 1) for item in _items(file))


@pytest.mark.parametrize("engine", NAMES)
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.slow
def test_the_node_runs_what_the_plan_meant_word_for_word(name: str, engine: Engine, tmp_path: Path, run_job) -> None:
    plan = hostile_plan(tmp_path, name, engine)
    wanted = [on_the_node(word) for word in plan.command]
    calls = run_job(plan)
    record = json.loads(Path(plan.run_root, "42", "records", f"{NODE}-0.json").read_text())
    assert re.fullmatch(rf"42/{NODE}-0/\d+", record["instance"])
    wanted = [record["instance"].join(word.split("INSTANCE")) for word in wanted]
    if not engine_named(engine).has_container:  # env is real and has set the variables
        settings = dict(word.split("=", 1) for word in wanted[1 : wanted.index("tritonserver")])
        wanted = wanted[wanted.index("tritonserver") :]
        assert settings["A"] == name and settings.items() <= calls[0][1].items()
    stops = [[on_the_node(word) for word in plan.container_stop]] if plan.container_stop else []
    assert sorted(words for words, _ in calls) == sorted([wanted, *stops])
    assert f"--model-repository={plan.model_repository}" in wanted and wanted[-1] == name


def test_the_record_of_a_server_is_json_in_a_hostile_folder(tmp_path: Path, run_job) -> None:
    plan = hostile_plan(tmp_path, 'a\'; echo "foo"', "none")
    run_job(plan)
    record = json.loads(Path(plan.run_root, "42", "records", f"{NODE}-0.json").read_text())
    assert record["state"] == "gone"
    assert (record["address"], record["http_port"], record["job"]) == (NODE, 8000, "42")
    assert Path(plan.run_root, "42").stat().st_mode & 0o777 == 0o700


def test_who_reads_a_record_while_it_is_written_reads_the_one_before(tmp_path: Path, run_job) -> None:
    """A second name of the file keeps what the first had: the next record is another file under that name."""
    plan = make(run_root=str(tmp_path / "run"), server__max_restarts=0)
    record = Path(plan.run_root, "42", "records", f"{NODE}-0.json")
    program = f"#!/bin/sh\nuntil [ -s {record} ]; do sleep 0.02; done\nln {record} {tmp_path}/before\n"
    (tmp_path / "programs" / "tritonserver").write_text(program)
    run_job(plan)
    assert json.loads((tmp_path / "before").read_text())["state"] == "starting"
    assert json.loads(record.read_text())["state"] == "gone"
    assert sorted(path.name for path in record.parent.iterdir()) == [f"{NODE}-0.gave-up", record.name]


@pytest.mark.parametrize(
    ("visible", "shares"),
    [
        ("0,1,2,3", ["0,1", "2,3"]),
        ("GPU-a,GPU-b", ["GPU-a,GPU-b"] * 2),
        ("0,1,2", ["0,1", "2,0"]),
        ("3", ["3", "3"]),
        ("", ["", ""]),
    ],
)
def test_a_server_takes_its_share_of_the_gpus_unless_slurm_has_shown_it_that_already(
    tmp_path: Path, run_job, visible: str, shares: list[str]
) -> None:
    plan = make(
        run_root=str(tmp_path / "run"),
        job__gpus_per_node=4,
        server__servers_per_node=2,
        server__gpus_per_server=2,
        server__max_restarts=0,
    )
    calls = run_job(plan, CUDA_VISIBLE_DEVICES=visible)
    assert sorted(variables["CUDA_VISIBLE_DEVICES"] for _, variables in calls) == shares


def test_servers_that_see_only_some_gpus_of_the_node_share_them(tmp_path: Path, run_job) -> None:
    plan = make(
        run_root=str(tmp_path / "run"),
        job__gpus_per_node=4,
        server__servers_per_node=4,
        server__gpus_per_server=1,
        server__max_restarts=0,
    )
    calls = run_job(plan, CUDA_VISIBLE_DEVICES="0,1")
    assert sorted(variables["CUDA_VISIBLE_DEVICES"] for _, variables in calls) == ["0", "0", "1", "1"]


@pytest.mark.parametrize(
    ("bind", "gpus_per_server", "said"),
    [("closest", 0, "closest"), ("closest", 1, "single:1"), ("closest", 2, "none"), ("none", 1, "none"), ("", 1, "")],
)
def test_no_two_servers_are_bound_to_one_gpu(bind: str, gpus_per_server: int, said: str) -> None:
    plan = make(
        job__gpu_bind=bind, job__gpus_per_node=4, server__servers_per_node=2, server__gpus_per_server=gpus_per_server
    )
    assert [option for option in plan.step_options if "bind" in option] == ([f"--gpu-bind={said}"] if said else [])
    without = make(job__gpu_bind=bind, job__gpus_per_node=0)
    assert not any("bind" in option for option in without.step_options), "srun refuses it without GPUs"
