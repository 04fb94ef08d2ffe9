"""The front door: what `exatrkx_hpc` exports, what docs/python.md says of it, and what type checkers see agree."""

from __future__ import annotations

import ast
import inspect
import operator
import re
import sys
from pathlib import Path

import pytest
from package_modules import FRONT_DOOR, NAMES, TREES, folders, import_alone
from paths import ROOT

import exatrkx_hpc
from exatrkx_hpc.base import errors
from exatrkx_hpc.base.process import run

TABLES = (ROOT / "docs" / "python.md").read_text().partition("\n## What you may rely on\n")[2]
#: The code spans in the first cells of the page's tables: a name, or a call that shows the signature.
SHOWN = [span for row in re.findall(r"^\| (`[^|]*) \|", TABLES, re.MULTILINE) for span in re.findall(r"`([^`]+)`", row)]
ALIASES = {"Tensors"}
#: Their news are told by the commands alone.
OF_COMMANDS = {"bench", "cli", "demo", "measure"}


def named(shown: str) -> str:
    return shown.partition("(")[0]


def test_the_page_and_the_exports_are_the_same():
    assert sorted(map(named, SHOWN)) == sorted(exatrkx_hpc.__all__)


@pytest.mark.parametrize("name", exatrkx_hpc.__all__)
def test_every_name_is_what_it_says_and_has_a_docstring(name: str):
    found = getattr(exatrkx_hpc, name)
    if name in ALIASES:
        return
    assert found.__name__ == name
    assert FRONT_DOOR in found.__module__
    own = vars(found).get("__doc__") if inspect.isclass(found) else found.__doc__
    assert own and not own.startswith(f"{name}("), "a dataclass without a docstring gets its signature"


@pytest.mark.parametrize("shown", [one for one in SHOWN if "(" in one], ids=named)
def test_a_signature_on_the_page_is_the_one_that_counts(shown: str):
    arguments = shown.partition("(")[2].removesuffix(")").replace("…", "...")
    page = ast.parse(f"lambda {arguments}: 0", mode="eval").body.args
    real = inspect.signature(getattr(exatrkx_hpc, named(shown))).parameters.values()
    assert [one.arg for one in page.args] == [one.name for one in real if one.kind is not one.KEYWORD_ONLY]
    assert [one.arg for one in page.kwonlyargs] == [one.name for one in real if one.kind is one.KEYWORD_ONLY]
    with_default = page.args[len(page.args) - len(page.defaults) :] + page.kwonlyargs
    pairs = zip(with_default, page.defaults + page.kw_defaults, strict=True)
    told = {one.arg: ast.literal_eval(value) for one, value in pairs if value is not None}
    assert told == {
        one.name: ... if callable(one.default) else one.default for one in real if one.default is not one.empty
    }


def test_type_checkers_see_what_programs_get():
    branch = next(node for node in TREES[FRONT_DOOR].body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name: node.module
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == exatrkx_hpc._HOMES
    assert sorted(seen) == sorted(exatrkx_hpc.__all__)


def test_all_errors_are_exported():
    tree = {name for name, one in vars(errors).items() if inspect.isclass(one) and one.__module__ == errors.__name__}
    assert tree <= set(exatrkx_hpc.__all__)


def test_all_news_that_a_program_is_told_is_exported():
    classes = {
        node.name: {base.id for base in node.bases if isinstance(base, ast.Name)}
        for module, tree in TREES.items()
        if folders(module)[0] not in OF_COMMANDS
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    told = {"News"}
    while more := {name for name, bases in classes.items() if bases & told} - told:
        told |= more
    told -= {"Words"}
    assert len(told) > 15
    assert told <= set(exatrkx_hpc.__all__), "export it, and put it into docs/python.md"


def test_no_name_hides_a_module():
    assert not {f"{FRONT_DOOR}.{name}" for name in exatrkx_hpc.__all__} & set(NAMES)


def test_a_name_costs_nothing_until_it_is_used():
    code = (
        "import sys, exatrkx_hpc\n"
        "names = dir(exatrkx_hpc)\n"
        "assert set(exatrkx_hpc.__all__) <= set(names) and len(set(names)) == len(names)\n"
        "assert not [name for name in sys.modules if name.startswith('exatrkx_hpc.')]\n"
        "assert exatrkx_hpc.InputError is exatrkx_hpc.InputError\n"
        "print(*sorted(name for name in sys.modules if name.startswith('exatrkx_hpc.')))\n"
    )
    done = run([sys.executable, "-c", code], cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "exatrkx_hpc.base exatrkx_hpc.base.errors\n"), done.stderr


@pytest.mark.slow
def test_all_of_it_comes_without_torch():
    modules = import_alone(*sorted(set(exatrkx_hpc._HOMES.values())))["modules"]
    assert "tritonclient" in modules and not {"torch", "cupy", "matplotlib", "pyarrow"} & set(modules)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'exatrkx_hpc' has no attribute 'dploy'"):
        operator.attrgetter("dploy")(exatrkx_hpc)
    with pytest.raises(ImportError):
        exec("from exatrkx_hpc import dploy")


@pytest.mark.slow
def test_a_module_is_still_found_by_name():
    code = "from exatrkx_hpc import farm, up; assert farm.up is up"
    assert run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_types_travel_with_the_package():
    assert (Path(exatrkx_hpc.__file__).parent / "py.typed").is_file()
