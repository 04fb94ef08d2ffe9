"""--json: every command has it, and with it an error is one JSON object on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main
from command import exatrkx_hpc
from fakes.slurm import Cluster

from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.cli import app
from exatrkx_hpc.cli.fault import error_json


def commands() -> Iterator[tuple[str, object]]:
    for name, command in typer.main.get_group(app).commands.items():
        below = getattr(command, "commands", None)
        if below is None:
            yield name, command
        for sub, one in (below or {}).items():
            yield f"{name} {sub}", one


def test_every_command_has_it():
    without = [name for name, command in commands() if "--json" not in sum((p.opts for p in command.params), [])]  # noqa: RUF017
    assert without == []


def failed(done: Completed, code: int) -> dict:
    """Return the error that a command printed as one line of JSON."""
    assert done.returncode == code and done.stdout == "", (done.returncode, done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    told = json.loads(line)
    assert set(told) == {"error"} and set(told["error"]) == {"kind", "message", "next", "exit_code"}
    assert told["error"]["exit_code"] == code
    return told["error"]


def test_an_error_is_what_happened_and_what_to_do(tmp_path: Path):
    told = failed(exatrkx_hpc("stop", "7", "--json", cwd=tmp_path), 4)
    assert told["kind"] == "LaunchError" and told["message"].startswith("no job '7' in ")
    assert told["next"].startswith("list the jobs with 'ls ")


@pytest.mark.parametrize(
    ("words", "code", "kind", "says"),
    [
        (("status", "--site", "moon"), 2, "ConfigError", "moon"),
        (("run-clients",), 5, "EndpointError", "no monitor is running"),
        (("run-clients", "--nonsense"), 2, "UsageError", "No such option: --nonsense"),
        (("nonsense",), 2, "UsageError", "No such command"),
        (("events", "convert", "x"), 2, "UsageError", "Missing argument"),
        (("report", "nothing"), 6, "InputError", "nothing"),
        (("logs",), 4, "LaunchError", "no job in"),
        (("init", "moon"), 2, "ConfigError", "moon"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_errors_of_every_kind(tmp_path: Path, words: tuple[str, ...], code: int, kind: str, says: str):
    told = failed(exatrkx_hpc(*words, "--json", cwd=tmp_path), code)
    assert told["kind"] == kind and says in told["message"]


def test_a_fault_of_the_program(tmp_path: Path):
    (tmp_path / "packages" / "acts").mkdir(parents=True)
    (tmp_path / "packages" / "acts" / "__init__.py").write_text("1 / 0\n")
    words = ("events", "generate", "--source", "acts", "-o", "events", "--json")
    env = {"PYTHONPATH": str(tmp_path / "packages")}
    told = failed(exatrkx_hpc(*words, cwd=tmp_path, env=env), 70)
    assert told["kind"] == "Fault" and told["next"].endswith("to a bug report")


def test_an_error_without_a_next_step():
    told = json.loads(error_json("it is full", kind="OutputError", code=8))["error"]
    assert (told["message"], told["next"]) == ("it is full", "")


def test_results_are_one_object(tmp_path: Path):
    told = json.loads(exatrkx_hpc("init", "generic", "--json", cwd=tmp_path).stdout)
    assert told == {"file": "farm.toml", "site": "generic"}
    told = json.loads(exatrkx_hpc("events", "generate", "-o", "e", "--events", "2", "--json", cwd=tmp_path).stdout)
    assert told == {"events": 2, "folder": "e", "truth": "e/truth"}
    told = json.loads(exatrkx_hpc("clean", "--json", "--site", "local", cwd=tmp_path).stdout)
    assert told == {"removed": []}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster(tmp_path)
    made.put_on_path(monkeypatch)
    (tmp_path / "runs" / "4242").mkdir(parents=True)
    (tmp_path / "runs" / "job-4242.log").write_text("one\ntwo\n")
    return made


def test_logs(cluster: Cluster):
    words = ("logs", "4242", "--run-root", cluster.folder / "runs", "--json", "-n", "1")
    told = json.loads(exatrkx_hpc(*words, cwd=cluster.folder).stdout)
    assert told == {
        "job": "4242",
        "reasons": [],
        "logs": [{"file": str(cluster.folder / "runs" / "job-4242.log"), "lines": ["two"]}],
    }


def test_a_job_that_has_ended_is_told_as_such(cluster: Cluster):
    cluster.says("squeue", "4242|COMPLETED|nid001|29:36|None|1795329367|1795329367|exatrkx\n")
    words = ("stop", "4242", "--run-root", cluster.folder / "runs")
    done = exatrkx_hpc(*words, cwd=cluster.folder)
    assert (done.returncode, done.stdout, done.stderr) == (0, "job 4242 has ended: COMPLETED\n", "")
    told = json.loads(exatrkx_hpc(*words, "--json", cwd=cluster.folder).stdout)
    assert told == {"job": "4242", "state": "COMPLETED", "reason": "", "had_ended": True}
    assert cluster.calls("scancel") == []
