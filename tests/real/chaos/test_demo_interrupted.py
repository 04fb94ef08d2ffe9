"""The demo interrupted at any moment: nothing may be left."""

from __future__ import annotations

import os
import signal

import pytest
from command import PROGRAM, exatrkx_hpc
from processes_about import about
from segments import SHARED_MEMORY, abandoned
from waiting import until

from exatrkx_hpc.base.process import spawn

pytestmark = [pytest.mark.triton, pytest.mark.usefixtures("triton", "nginx", "prometheus")]

#: The demo's own lines mark the moments: before anything runs, servers starting, events under way.
MOMENTS = ["models: building", "starting", " s after the start"]


@pytest.mark.parametrize("moment", MOMENTS)
def test_ctrl_c_at_any_moment_leaves_nothing(tmp_path, moment):
    """The signal goes to the whole foreground group, as a terminal sends it, and a second one follows."""
    segments = set(SHARED_MEMORY.glob("exatrkx*"))
    log = tmp_path / "demo.log"
    argv = [PROGRAM, "demo", "--events", "200", "--folder", str(tmp_path / "demo")]
    child = spawn(argv, log=log, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    try:
        until(lambda: moment in log.read_text(), what=moment, deadline=180)
        os.killpg(child.pid, signal.SIGINT)
        child.wait(0.3)
        if child.returncode() is None:
            os.killpg(child.pid, signal.SIGINT)
        code = child.wait(60)
        assert code is not None, f"still at work: {log.read_text()}"
        assert code != 0
        assert "Traceback" not in log.read_text()
        until(lambda: not about(tmp_path), what=f"no process; left: {about(tmp_path)}", deadline=10)
        assert not abandoned(segments)
    finally:
        child.stop(grace=1)


def test_keep_leaves_the_farm_up_until_ctrl_c(tmp_path):
    log = tmp_path / "demo.log"
    argv = [PROGRAM, "demo", "--events", "2", "--servers", "1", "--keep", "--folder", str(tmp_path / "demo")]
    child = spawn(argv, log=log, cwd=tmp_path, env={**os.environ, "HOME": str(tmp_path)})
    try:
        until(lambda: "press Ctrl-C to stop it" in log.read_text(), what="the demo to linger", deadline=180)
        server = log.read_text().partition(" endpoint: ")[2].split()[0]
        events = tmp_path / "demo" / "events"
        again = exatrkx_hpc("run-clients", "-s", server.rstrip(","), "-d", events, "-n", 1, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
        child.send(signal.SIGINT)
        assert child.wait(60) == 0, log.read_text()
        assert about(tmp_path) == []
    finally:
        child.stop(grace=1)
