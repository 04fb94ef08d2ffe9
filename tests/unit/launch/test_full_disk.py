"""A job whose run root is full when it gets its signal still drains. Its disk is a tmpfs that nothing else sees."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.process import run
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.launch.plan import make_plan
from exatrkx_hpc.launch.render import render_job

#: Arguments: the run root, the job's script, a signal, a command that spoils the run root.
RUNS = """\
mount -t tmpfs -o size=1m tmpfs "$1"
mkdir -p "$1/python/$5"
bash "$2" &
job=$!
until grep -qs '"state":"starting"' "$1"/42/records/*.json; do sleep 0.05; done
bash -c "$4" bash "$1"
dd if=/dev/zero of="$1/filler" bs=4k 2>/dev/null
! echo content 2>/dev/null >"$1/42/probe" || exit 99
kill -s "$3" "$job"
wait "$job"
status=$?
while kill -0 "$job" 2>/dev/null; do wait "$job"; status=$?; done
exit "$status"
"""
TRITON = """\
#!/bin/bash
trap 'echo TERM >>{notes}; exit 0' TERM
sleep 600 & wait
"""


@pytest.mark.skipif(os.getuid() != 0, reason="root: needed to mount a disk of its own")
@pytest.mark.parametrize(
    "spoilt", ["true", 'rm -r "$1/42/requests"', 'rm -r "$1/42/requests"; mkdir -p "$1/42/stop/x"']
)
@pytest.mark.parametrize("signal", ["TERM", "USR2", "USR1"])
def test_a_full_disk_does_not_stop_the_drain(tmp_path: Path, signal: str, spoilt: str):
    notes, programs, root = tmp_path / "notes", tmp_path / "programs", tmp_path / "root"
    programs.mkdir()
    root.mkdir()
    (programs / "tritonserver").write_text(TRITON.format(notes=notes))
    (programs / "tritonserver").chmod(0o755)
    (programs / "srun").symlink_to(asset("jobs/embedded-srun.sh"))
    flags = {"run_root": str(root), "cluster.scheduler": "local", "server.drain": 0, "server.exit_timeout": 5}
    plan = make_plan(resolve(flags=flags, ambient=False).farm)
    script = tmp_path / "farm.sbatch"
    script.write_text(render_job(plan))
    variables = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "SLURM_JOB_ID": "42",
        "SLURM_JOB_NODELIST": "127.0.0.1",
    }
    words = ["unshare", "--mount", "--propagation", "private", "bash", "-c", RUNS, "bash", str(root), str(script)]
    done = run([*words, signal, spoilt, Path(plan.python).name], env=variables, timeout=60, apart=True)
    assert done.returncode == 0, done.stderr
    assert notes.read_text() == "TERM\n", "Triton was asked to end, and not killed"
    assert list(root.iterdir()) == []
