"""The habits of this repository hold together: hooks before a commit, forms for issues, one place of the version."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from paths import ROOT

import exatrkx_hpc

HOOKS = ROOT / ".pre-commit-config.yaml"
FORMS = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
YAML = [HOOKS, *FORMS]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_the_yaml_is_plain(path: Path):
    """What a reader of YAML trips over, as the project has none: tabs, odd depths, a colon or a '#' in a bare text."""
    text_until = 0  # the depth below which a text of several lines goes on
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        where = f"{path.name}:{number}: {line}"
        depth = len(line) - len(line.lstrip(" "))
        if not line.strip() or line.lstrip().startswith("#") or (text_until and depth >= text_until):
            continue
        text_until = 0
        assert "\t" not in line and line == line.rstrip() and depth % 2 == 0, where
        entry = re.fullmatch(r" *(?:- )*(?:([a-z_-]+):(?: (.+))?|[^:]+)", line)
        assert entry, where
        value = entry[2] or ""
        if value == "|":
            text_until = depth + 1
        elif value[:1] not in {"'", '"', "["}:
            assert not re.search(r": | #|^[\]{}&*!|>@`%]", value), f"quote it: {where}"


def test_the_hooks_are_what_make_check_does():
    recipe = (ROOT / "Makefile").read_text().partition("\ncheck: ")[2].partition("\n\n")[0].splitlines()[1:]
    checks = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe]
    entries = re.findall(r"^ +entry: (.+)$", HOOKS.read_text(), re.MULTILINE)
    assert [re.sub(r"^bash -c '(.*)'$", r"\1", entry) for entry in entries] == checks
    assert len(checks) == 5
    languages = re.findall(r"^ +language: (.+)$", HOOKS.read_text(), re.MULTILINE)
    assert languages == ["system"] * len(entries), "hooks need no network"


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.name)
def test_a_form_has_what_github_asks_for(path: Path):
    text = path.read_text()
    assert re.findall(r"^([a-z]+):", text, re.MULTILINE) == ["name", "description", "labels", "body"]
    parts = text.partition("\nbody:\n")[2].split("  - type: ")[1:]
    ids = []
    for part in parts:
        if not part.startswith("markdown"):
            ids += re.findall(r"^    id: ([a-z]+)$", part, re.MULTILINE)
            assert "\n      label: " in part, part
    assert len(ids) == len(set(ids)) == sum(not part.startswith("markdown") for part in parts) > 2


def test_what_a_form_asks_for_exists():
    text = "".join(path.read_text() for path in FORMS)
    assert "exatrkx-hpc doctor --json" in text and "exatrkx-hpc --version" in text


def test_the_version_has_one_place():
    project = (ROOT / "pyproject.toml").read_text()
    assert 'dynamic = ["version"]' in project and 'path = "exatrkx_hpc/__init__.py"' in project
    package = Path(exatrkx_hpc.__file__).parent
    told = [path.name for path in package.rglob("*.py") if f'"{exatrkx_hpc.__version__}"' in path.read_text()]
    assert told == ["__init__.py"]
    assert f"[{exatrkx_hpc.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_files_of_tests_have_names_of_their_own():
    """pytest imports them by name alone, because the folders are no packages."""
    names = sorted(path.name for path in (ROOT / "tests").rglob("test_*.py"))
    assert names == sorted(set(names))
