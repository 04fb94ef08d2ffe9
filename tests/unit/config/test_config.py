"""What a farm's values may be: bounds, folders, hosts, and nothing that breaks a line of a script."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from pydantic import BaseModel, ValidationError

from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.config.values import expand, limit_seconds, signal_lead

IMAGE = "docker.io/nvcr/tritonserver:24.10"


def _text_fields(model: type[BaseModel], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], object]]:
    """Yield the path and a hostile value of every field that can hold a text."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _text_fields(kind, (*path, name))
        elif isinstance(field.default, tuple):
            yield (*path, name), ["--ok=1", "--x=HOSTILE"]
        elif isinstance(field.default, dict):
            yield (*path, name), {"VALUE": "HOSTILE"}
        elif isinstance(field.default, str):
            yield (*path, name), "HOSTILE"


TEXT_FIELDS = {".".join(path): value for path, value in _text_fields(Farm)}


def _farm(key: str, value: object) -> Farm:
    data: dict[str, Any] = {}
    *sections, name = key.split(".")
    inner = data
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    return Farm.model_validate(data)


def _with(value: Any, hostile: str) -> Any:
    if isinstance(value, str):
        return value.replace("HOSTILE", hostile)
    if isinstance(value, dict):
        return {name: _with(text, hostile) for name, text in value.items()}
    return [_with(text, hostile) for text in value]


def test_the_parameters_below_cover_every_text_of_a_farm():
    assert {"name", "run_root", "job.account", "job.extra_directives", "server.environment"} <= set(TEXT_FIELDS)
    assert len(TEXT_FIELDS) > 15


@pytest.mark.parametrize("character", ["\n", "\r", "\0", "\t", "\x1b", "\x7f", "\x85", "\u2028", "\udcff"], ids=ascii)
@pytest.mark.parametrize("key", TEXT_FIELDS)
def test_no_text_holds_a_line_break_or_a_control_character(key: str, character: str):
    with pytest.raises(ValidationError):
        _farm(key, _with(TEXT_FIELDS[key], f"a{character}b"))


def test_the_same_texts_without_it_are_taken():
    for key in ("run_root", "job.account", "job.extra_directives", "server.environment", "server.extra_arguments"):
        assert _farm(key, _with(TEXT_FIELDS[key], "a b'\"$$é"))


def test_a_variable_of_the_server_has_the_name_of_a_variable():
    assert _farm("server.environment", {"_A1": "x"}).server.environment == {"_A1": "x"}
    for name in ("A B", "A=B", "1A", "A-B", "", "A\n"):
        with pytest.raises(ValidationError, match="name of an environment variable"):
            _farm("server.environment", {name: "x"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("job.nodes", 0),
        ("job.nodes", True),
        ("job.nodes", 1.5),
        ("job.time", "soon"),
        ("job.time", "1:2"),
        ("job.time", "٣٠"),
        ("job.extra_directives", ["-p debug"]),
        ("server.base_port", 80),
        ("server.instances", "two"),
        ("server.engine", "docker"),
        ("server.triton", 5),
        ("monitor.interval", 0),
        ("monitor.interval", float("nan")),
        ("monitor.interval", float("inf")),
        ("monitor.interval", True),
        ("balancer.grpc_port", 65536),
        ("balancer.host", ""),
        ("balancer.host", "0.0.0.0; }"),
        ("cluster.host_suffix", '-hsn0"'),
        ("cluster.local_address", "10.0.0.1"),
        ("cluster.local_address", "127.0.0.999"),
        ("name", "a/b"),
        ("run_root", ""),
        ("run_root", 5),
        ("run_root", "/a:b"),
        ("server.model_repository", "/a:b"),
    ],
)
def test_a_value_out_of_bounds_is_refused(key: str, value: object):
    with pytest.raises(ValidationError):
        _farm(key, value)


@pytest.mark.parametrize("time", ["30", "90:00", "02:00:00", "120:00:00", "1-12", "1-12:30", "1-12:30:00"])
def test_every_form_of_slurms_time_limit_is_taken(time: str):
    assert _farm("job.time", time).job.time == time


def test_an_engine_without_an_image_is_refused():
    with pytest.raises(ValidationError, match="engine 'podman' needs one"):
        _farm("server.engine", "podman")


