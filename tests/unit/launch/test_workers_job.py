"""The script of the workers' job: as it is known, with hostile names, and run; and what is said when it is refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hostile_names import HOSTILE
from job_scripts import read_as_sbatch, shellcheck

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.process import run
from exatrkx_hpc.cli.wide_command import options_of
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.launch.slurm.workers_job import OWN_JOB, WorkersPlan, make_workers_plan, render_workers, submit_workers
from exatrkx_hpc.work.run.run import Settings

#: Stands for the Python of the job: notes its words and its variables.
PYTHON = """\
#!/usr/bin/env bash
printf '%s\\0' "$@" >"$NOTES/argv"
env -0 >"$NOTES/env"
exit 7
"""


def make(folder: Path, program: Path, *, fresh: bool = False, **flags: object) -> WorkersPlan:
    """Return the plan of a job over folders below `folder`, which `program` runs in the place of Python."""
    given = {name.replace("__", "."): value for name, value in flags.items()}
    run_root = str(folder / "runs").replace("$", "$$").replace("\\", "")
    found = resolve(flags={"run_root": run_root, **given}, ambient=False)
    settings = Settings(server="head:9191", events=folder / "events", out=folder / "out", fresh=fresh)
    plan = make_workers_plan(
        found.farm, options_of(settings), events=settings.events, out=settings.out, requeue=not fresh,
        sources=found.sources,
    )  # fmt: skip
    return plan.model_copy(update={"version": "1.2.3", "program": (str(program), "-c", "main()")})


def test_the_script_is_the_golden_one(golden: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    flags = {"clients__nodes": 4, "clients__workers": 64, "clients__account": "m1234", "job__account": "m1234_g"}
    golden(
        "workers.sbatch", render_workers(make(Path("/scratch"), Path("/venv/bin/python"), site="perlmutter", **flags))
    )


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NOTES", str(tmp_path))
    program = tmp_path / "python"
    program.write_text(PYTHON)
    program.chmod(0o755)
    return program


def hostile(tmp_path: Path, name: str) -> tuple[Path, WorkersPlan]:
    """A plan with the hostile name wherever a person may write a text, and the fake Python in such a folder."""
    folder = tmp_path / name.replace("\\", "")  # Slurm drops it from the path of a log
    folder.mkdir(exist_ok=True)
    program = folder / "python"
    program.write_text(PYTHON)
    program.chmod(0o755)
    texts = {f"clients__{key}": name for key in ("account", "qos", "partition", "constraint")}
    return folder, make(folder, program, clients__extra_directives=[f"--wckey={name}"], **texts)


@pytest.mark.parametrize("name", HOSTILE)
def test_the_node_runs_what_was_meant_word_for_word(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTES", str(tmp_path))
    folder, plan = hostile(tmp_path, name)
    script = tmp_path / "job.sbatch"
    script.write_text(render_workers(plan))
    done = run(["bash", str(script)], env={**os.environ, "SLURM_JOB_ID": "42"})
    assert (done.returncode, done.stderr) == (7, "")
    words = (tmp_path / "argv").read_text().split("\0")[:-1]
    assert words == ["-c", "main()", "run-clients", *(word for option in plan.options for word in option)]
    assert str(folder / "events") in words
    variables = dict(item.partition("=")[::2] for item in (tmp_path / "env").read_text().split("\0"))
    assert variables[OWN_JOB] == "42"
    assert variables["EXATRKX_HPC_RUN_ROOT"] == str(folder / "runs").replace("$", "$$")


def test_bash_shellcheck_and_sbatch_can_read_it(tmp_path: Path) -> None:
    files = []
    for number, name in enumerate(HOSTILE):
        folder, plan = hostile(tmp_path, name)
        files.append(tmp_path / f"{number}.sbatch")
        files[-1].write_text(render_workers(plan))
        directives = [line for line in files[-1].read_text().splitlines() if line.startswith("#SBATCH ")]
        read = [read_as_sbatch(line.removeprefix("#SBATCH ")) for line in directives]
        assert [f"--account={name}"] in read and [f"--wckey={name}"] in read
        assert [f"--output={folder}/out/workers-%j.log".replace("100%d", "100%%d")] in read
    shellcheck(files)


def test_a_node_without_this_python_says_so(tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(render_workers(make(tmp_path, tmp_path / "nowhere" / "python")))
    done = run(["bash", str(script)])
    assert done.returncode == 3 and "nowhere/python: the nodes must see the Python that made this" in done.stderr


def test_what_is_begun_anew_is_not_begun_twice_by_slurm(tmp_path: Path) -> None:
    assert ("requeue", "") in make(tmp_path, tmp_path).directives
    fresh = make(tmp_path, tmp_path, fresh=True)
    assert ("no-requeue", "") in fresh.directives and ("--fresh",) in fresh.options


def test_the_options_and_the_configuration_say_all_settings() -> None:
    """A setting that is in neither would be lost on the way to the job."""
    told = {"server", "events", "out", "fresh", "retry_failed", "accept_changes", "times", "event_column", "expect"}
    told |= {"accept_model_change"}
    told |= {"token_file", "certificate"}
    configured = {
        "workers",
        "in_flight",
        "request_timeout",
        "patience",
        "deadline",
        "mode",
        "repository",
        "model",
        "workload",
        "workloads",
    }
    # The first answers are those of one machine alone; workers on other nodes report nothing to the monitor.
    constant = {"shard", "part_events", "ignore_first", "identity", "reports"}
    assert {field.name for field in dataclasses.fields(Settings)} == told | configured | constant | {"result_format"}
    given = Settings(
        server="a:1",
        events=Path("/e"),
        out=Path("/o"),
        retry_failed=True,
        accept_changes=True,
        accept_model_change=True,
        expect=9,
        event_column="c",
        mode="stages",
        times=True,
    )
    assert options_of(given) == (
        ("--srun",), ("--config", "/dev/null"), ("--server", "a:1"), ("--events", "/e"), ("--event-column", "c"),
        ("--out", "/o"), ("--expect", "9"), ("--times",), ("--retry-failed",), ("--accept-changes",),
        ("--accept-model-change",),
    )  # fmt: skip


def test_the_job_goes_where_the_servers_go_unless_it_is_told() -> None:
    clients = resolve(flags={"job.account": "a", "job.qos": "q", "job.constraint": "gpu"}, ambient=False).farm.clients
    assert (clients.account, clients.qos, clients.constraint) == ("a", "q", "")
    told = resolve(flags={"job.account": "a", "clients.account": "b"}, ambient=False).farm.clients
    assert told.account == "b"


@pytest.mark.parametrize(
    ("place", "says"), [("/dev/shm/x", r"-o /dev/shm/x/out is on tmpfs"), ("a\\b", "has a backsl")]
)
def test_a_folder_that_cannot_work_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place, says) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(LaunchError, match=says):
        plan = make(tmp_path / place, tmp_path / "python")
        submit_workers(plan.model_copy(update={"events": "/"}))
    assert not Path("/dev/shm/x").exists()
