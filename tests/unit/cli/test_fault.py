"""A fault of the program: one line for the user, a report that only the user can read, and no secret in it."""

from __future__ import annotations

import os
import re
import signal
import stat
from pathlib import Path

import pytest
from command import PROGRAM, complaint, exatrkx_hpc

from exatrkx_hpc import __version__
from exatrkx_hpc.base.process import run
from exatrkx_hpc.cli.fault import fault_report, hidden, shown

SECRET = "s3cr3t-of-nobody"


def with_broken_package(tmp_path: Path, *words: str, raises: str, **variables: str):
    """Generate an event with an ACTS that ends in `raises` as it is imported."""
    (tmp_path / "packages" / "acts").mkdir(parents=True)
    (tmp_path / "packages" / "acts" / "__init__.py").write_text(raises + "\n")
    env = {"PYTHONPATH": str(tmp_path / "packages"), "A_TOKEN": SECRET, **variables}
    words = ("events", "generate", "--source", "acts", "--events", "1", "-o", "events", *words)
    return exatrkx_hpc(*words, cwd=tmp_path, env=env)


def reports(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*fault-*.txt"))


def test_a_fault_is_one_line_and_a_report(tmp_path):
    raises = "raise RuntimeError('first https://me:hunter2@host/x\\nsecond')"
    done = with_broken_package(tmp_path, raises=raises, XDG_STATE_HOME="")
    line = complaint(done, 70)
    [report] = reports(tmp_path)
    assert report.parent == tmp_path / ".local" / "state" / "exatrkx-hpc"
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    assert stat.S_IMODE(report.parent.stat().st_mode) == 0o700
    assert "a fault of this program, not of yours (RuntimeError: first https://***@host/x); " in line
    assert line.endswith(f"; attach {report} to a bug report")
    text = report.read_text()
    for fact in (f"exatrkx-hpc: {__version__}\n", "Python: 3.", "system: Linux", "numpy: ", "'--source' 'acts'"):
        assert fact in text, fact
    assert "Traceback" in text and "acts/__init__.py" in text and "second" in text
    assert SECRET not in text and "hunter2" not in text
    assert not re.search("^torch: ", text, re.MULTILINE), "nothing is imported for a report"


def test_each_fault_has_a_report_of_its_own_in_the_folder_for_state(tmp_path):
    state = tmp_path / "state"
    first = with_broken_package(tmp_path, raises="1 / 0", XDG_STATE_HOME=str(state))
    second = exatrkx_hpc(
        *("events", "generate", "--source", "acts", "-o", "events"),
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "packages"), "XDG_STATE_HOME": str(state)},
    )
    assert complaint(first, 70) != complaint(second, 70)
    assert len(reports(state / "exatrkx-hpc")) == 2


def test_without_a_place_for_state_it_goes_to_the_temporary_folder(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "tmp").mkdir()
    done = with_broken_package(
        tmp_path, raises="1 / 0", XDG_STATE_HOME=str(tmp_path / "file"), TMPDIR=str(tmp_path / "tmp")
    )
    [report] = reports(tmp_path)
    assert report.parent == tmp_path / "tmp" and report.name.startswith("exatrkx-hpc-fault-")
    assert str(report) in complaint(done, 70)
    assert stat.S_IMODE(report.stat().st_mode) == 0o600


def test_an_interrupt_is_no_fault(tmp_path):
    done = with_broken_package(tmp_path, raises="raise KeyboardInterrupt")
    assert done.returncode == 128 + signal.SIGINT
    assert reports(tmp_path) == [] and "Traceback" not in done.stderr


def test_a_reader_that_left_is_no_fault(tmp_path):
    script = '"$1" config schema | true; echo "${PIPESTATUS[0]}"'
    done = run(["bash", "-c", script, "bash", PROGRAM], cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    assert done.stdout.strip() != "70" and done.stderr == ""
    assert reports(tmp_path) == []


@pytest.mark.parametrize(
    ("argv", "seen"),
    [
        (["x", "--token", SECRET, "deploy"], ["x", "--token", "***", "deploy"]),
        (["x", f"--auth-token={SECRET}"], ["x", "--auth-token=***"]),
        (["x", f"--Password={SECRET}"], ["x", "--Password=***"]),
        (["x", "--set", f"balancer.token={SECRET}"], ["x", "--set", "balancer.token=***"]),
        (["x", "--token", "abc", "abc.toml"], ["x", "--token", "***", "abc.toml"]),
        (["x", "--token=ab", "ab.toml"], ["x", "--token=***", "ab.toml"]),
        (["x", "--password", "-" + SECRET], ["x", "--password", "***"]),
        (["x", "--no-token", "--dry-run"], ["x", "--no-token", "--dry-run"]),
        (["/home/token/x", "deploy"], ["/home/token/x", "deploy"]),
        (["x", "--image", f"docker://me:{SECRET}@host/image"], ["x", "--image", "docker://***@host/image"]),
        (["x", "--image", f"docker://me:/{SECRET}@host/image"], ["x", "--image", "docker://***@host/image"]),
    ],
)
def test_secrets_of_the_command_line_are_hidden(argv, seen):
    assert shown(argv) == seen


@pytest.mark.parametrize("secret", [SECRET, "s3cr'et\\x", "-s3cret"])
@pytest.mark.parametrize("form", ["{}", "{!r}"])
def test_a_secret_that_an_error_repeats_is_hidden_too(secret, form):
    argv = ["x", "--token", secret]
    try:
        raise ValueError(f"bad token {form.format(secret)}")
    except ValueError as error:
        text = fault_report(error, argv)
    assert "s3cr" not in text and re.search(r"ValueError: bad token .?\*\*\*", text)
    assert hidden("nothing", argv) == "nothing"
