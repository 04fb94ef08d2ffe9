"""The pages are true: their commands run, and what they name exists. CONTRIBUTING.md says how to write them."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import typer.main
from pages import FENCE, NOT_RUN, blocks, consoles, python_blocks
from paths import ROOT
from segments import abandoned

from exatrkx_hpc.base.process import run, spawn
from exatrkx_hpc.cli import app
from exatrkx_hpc.config.resolve import known_keys

#: The program's commands; they are expensive to make.
PROGRAM = typer.main.get_command(app)

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHARED_MEMORY = Path("/dev/shm")
RUN_PYTHON = "\n<!-- test: run the python blocks -->\n"
PORTS = {
    "EXATRKX_HPC_BALANCER_GRPC_PORT": 9191,
    "EXATRKX_HPC_BALANCER_HTTP_PORT": 9190,
    "EXATRKX_HPC_MONITOR_PROMETHEUS_PORT": 9090,
}
DEADLINE = 240.0

CODE_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")


def complaint(command: str) -> str:
    """What is wrong with the calls of this project in a line of bash, '' if nothing is."""
    lexer = shlex.shlex(command.replace("$(", " ( "), posix=True, punctuation_chars="();<>|&\n")
    lexer.whitespace_split = True
    words = list(lexer)
    for start, word in enumerate(words):
        end = next((i for i in range(start, len(words)) if set(words[i]) <= set("();<>|&")), len(words))
        arguments = words[start + 1 : end]
        if word.rpartition("/")[2] == "exatrkx-hpc" and (fault := _fault(arguments)):
            return fault
        if word == "make" and (start == 0 or words[start - 1] in {"&&", ";"}):
            targets = {w for w in arguments if "=" not in w}
            if unknown := targets - set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)):
                return f"the Makefile has no target {sorted(unknown)}"
    return ""


def _fault(arguments: list[str]) -> str:
    command = PROGRAM
    for word in arguments:
        if word == "…":
            break
        if word.startswith("-") and word != "--help":
            name = word.partition("=")[0] if word.startswith("--") else word[:2]
            if name not in {
                option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)
            }:
                return f"{command.name} has no option {name}"
        elif hasattr(command, "commands") and not word.startswith("-"):
            if word not in command.commands:
                return f"{command.name} has no command {word!r}"
            command = command.commands[word]
    return ""


def ids(page: Path) -> str:
    return str(page.relative_to(ROOT))


every_page = pytest.mark.parametrize("path", PAGES, ids=ids)


@every_page
def test_what_the_page_names_exists(path: Path) -> None:
    page = path.read_text()
    prose = FENCE.sub("", page)
    spans = [span for span in CODE_SPAN.findall(prose) if span.startswith("exatrkx-hpc ")]
    faults = [f"{span}: {complaint(span)}" for span in spans if complaint(span)]
    keys = set(known_keys())
    sections = {key.partition(".")[0] for key in keys if "." in key}
    for span in CODE_SPAN.findall(prose):
        named = re.match(r"([a-z]+)\.[a-z_]+(?= =|$)", span)
        is_file = named is not None and named[0].endswith((".sh", ".lock", ".log", ".lease"))
        if named and named[1] in sections and named[0] not in keys and not is_file:
            faults.append(f"{named[0]} is no configuration key")
    assert not faults, f"{ids(path)}: {faults}"


def anchors(page: str) -> set[str]:
    """The names by which a link reaches the headings of a page, as GitHub makes them."""
    found: dict[str, int] = {}
    names = set()
    for title in re.findall(r"^#{1,6} (.+?) *$", FENCE.sub("", page), re.MULTILINE):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).lower()
        slug = re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
        count = found[slug] = found.get(slug, -1) + 1
        names.add(f"{slug}-{count}" if count else slug)
    return names


def broken_links(path: Path) -> list[str]:
    """The relative links of a page whose file is missing, or whose heading is."""
    broken = []
    for target in LINK.findall(FENCE.sub("", path.read_text())):
        name, _, anchor = target.partition("#")
        page = path.parent / name if name else path
        if "://" not in target and (
            not page.exists() or (anchor and page.suffix == ".md" and anchor not in anchors(page.read_text()))
        ):
            broken.append(target)
    return broken


@every_page
def test_links_lead_somewhere(path: Path) -> None:
    assert not broken_links(path)


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "other.md").write_text("# Title\n## What `x.y` is, and why\n## Title\n```text\n# no heading\n```\n")
    good = "[a](other.md) [b](other.md#title-1) [c](other.md#what-xy-is-and-why) [d](#here) [e](https://no.where/#x)"
    bad = ["none.md", "other.md#no-heading", "other.md#title-2", "#there"]
    page = tmp_path / "page.md"
    page.write_text(f"# Here\n{good}\n" + "\n".join(f"[x]({target})" for target in bad))
    assert broken_links(page) == bad


@every_page
def test_commands_are_in_console_blocks(path: Path) -> None:
    known = {"console", "python", "mermaid", "text", "toml", "json", "csv"}
    page = path.read_text()
    assert not {block.language for block in blocks(page)} - known, "unknown language of a block"
    assert not [b.words for b in blocks(page) if set(b.words[1:]) - NOT_RUN], "unknown word after a fence"
    hidden = [b for b in blocks(page) if b.language == "text" and re.search(r"^(\$ |exatrkx-hpc )", b.text, re.M)]
    assert not hidden, "a command in a block that no test runs"


@every_page
def test_commands_that_cannot_run_here_exist(path: Path) -> None:
    for line, command in consoles(path.read_text(), run_here=False):
        where = f"{ids(path)}:{line}: {command}"
        assert not complaint(command), f"{where}: {complaint(command)}"
        syntax = run(["bash", "-n"], stdin=command + "\n")
        assert syntax.returncode == 0, f"{where}: {syntax.complaint}"


@every_page
def test_python_parses_and_its_imports_exist(path: Path) -> None:
    for block in python_blocks(path.read_text()):
        for node in ast.walk(ast.parse(block.text)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = imported(node.module)
                missing = [
                    name.name
                    for name in node.names
                    if not hasattr(module, name.name) and not importlib.util.find_spec(f"{node.module}.{name.name}")
                ]
                assert not missing, f"{ids(path)}:{block.line}: {node.module} has no {missing}"
            elif isinstance(node, ast.Import):
                for name in node.names:
                    imported(name.name)


def imported(name: str) -> ModuleType:
    """The module that a page imports; where one of an extra is not installed the test skips."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("exatrkx_hpc"):
            raise
        pytest.skip(f"{error.name} is not installed")