def test_folders_that_the_farm_cannot_hand_on_are_refused():
    with pytest.raises(ValidationError, match="backslash"):
        _farm("run_root", "/a\\b")
    local = Farm.model_validate({"run_root": "/a\\b", "cluster": {"scheduler": "local"}})
    assert local.run_root == "/a\\b"
    with pytest.raises(ValidationError, match="comma"):
        Farm.model_validate({"run_root": "/a,b", "server": {"engine": "apptainer", "image": IMAGE}})
    assert Farm.model_validate({"run_root": "/a,b"}).run_root == "/a,b"


def test_a_farm_is_frozen():
    farm = Farm()
    with pytest.raises(ValidationError, match="frozen"):
        farm.name = "other"  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        farm.job.nodes = 2  # type: ignore[misc]


def test_folders_are_expanded_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("SCRATCH", "/scratch/$HOME")
    monkeypatch.chdir(tmp_path)
    assert str(expand("~/x")) == "/home/me/x"
    assert str(expand("$SCRATCH/x")) == "/scratch/$HOME/x", "a value is not expanded again"
    assert str(expand("${SCRATCH}x")) == "/scratch/$HOMEx"
    assert str(expand("/a$$HOME")) == "/a$HOME"
    assert str(expand("/a$$$HOME")) == "/a$/home/me"
    assert str(expand("/costs 5$ or $5")) == "/costs 5$ or $5", "no name, no variable"
    assert expand("runs") == tmp_path / "runs"


def test_a_folder_of_nobody_is_refused_in_words(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SCRATCH", raising=False)
    with pytest.raises(ValueError, match=r"uses \$SCRATCH, which is not set"):
        expand("$SCRATCH/x")
    with pytest.raises(ValueError, match="home of an unknown user"):
        expand("~nobody-has-this-name/x")


def test_the_models_are_beside_the_runs_unless_said_otherwise(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert _farm("run_root", "$SCRATCH/x").server.model_repository == "/scratch/me/x/model_repository"
    assert _farm("run_root", "/a$$b").server.model_repository == "/a$b/model_repository"
    assert _farm("server.model_repository", "$SCRATCH/m").server.model_repository == "/scratch/me/m"
    monkeypatch.setenv("HOME", "/home/me")
    assert Farm().server.model_repository == "/home/me/exatrkx-hpc/model_repository"


def test_a_line_break_that_a_variable_brings_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SCRATCH", "/scratch\n#SBATCH --qos=premium")
    with pytest.raises(ValidationError, match="line break"):
        _farm("run_root", "$SCRATCH/x")


def _table(section: str, fields: dict[str, Any]) -> str:
    lines = [f"| `{section}` | default | meaning |", "|---|---|---|"]
    for name, field in fields.items():
        lines.append(f"| `{name}` | `{json.dumps(field.default)}` | {field.description} |")
    return "\n".join(lines) + "\n"


def test_the_page_has_every_key_with_its_default_and_its_meaning():
    page = (ROOT / "docs" / "reference" / "configuration.md").read_text()
    sections = {"top level": {n: f for n, f in Farm.model_fields.items() if not isinstance(f.default, BaseModel)}}
    for name, field in Farm.model_fields.items():
        if isinstance(field.default, BaseModel):
            sections[f"[{name}]"] = dict(type(field.default).model_fields)
    for section, fields in sections.items():
        assert f"\n{_table(section, fields)}\n" in f"{page}\n", f"write this:\n{_table(section, fields)}"


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        ("30", 1800),
        ("1:30", 90),
        ("02:00:00", 7200),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("1-00:00:01", 86401),
        ("0", math.inf),
        ("00:00:00", math.inf),
    ],
)
def test_a_time_limit_in_seconds(limit: str, seconds: float):
    """The forms of sbatch's manual; 0 is no limit."""
    assert limit_seconds(limit) == seconds


@pytest.mark.parametrize(
    ("signal", "lead", "drains"),
    [
        ("B:TERM@90", 90, True),
        ("BR:15@90", 90, True),
        ("B:SIGUSR2@90", 90, True),
        ("B:12", 60, True),
        ("B:USR1@90", 90, False),
        ("B:10@90", 90, False),
        ("B:HUP@90", None, False),
        ("TERM@90", None, False),
        ("R:TERM@90", None, False),
        ("", None, False),
    ],
)
def test_the_lead_of_a_signal(signal: str, lead: int | None, drains: bool):
    """`B` sends it to the batch script; the script traps these alone (jobs/farm.sbatch.j2)."""
    assert signal_lead(signal) == lead
    assert signal_lead(signal, drains=True) == (lead if drains else None)
