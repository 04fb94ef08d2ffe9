"""A deploy on this machine that was killed before it knew its job's process: the job says itself which it is."""

from __future__ import annotations

import json
from pathlib import Path

from schedulers import WAITS, made, submitted
from waiting import until

from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.launch.run_dir import RunDir


def test_the_job_is_found_and_ended(tmp_path: Path):
    scheduler, plan = made("local", tmp_path)
    job = submitted(scheduler, plan, tmp_path, WAITS)
    run_dir = RunDir(tmp_path / job)
    until(lambda: run_dir.session.exists() and bool(run_dir.session.read_text()), what="the job's own word")
    record = json.loads(run_dir.embedded_job.read_text())
    session, started = map(int, run_dir.session.read_text().split())
    assert (record["session"], record["started"]) == (session, started)
    run_dir.embedded_job.write_text(json.dumps({**record, "session": 0, "started": 0}))
    later, _ = made("local", tmp_path)
    assert later.info(job).state is JobState.RUNNING
    later.cancel(job, drain=False)
    assert later.info(job).state is JobState.CANCELLED
    scheduler.cancel(job)


def test_a_job_that_never_began_is_not_taken_for_another_process(tmp_path: Path):
    scheduler, plan = made("local", tmp_path)
    job = submitted(scheduler, plan, tmp_path, WAITS)
    scheduler.cancel(job, drain=False)
    run_dir = RunDir(tmp_path / job)
    record = json.loads(run_dir.embedded_job.read_text())
    run_dir.embedded_job.write_text(json.dumps({**record, "session": 0, "started": 0}))
    for path in (run_dir.session, run_dir.cancelled, run_dir.exit_status):
        path.unlink(missing_ok=True)
    later, _ = made("local", tmp_path)
    assert later.info(job).state is JobState.NODE_FAIL
    later.cancel(job)