def test_the_index_names_every_page() -> None:
    linked = {(ROOT / "docs" / target).resolve() for target in LINK.findall((ROOT / "docs/README.md").read_text())}
    assert not [ids(page) for page in (ROOT / "docs").rglob("*.md") if page.name != "README.md" and page not in linked]


def test_the_reference_has_every_command_with_its_options_and_no_others() -> None:
    parts = re.split(r"^## ", (ROOT / "docs/reference/commands.md").read_text(), flags=re.MULTILINE)
    sections = {part.partition("\n")[0]: set(re.findall(r"`(--?[A-Za-z0-9-]+)`", _options(part))) for part in parts[1:]}
    common = sections.pop("Common options")
    named = {re.match(r"[a-z -]+[a-z]", title)[0]: options for title, options in sections.items()}
    assert named == {name: options - common for name, options in _leaves(PROGRAM)}


def _options(part: str) -> str:
    """The first column of the table in a part of a page."""
    return "\n".join(line.split("|")[1] for line in part.splitlines() if line.startswith("| `-"))


def _leaves(command: object, *path: str) -> Iterator[tuple[str, set[str]]]:
    """Each command that does something, with all its options."""
    if hasattr(command, "commands"):
        for name, below in command.commands.items():
            yield from _leaves(below, *path, name)
    else:
        options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
        yield " ".join(path), {option for option in options if option.startswith("-")} - {"--help"}


