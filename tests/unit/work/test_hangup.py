"""A dropped terminal (SIGHUP) stops a run like any other stop signal: written down, and no process stays behind."""

from __future__ import annotations

import contextlib
import os
import pty
import signal
import sqlite3
import sys
import time
from pathlib import Path

import psutil
import pytest
from command import PROGRAM
from fakes.running import fake_triton
from runs import driver, workers_of
from waiting import until

from exatrkx_hpc.base.errors import IncompleteRun
from exatrkx_hpc.work.run.run import StoppedRun, run_clients


def stopped_reason(out) -> str | None:
    with contextlib.closing(sqlite3.connect(out / "ledger.sqlite")) as db:
        return db.execute("SELECT stopped FROM runs ORDER BY run DESC LIMIT 1").fetchone()[0]


def test_a_hangup_stops_a_run_and_the_ledger_says_so(settings):
    def stop(tally):
        if tally.done == 2:
            os.kill(os.getpid(), signal.SIGHUP)

    run_settings = settings(sizes=[3] * 40)
    with fake_triton("--delay", "0.05") as fake, pytest.raises(StoppedRun, match="stopped by SIGHUP"):
        run_clients(settings(server=fake.server, in_flight=1), stop)
    assert stopped_reason(run_settings.out) == "stopped by SIGHUP"


def test_a_hangup_that_nohup_ignores_does_not_stop_a_run(settings):
    def hang_up(tally):
        if tally.done == 1:
            os.kill(os.getpid(), signal.SIGHUP)

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run_clients(settings(sizes=[3] * 4), hang_up).check()
    finally:
        signal.signal(signal.SIGHUP, before)


def hears_no_hangup(worker: psutil.Process) -> bool:
    """Return whether a process ignores SIGHUP, the first signal."""
    lines = Path(f"/proc/{worker.pid}/status").read_text().splitlines()
    return bool(int(next(line for line in lines if line.startswith("SigIgn")).split()[1], 16) & 1)


def test_workers_outlive_a_hangup_until_their_coordinator_has_stopped_them(settings, tmp_path):
    run_settings = settings(sizes=[3] * 2000)
    with fake_triton("--delay", "0.05") as fake, driver(settings(server=fake.server), tmp_path / "log") as child:
        until(lambda: len(list(run_settings.folder.glob("*.csv"))) > 3, what="the first results")
        workers = workers_of(child.pid)
        assert workers
        until(lambda: all(map(hears_no_hangup, workers)), what="workers that have begun")
        for worker in workers:
            worker.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert all(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)


def test_a_closed_terminal_stops_the_command(settings, tmp_path):
    """The terminal is gone, so that each further write to it fails, and SIGHUP comes: as when ssh drops."""
    run_settings = settings(sizes=[3] * 1000)
    with fake_triton("--delay", "0.05") as fake:
        words = ("run-clients", "-s", fake.server, "-d", run_settings.events, "-o", run_settings.out, "-n", 2)
        pid, terminal = pty.fork()
        if pid == 0:
            os.environ["HOME"] = str(tmp_path)
            os.chdir(tmp_path)
            os.execv(PROGRAM, [PROGRAM, *map(str, words)])
        try:
            os.set_blocking(terminal, False)

            def read_and_count() -> bool:
                with contextlib.suppress(OSError):
                    os.read(terminal, 1 << 16)
                return len(list(run_settings.folder.glob("*.csv"))) > 3

            until(read_and_count, what="the first results", deadline=60)
            workers = workers_of(pid)
            assert workers
            os.close(terminal)
            status: list[int] = []

            def ended() -> bool:
                gone, code = os.waitpid(pid, os.WNOHANG)
                status.extend([code] if gone else [])
                return bool(gone)

            until(ended, what="the end of the command")
        finally:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status[0]) in (IncompleteRun.exit_code, 128 + signal.SIGHUP)
    assert stopped_reason(run_settings.out) == "stopped by SIGHUP"
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive, sys.argv
