"""A step of srun, with a small srun in its place: what it is asked, what is heard of it, and how it is ended."""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import SimpleNamespace

import pytest
from waiting import until

from exatrkx_hpc.base.errors import LaunchError, MissingComponent
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.launch.slurm.step import nodes_of, run_step, srun_argv

pytestmark = pytest.mark.slow


#: Notes its words and the variables of the allocation, then runs the command once for each node, all at once.
SRUN = """\
#!/usr/bin/env bash
printf '%s\\n' "$@" >"$NOTES/argv"
env >"$NOTES/env"
tasks=0
while [[ $1 == --* ]]; do case $1 in --ntasks=*) tasks=${1#*=} ;; esac; shift; done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & done
trap 'kill -USR1 $(jobs -p)' USR1
trap 'kill -KILL $(jobs -p); exit 143' TERM
status=0
for job in $(jobs -p); do
  while :; do wait "$job"; code=$?; kill -0 "$job" 2>/dev/null || break; done
  [ "$code" -eq 0 ] || [ "$code" -ge 128 ] || status=$code
done
exit "$status"
"""

ON_USR1 = """
import os, signal, time
def say(word): os.write(1, word + b"\\n")
signal.signal(signal.SIGUSR1, lambda *_: {})
say(b"on")
while True: time.sleep(1)
"""


@pytest.fixture
def step(tmp_path, monkeypatch):
    """Run a step of two nodes with a small Python program as its command; gives what was heard of it."""
    program = tmp_path / "bin" / "srun"
    program.parent.mkdir()
    program.write_text(SRUN)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("NOTES", str(tmp_path))
    said: list[str] = []

    def run(code: str, *, look=lambda: None) -> str:
        log = tmp_path / "srun.log"
        return run_step(
            ["n1", "n2"], [sys.executable, "-c", code], log=log, stop=signal.SIGUSR1, look=look, heard=said.append
        )

    run.said = said
    return run


def test_what_srun_is_asked():
    words = srun_argv(["n1", "n7"], ["program", "a b"])
    assert words[:5] == ["srun", "--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--nodelist=n1,n7"]
    assert {"--overlap", "--no-kill", "--kill-on-bad-exit=0", "--wait=0", "--cpu-bind=none"} <= set(words)
    assert words[-2:] == ["program", "a b"]


@pytest.mark.parametrize(("most", "nodes"), [(None, ("n1", "n2", "n3")), (2, ("n1", "n2"))])
def test_the_nodes_are_those_that_the_job_has_now(most, nodes):
    info = JobInfo(id="7", state=JobState.RUNNING, nodes=("n1", "n2", "n3"))
    assert nodes_of("7", most=most, slurm=SimpleNamespace(info=lambda job: info)) == nodes


def test_a_job_that_is_over_has_none():
    info = JobInfo(id="7", state=JobState.CANCELLED, reason="by you")
    with pytest.raises(LaunchError, match=r"job 7 is CANCELLED \(by you\); 'squeue --me' lists your jobs"):
        nodes_of("7", slurm=SimpleNamespace(info=lambda job: info))


def test_it_runs_once_on_each_node_and_each_line_is_told(step, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_NTASKS", "64")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    looks: list[int] = []
    (tmp_path / "srun.log").write_text("of an earlier step\n")
    code = "import os, time; os.write(1, b'I am %s\\n' % os.environb[b'SLURM_PROCID']); time.sleep(0.8)"
    assert step(code, look=lambda: looks.append(1)) == ""
    assert sorted(step.said) == ["I am 0", "I am 1"] and looks
    variables = (tmp_path / "env").read_text().splitlines()
    assert "SLURM_JOB_ID=7" in variables and "SLURM_NTASKS=64" not in variables


def test_a_program_that_fails_is_told_with_its_last_words(step):
    with pytest.raises(LaunchError, match=r"srun failed \(exit 5\): .*it broke.*see .*srun\.log"):
        step("import sys; print('srun: error: it broke'); sys.exit(5)")


def test_news_of_a_program_are_no_reason_of_sruns(step):
    with pytest.raises(LaunchError, match=r"srun failed \(exit 5\): it broke; see "):
        step("""import sys; print('srun: error: it broke'); print('{"code": "run-resumed"}'); sys.exit(5)""")


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_reaches_the_programs_as_the_agreed_one(step, told):
    code = ON_USR1.format("exit(say(b'bye'))")
    press(step, told, after="on")
    assert step(code) == told.name
    assert step.said.count("bye") == 2


def test_a_second_signal_kills_what_does_not_end(step):
    code = ON_USR1.format("say(b'no')")
    press(step, signal.SIGTERM, after="on")
    press(step, signal.SIGINT, after="no")
    assert step(code) == "SIGTERM"


def press(step, number: signal.Signals, *, after: str) -> None:
    """Send this process a signal when both programs have said a word."""

    def wait() -> None:
        until(lambda: step.said.count(after) == 2, what=f"{after} of both")
        os.kill(os.getpid(), number)

    threading.Thread(target=wait, daemon=True).start()


def test_without_srun_the_line_says_what_to_do(step, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingComponent, match="srun is not on PATH; run this on a machine with Slurm's commands"):
        step("")