@pytest.mark.slow
def test_what_a_page_leaves_is_found_and_ended(tmp_path: Path) -> None:
    child = None
    with pytest.raises(AssertionError, match="still running at the end"), nothing_left_of(tmp_path):
        child = spawn(["sleep", "600"], log=tmp_path / "log", cwd=tmp_path)
    assert child is not None
    assert child.wait(timeout=5) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("command", "fault"),
    [
        ("exatrkx-hpc deploy -N 4 --dry-run > x", ""),
        ("job=$(exatrkx-hpc deploy) && exatrkx-hpc models build --out=x | cat", ""),
        ("exatrkx-hpc depoly", "has no command 'depoly'"),
        ("cat x | exatrkx-hpc models build --gpu", "build has no option --gpu"),
        ("job=$(exatrkx-hpc deploy -X)", "deploy has no option -X"),
        ("make demo test", ""),
        ("make tea", "the Makefile has no target ['tea']"),
    ],
)
def test_a_wrong_command_is_found(command: str, fault: str) -> None:
    assert (fault in complaint(command)) if fault else not complaint(command)


RUNNABLE = [
    pytest.param(page, id=ids(page))
    for page in PAGES
    if consoles(page.read_text(), run_here=True) or RUN_PYTHON in page.read_text()
]


@pytest.mark.triton
@pytest.mark.usefixtures("triton", "nginx", "prometheus")
@pytest.mark.parametrize("path", RUNNABLE)
@pytest.mark.slow
def test_the_commands_of_the_page_run(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "home"
    home.mkdir()
    page = path.read_text()
    script = tmp_path / "page.sh"
    script.write_text(page_script(path, page, tmp_path))
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    # Each model is loaded once, not also to ask it for a configuration that it has already.
    monkeypatch.setenv("EXATRKX_HPC_SERVER_EXTRA_ARGUMENTS", '["--disable-auto-complete-config"]')
    if "2 ready" not in page:  # a server takes 15 s of processor time until it is ready: one will do
        monkeypatch.setenv("EXATRKX_HPC_JOB_NODES", "1")
    # Of the workers of a parallel run, one alone may have the ports that the pages name.
    others = os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0"
    for name, port in PORTS.items():
        if others or in_use(port):
            monkeypatch.setenv(name, "0")
    log = tmp_path / "page.log"
    with nothing_left_of(home):
        child = spawn(["bash", str(script)], log=log, cwd=home)
        status = child.wait(timeout=DEADLINE)
        child.stop(grace=30)
        assert status == 0, f"{ids(path)} ended with {status}:\n{log.read_text()}"


def page_script(path: Path, page: str, folder: Path) -> str:
    """The page's commands as one script; each is printed first, so that the log shows which one failed."""
    lines = ["set -eo pipefail", "trap 'jobs=$(jobs -p); [ -z \"$jobs\" ] || kill $jobs; wait' EXIT"]
    for line, command in consoles(page, run_here=True):
        lines += [f"echo {shlex.quote(f'{ids(path)}:{line}: {command}')}", command]
    if RUN_PYTHON in page:
        program = folder / "page.py"
        program.write_text("".join(block.text for block in python_blocks(page)))
        lines += [f"echo {shlex.quote(f'{ids(path)}: its python blocks')}", f"python {shlex.quote(str(program))}"]
    return "\n".join(lines) + "\n"


@contextlib.contextmanager
def nothing_left_of(folder: Path) -> Iterator[None]:
    """After the block no process works in `folder` and no shared memory of a server is left; what is, is ended."""
    segments = set(SHARED_MEMORY.glob("exatrkx_*"))
    try:
        yield
    finally:
        processes = dict(working_in(folder))
        for pid in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        left = abandoned(segments)
        for segment in left:
            segment.unlink(missing_ok=True)
    assert not processes, f"still running at the end: {processes}"
    assert not left, f"shared memory left behind: {left}"


def working_in(folder: Path) -> Iterator[tuple[int, str]]:
    """The processes whose working directory or command is in `folder`: all that a page started has the one."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if (entry / "cwd").readlink().is_relative_to(folder) or str(folder) in words:
                yield int(entry.name), words


def in_use(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False
