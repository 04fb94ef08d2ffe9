"""Programs are run to their end or stopped with all that they started; signals do not break what is whole."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.process import (
    Child,
    Completed,
    find_program,
    kill_session,
    run,
    session_members,
    spawn,
    spawn_piped,
)
from exatrkx_hpc.base.signals import deferred_signals

pytestmark = pytest.mark.slow


#: A shell whose children, and their children, ignore SIGTERM; it says their ids and waits for them.
STUBBORN = """
bash -c 'trap "" TERM; sleep 300 & echo $! >&3; while :; do sleep 0.1; done' 3>&1 &
echo $!
trap 'exit 0' TERM
wait
"""


#: No thread can start, because its stack would not fit; asyncio waits for a child in a thread before Python 3.12.
NO_THREAD_LEFT = """
import asyncio, threading
from exatrkx_hpc.base.process import spawn_piped
threading.stack_size(1 << 46)
try:
    asyncio.run(spawn_piped(["cat"]))
except OSError as error:
    print(error.strerror)
else:
    print("started")
"""


def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Child]]:
    """Spawn a program; whatever happens in the test, its session is gone afterwards."""
    children = []

    def begin(*argv: str, log: Path | None = None) -> Child:
        children.append(spawn(argv, log=log or tmp_path / "log"))
        return children[-1]

    yield begin
    for child in children:
        child.stop(grace=0)


class TestRun:
    def test_it_returns_what_the_program_said(self):
        done = run(["bash", "-c", 'read line; echo "out $line $A"; echo err >&2; exit 3'], stdin="in\n", env={"A": "a"})
        assert (done.returncode, done.stdout, done.stderr) == (3, "out in a\n", "err\n")

    def test_words_stay_words(self, tmp_path: Path):
        words = ["a b", "$HOME", "'; echo foo", "", "*"]
        assert run(["printf", "%s\\n", *words], cwd=tmp_path).stdout.split("\n")[:-1] == words

    def test_what_is_no_utf8_is_replaced(self):
        assert run(["printf", r"caf\351"]).stdout == "caf�"

    def test_a_program_that_outlasts_its_time_is_killed_and_is_124(self, tmp_path: Path):
        script = f"echo $$ >'{tmp_path}/pid'; exec sleep 300"
        done = run(["bash", "-c", script], timeout=0.5)
        assert (done.returncode, done.complaint) == (124, "bash did not finish within 0.5 s")
        assert not alive(int((tmp_path / "pid").read_text()))

    def test_a_program_that_is_not_there_is_one_line(self):
        with pytest.raises(MissingComponent, match=r"^no-such-program is not on PATH; install it"):
            run(["no-such-program"])

    def test_a_file_that_is_no_program_is_one_line(self, tmp_path: Path):
        (tmp_path / "text").write_text("no program")
        with pytest.raises(MissingComponent, match=r"cannot be started: .*Permission denied"):
            run([str(tmp_path / "text")])
        (tmp_path / "text").chmod(0o755)
        with pytest.raises(MissingComponent, match=r"cannot be started: .*Exec format error"):
            spawn([str(tmp_path / "text")], log=tmp_path / "log")

    def test_a_folder_that_is_not_there_is_not_called_a_missing_program(self, tmp_path: Path):
        with pytest.raises(MissingComponent, match=r"bash cannot be started: .*none"):
            run(["bash"], cwd=tmp_path / "none")

    @pytest.mark.parametrize(
        ("stdout", "stderr", "complaint"),
        [
            ("", "", "it printed nothing"),
            ("out\n", " \n", "out"),
            ("out\n", "error: a\n  b\n", "error: a, b"),
            ("", "1\n2\n3\n4\n", "2, 3, 4"),
        ],
    )
    def test_a_complaint_is_one_line(self, stdout: str, stderr: str, complaint: str):
        assert Completed(argv=("x",), returncode=1, stdout=stdout, stderr=stderr).complaint == complaint


class TestFindProgram:
    def test_path_goes_before_the_folder_of_python(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        (tmp_path / "pip").write_text("#!/bin/sh\n")
        (tmp_path / "pip").chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        assert find_program("pip", remedy="") == str(tmp_path / "pip")
        beside = Path(sys.executable).name
        assert find_program(beside, remedy="") == str(Path(sys.executable).parent / beside)

    def test_a_missing_one_says_what_to_do(self):
        with pytest.raises(MissingComponent, match=r"^no-such-program is not on PATH; load its module$"):
            find_program("no-such-program", remedy="load its module")


class TestSpawn:
    def test_the_output_is_appended_to_the_log(self, tmp_path: Path, start: Callable[..., Child]):
        log = tmp_path / "log"
        log.write_text("before\n")
        child = start("bash", "-c", "echo out; echo err >&2; exit 4")
        assert child.wait(20) == 4 == child.returncode()
        assert log.read_text() == "before\nout\nerr\n"

    def test_a_missing_program_is_one_line(self, tmp_path: Path):
        with pytest.raises(MissingComponent, match="no-such-program is not on PATH"):
            spawn(["no-such-program"], log=tmp_path / "log")

    def test_wait_gives_up_at_its_deadline(self, start: Callable[..., Child]):
        child = start("sleep", "300")
        assert child.wait(0.05) is None
        assert child.returncode() is None
        child.stop(grace=5)
        assert child.returncode() == -signal.SIGTERM

    def test_stop_kills_what_ignores_its_signal_and_what_it_left(self, tmp_path: Path, start: Callable[..., Child]):
        log = tmp_path / "log"
        child = start("bash", "-c", STUBBORN)
        until(lambda: len(log.read_text().split()) == 2)
        family = [child.pid, *map(int, log.read_text().split())]
        assert set(family) <= set(session_members(child.pid))
        child.stop(grace=1)
        assert child.returncode() == 0, "the first signal was enough for the program itself"
        assert [pid for pid in family if alive(pid)] == []

    def test_stop_kills_a_program_that_ignores_its_signal(self, tmp_path: Path, start: Callable[..., Child]):
        log = tmp_path / "log"
        child = start("bash", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done")
        until(lambda: log.read_text() == "ready\n")
        child.stop(grace=0.2)
        assert child.returncode() == -signal.SIGKILL
        child.stop(grace=0.2)
        child.send(signal.SIGTERM)

    def test_stop_asks_with_another_signal_if_told(self, tmp_path: Path, start: Callable[..., Child]):
        log = tmp_path / "log"
        child = start("bash", "-c", "trap 'exit 7' QUIT; echo ready; while :; do sleep 0.05; done")
        until(lambda: log.read_text() == "ready\n")
        child.stop(grace=100, first=signal.SIGQUIT)
        assert child.returncode() == 7

    def test_a_ctrl_c_at_this_terminal_does_not_reach_it(self, start: Callable[..., Child]):
        child = start("sleep", "300")
        assert os.getsid(child.pid) == child.pid != os.getsid(0)

    def test_kill_session_takes_every_process_group_and_nobody_else(self, tmp_path: Path, start: Callable[..., Child]):
        log = tmp_path / "log"
        bystander = start("sleep", "300", log=tmp_path / "other")
        # set -m gives each job a process group of its own, as server.sh does
        child = start("bash", "-c", "set -m; sleep 300 & sleep 300 & echo ready; wait")
        until(lambda: log.read_text() == "ready\n")
        assert len(session_members(child.pid)) == 3
        kill_session(child.pid)
        assert child.wait(5) == -signal.SIGKILL
        assert session_members(child.pid) == []
        assert bystander.returncode() is None

    def test_piped_programs_have_a_session_of_their_own(self):
        async def talk() -> tuple[bytes, bool]:
            process = await spawn_piped(["cat"])
            apart = os.getsid(process.pid) == process.pid
            return (await process.communicate(b"hello"))[0], apart

        assert asyncio.run(talk()) == (b"hello", True)

    def test_a_piped_program_that_has_no_thread_to_wait_for_it_is_an_error_of_the_system(self):
        child = run([sys.executable, "-c", NO_THREAD_LEFT])
        said = "can't start new thread" if sys.version_info < (3, 12) else "started"
        assert child.stdout == f"{said}\n", child.stderr


#: Interrupts protobuf where it calls Python for an enumeration: it then raises an error of its own instead.
INTERRUPTED = """
import os, signal, sys
from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup
from exatrkx_hpc import cli

