"""Fixtures and hooks of all tests: a clean configuration, the reference data, and no missing parts in CI."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from inspect import unwrap
from pathlib import Path
from types import FunctionType

import pytest
from command import exatrkx_hpc
from fakes.running import fake_triton
from paths import GOLDEN, ROOT
from reference_files import reference_folder
from runs import driver, make_events
from segments import SHARED_MEMORY, abandoned
from triton_helper import running_triton
from xdist.scheduler import LoadScopeScheduling

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.process import find_program
from exatrkx_hpc.fleet.balancer.nginx import find_nginx
from exatrkx_hpc.launch.embedded.triton import embedded_triton
from exatrkx_hpc.work.run.run import Settings

#: A skip whose reason begins with one of these is allowed even with EXATRKX_REQUIRE=all, as in CI: the reference data
#: are not public, and a test suite cannot install a GPU or CUDA's compiler.
_ALLOWED_SKIPS = ("reference data: ", "GPU: ")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the files in tests/golden")


#: Test files that share a worker of a parallel run, because they prepare the same expensive resource first.
_TOGETHER = {"test_podman_slurm.py": "test_podman.py"}
#: Test files without shared resources: any free worker may run each of their tests.
_APART = ("test_docs.py", "test_demo.py", "test_demo_interrupted.py")


class _ByFile(LoadScopeScheduling):
    """Sends a file's tests to one worker. (xdist's own groups fail with pytest 9.2, which keeps its node IDs.)"""

    def _split_scope(self, nodeid: str) -> str:
        name = Path(nodeid.partition("::")[0]).name
        return nodeid if name in _APART else _TOGETHER.get(name, name)


_REAL = ROOT / "tests" / "real"
#: The mark that a folder of tests/real gives to its tests.
_MARKS = {"triton": "triton", "slurm": "slurm", "containers": "podman", "browser": "browser", "chaos": "chaos"}
#: Fixtures that find or start a server or a command.
_STARTING = {"triton", "nginx", "prometheus", "server", "deploy", "exported"}
#: Functions that start a server or a command.
_STARTERS = (exatrkx_hpc, fake_triton, running_triton, driver)


def _starters(function: FunctionType, seen: set[FunctionType]) -> set[str]:
    """Return the names of the starters that a function calls, directly or through functions of its own module."""
    function = unwrap(function)
    found: set[str] = set()
    if function in seen:
        return found
    seen.add(function)
    for name in function.__code__.co_names:
        called = function.__globals__.get(name)
        if any(called is starter for starter in _STARTERS):
            found.add(name)
        elif isinstance(called, FunctionType) and called.__module__ == function.__module__:
            found |= _starters(called, seen)
    return found


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark a test by its folder; also mark it `part` if its marks, fixtures or calls need a server or a command."""
    if item.path.is_relative_to(_REAL):
        item.add_marker(_MARKS[item.path.relative_to(_REAL).parts[0]])
    needs = {mark.name for mark in item.iter_markers()} & set(_MARKS.values())
    if isinstance(item, pytest.Function):
        needs |= _STARTING & set(item.fixturenames)
        needs |= _starters(item.function, set())
    if needs:
        item.add_marker("part")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    return _ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start slow tests first, so that a parallel run does not end with them."""
    long = ("podman", "slurm", "triton")
    items.sort(key=lambda item: next((at for at, mark in enumerate(long) if item.get_closest_marker(mark)), len(long)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Fail each test that skips because of a missing part, if EXATRKX_REQUIRE=all."""
    outcome = yield
    _refuse_skip(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    """Do the same for a file that skips as a whole."""
    outcome = yield
    _refuse_skip(outcome.get_result())


def _refuse_skip(report: pytest.TestReport | pytest.CollectReport) -> None:
    if os.environ.get("EXATRKX_REQUIRE") == "all" and report.skipped and isinstance(report.longrepr, tuple):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(_ALLOWED_SKIPS):
            report.outcome = "failed"
            report.longrepr = f"EXATRKX_REQUIRE=all, but: {reason}"


@pytest.fixture(autouse=True)
def clean_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the EXATRKX_HPC_* variables of the user, so that they do not change the tests."""
    for name in list(os.environ):
        if name.startswith("EXATRKX_HPC_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def heard_signals() -> None:
    """Let child processes receive SIGHUP, SIGINT and SIGQUIT, even if nohup or a shell's & ignores them.

    A child inherits ignored signals. For a signal that its parent handles, it starts with the default.
    """
    for number in (signal.SIGHUP, signal.SIGQUIT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fail if the session leaves shared memory of a server behind."""
    before = set(SHARED_MEMORY.glob("exatrkx*"))
    yield
    left = abandoned(before)  # segments that another farm of this machine uses do not count
    assert not left, f"shared memory left behind: {sorted(left)}"


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder that holds `exatrkx/` with reference events and stages."""
    return reference_folder()


@pytest.fixture(scope="session")
def triton(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip the test unless the embedded Triton is installed."""
    try:
        embedded_triton(tmp_path_factory.mktemp("triton"))
    except MissingComponent as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def nginx() -> str:
    """Return the path of nginx; skip the test without it."""
    try:
        return find_nginx()
    except MissingComponent as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def prometheus() -> str:
    """Return the path of Prometheus; skip the test without Prometheus or promtool."""
    try:
        find_program("promtool", remedy="install the package 'prometheus'")
        return find_program("prometheus", remedy="install the package 'prometheus'")
    except MissingComponent as error:
        pytest.skip(str(error))


@pytest.fixture
def web_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set a web proxy that cannot reach any node."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The address of a fake Triton."""
    with fake_triton() as fake:
        yield fake.server


@pytest.fixture
def settings(tmp_path: Path, server: str) -> Callable[..., Settings]:
    """Return a function that makes settings of a small run: `sizes` creates events, other keywords override values."""

    def make(*, sizes: Sequence[int] = (), **changes: object) -> Settings:
        folder = make_events(tmp_path / "events", sizes) if sizes else tmp_path / "events"
        return Settings(**({"server": server, "events": folder, "out": tmp_path / "out", "workers": 1} | changes))

    return make


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """Return a function that compares a text with a file in tests/golden, or writes it with --update-golden."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} is missing; run pytest --update-golden and read what it wrote"
        assert text == path.read_text()

    return compare