def interrupt(frame, event, argument):
    if "enum_type_wrapper" in frame.f_code.co_filename:
        sys.settrace(None)
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))

def app(standalone_mode):
    if len(sys.argv) > 1:
        sys.settrace(interrupt)
    ModelInstanceGroup.Kind
    raise AttributeError("a fault of ours")

cli.app = app
cli.main()
"""


class TestUnwinding:
    def test_asyncio_may_answer_ctrl_c_by_a_cancellation(self):
        """It does so only where SIGINT has Python's own handler; an exception inside gRPC crashes the program."""
        script = "import signal; from exatrkx_hpc import cli; "
        script += "cli.app = lambda **_: print(signal.getsignal(signal.SIGINT) is signal.default_int_handler); "
        script += "from exatrkx_hpc.__main__ import main; main()"
        assert run([sys.executable, "-c", script]).stdout == "True\n"

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
    def test_a_stop_that_a_library_turned_into_its_own_error_is_still_a_stop(self, number: signal.Signals):
        done = run([sys.executable, "-c", INTERRUPTED, number.name])
        assert (done.returncode, done.stdout) == (128 + number, "")
        assert done.stderr == "exatrkx-hpc: stopped in the middle of something (AttributeError: Kind)\n"

    def test_ctrl_c_before_a_command_begins_is_no_traceback(self):
        script = "import os, signal, sys; from exatrkx_hpc import cli; "
        script += "cli.app = lambda **_: os.kill(os.getpid(), signal.SIGINT); cli.main(); print('it went on')"
        done = run([sys.executable, "-c", script])
        assert (done.returncode, done.stdout, done.stderr) == (128 + signal.SIGINT, "", "")

    def test_without_a_stop_a_fault_of_ours_shows_where_it_is(self, tmp_path: Path):
        done = run([sys.executable, "-c", INTERRUPTED], env={**os.environ, "XDG_STATE_HOME": str(tmp_path)})
        assert done.returncode == 70
        assert "AttributeError: a fault of ours" in done.stderr
        (report,) = (tmp_path / "exatrkx-hpc").iterdir()
        assert str(report) in done.stderr and "Traceback" in report.read_text()


class TestDeferredSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_waits_for_the_end_of_the_block_and_then_comes_once(self, number: signal.Signals):
        got: list[int] = []
        before = signal.signal(number, lambda received, _: got.append(received))
        try:
            with deferred_signals():
                os.kill(os.getpid(), number)
                os.kill(os.getpid(), number)
                assert got == []
            assert got == [number]
        finally:
            signal.signal(number, before)

    def test_an_error_in_the_block_does_not_lose_the_signal_or_the_handler(self):
        handler = signal.getsignal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), deferred_signals():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError
        assert signal.getsignal(signal.SIGINT) is handler

    def test_blocks_may_be_nested(self):
        order: list[str] = []
        with pytest.raises(KeyboardInterrupt):
            with deferred_signals():
                with deferred_signals():
                    os.kill(os.getpid(), signal.SIGINT)
                order.append("inner is over")
            order.append("never")
        assert order == ["inner is over"]

    def test_in_another_thread_it_is_no_obstacle(self):
        ran: list[bool] = []

        def work() -> None:
            with deferred_signals():
                ran.append(True)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert ran == [True]
