"""How a job ended, in one line: what Slurm says, what the job was asked, and what its servers wrote."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.fleet.endings import StopRequest, explained, of_former_run, read_notice, read_stop_request
from exatrkx_hpc.fleet.members.record import ServerRecord
from exatrkx_hpc.fleet.status import job_status
from exatrkx_hpc.launch.run_dir import RunDir


def record(**changes: object) -> ServerRecord:
    values = {"server": "n1-0", "instance": "i", "job": "42", "node": "n1", "address": "10.0.0.1", "gpus": ""}
    ports = {"http_port": 8000, "grpc_port": 8001, "metrics_port": 8002, "pid": 1, "starts": 1, "updated": 100}
    return ServerRecord.model_validate({**values, **ports, "state": "gone", "note": "drained", **changes})


def told(run_dir: Path, state: JobState, *records: ServerRecord, **info: object) -> str:
    return explained(JobInfo(id="42", state=state, **info), RunDir(run_dir), records).reason


@pytest.mark.parametrize(
    ("state", "says"),
    [
        (JobState.CANCELLED, "it was cancelled; resubmit it with 'exatrkx-hpc deploy'"),
        (JobState.FAILED, "its script failed (why); see 'exatrkx-hpc logs 42'"),
        (
            JobState.TIMEOUT,
            "it reached its time limit (why); resubmit it with 'exatrkx-hpc deploy'; job.time sets the limit",
        ),
        (JobState.OUT_OF_MEMORY, "it ran out of memory (why); increase job.memory, or decrease"),
        (
            JobState.NODE_FAIL,
            "a node of it failed (why); resubmit it with 'exatrkx-hpc deploy', or let Slurm do so with job.requeue = "
            "true",
        ),
        (JobState.PREEMPTED, "a job with higher priority preempted it (why); resubmit it with 'exatrkx-hpc deploy'"),
    ],
)
def test_each_end_is_named_with_slurms_reason_and_the_next_step(tmp_path, state, says):
    reason = "" if state is JobState.CANCELLED else "why"
    assert told(tmp_path, state, reason=reason).startswith(says)


@pytest.mark.parametrize(
    ("words", "unused", "says"),
    [
        (None, 500.0, "as Slurm said"),
        ("drain\n", 500.0, "drained, as 'exatrkx-hpc stop' asked"),
        ("drain\nrequest\n", 5.0, "drained, as 'exatrkx-hpc stop' asked"),
        ("halt\nrequest\n", 5.0, "ended at once, as 'exatrkx-hpc stop' asked"),
        (
            "drain\nSIGTERM\n",
            179.0,
            "time limit: drained on Slurm's signal, 179 s were left; resubmit it with 'exatrkx-hpc deploy'",
        ),
        (
            "drain\nSIGTERM\n",
            181.0,
            "drained on SIGTERM, 181 s before its time limit; resubmit it with 'exatrkx-hpc deploy'",
        ),
        ("drain\nSIGTERM\n", None, "drained on SIGTERM"),
    ],
)
def test_a_job_that_completed_says_who_asked_for_it(tmp_path, words, unused, says):
    (tmp_path / "plan.json").write_text(json.dumps({"directives": [["nodes", "1"], ["signal", "B:TERM@120"]]}))
    if words is not None:
        (tmp_path / "stop").write_text(words)
    assert told(tmp_path, JobState.COMPLETED, unused=unused, reason="as Slurm said").startswith(says)


@pytest.mark.parametrize("plan", [None, "{", "[]", '{"directives": [["signal", "B:TERM"]]}', '{"directives": [[]]}'])
def test_without_a_plan_the_notice_is_a_minute(tmp_path, plan):
    if plan is not None:
        (tmp_path / "plan.json").write_text(plan)
    assert read_notice(RunDir(tmp_path)) == 60


def test_what_the_job_was_asked(tmp_path):
    assert read_stop_request(RunDir(tmp_path)) is None
    (tmp_path / "stop").write_text("")
    assert read_stop_request(RunDir(tmp_path)) is None
    (tmp_path / "stop").write_bytes(b"\xff\xfe")
    assert read_stop_request(RunDir(tmp_path)) is not None, "somebody asked for something"
    (tmp_path / "stop").write_text("halt\nrequest\n")
    assert read_stop_request(RunDir(tmp_path)) == StopRequest(what="halt", by="request")


def test_servers_that_gave_up_say_more_than_a_failed_script(tmp_path):
    note = "ended with status 3 at start number 1; gave up, see logs/n1-0.log"
    one, two = record(note=note), record(server="n2-0", note=note)
    said = told(tmp_path, JobState.FAILED, one, two, reason="NonZeroExitCode")
    assert said == f"n1-0 {note} (and 1 more); see 'exatrkx-hpc logs 42'"


def test_a_running_job_tells_which_servers_gave_up(tmp_path):
    note = "ended with status 1 at start number 6: unable to find backend library for backend 'x'; gave up, see logs/a"
    running = JobInfo(id="42", state=JobState.RUNNING, nodes=("n1", "n2"))
    said = explained(running, RunDir(tmp_path), [record(note=note), record(server="n2-0", node="n2")]).reason
    remedy = "use a server.image with this backend, or correct the model's config.pbtxt"
    assert said == f"1 of 2 servers gave up, n1-0: {note}; {remedy}; the other servers keep running"
    assert explained(running, RunDir(tmp_path), [record(), record(server="n2-0", node="n2")]).reason == ""


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("Resources", "Resources: no nodes are free; 'squeue --me --start' shows"),
        ("Priority", "Priority: other jobs have higher priority; "),
        ("JobHeldUser", "JobHeldUser: it is held; release it with 'scontrol release 42'"),
        ("ReqNodeNotAvail, UnavailableNodes:n1", "ReqNodeNotAvail, UnavailableNodes:n1: nodes that it needs are down"),
        ("QOSMaxJobsPerUserLimit", "QOSMaxJobsPerUserLimit; 'squeue --me --start' shows"),
        ("", "it waits in the queue; 'squeue --me --start' shows"),
    ],
)
def test_a_job_that_waits_says_why(tmp_path, reason, says):
    assert told(tmp_path, JobState.PENDING, reason=reason).startswith(says)


def test_a_requeued_job_says_so(tmp_path):
    info = JobInfo(id="42", state=JobState.PENDING, submit=100.0, reason="BeginTime")
    assert explained(info, RunDir(tmp_path), [record()]).reason.startswith("requeued, BeginTime: its begin time is")
    assert of_former_run(record(), info)
    assert not of_former_run(record(updated=101), info)
    assert not of_former_run(record(), JobInfo(id="42", state=JobState.RUNNING, submit=100.0))


@pytest.mark.parametrize(("answered", "step"), [(True, "squeue --me --states=all"), (False, "scontrol ping")])
def test_what_is_not_known_has_a_next_step(tmp_path, answered, step):
    said = told(tmp_path, JobState.UNKNOWN, reason="why", answered=answered)
    assert said.startswith("why; ") and step in said


def test_a_running_job_has_nothing_to_explain(tmp_path):
    assert told(tmp_path, JobState.RUNNING) == ""
    assert told(tmp_path, JobState.RUNNING, record(), nodes=("n1", "n2")) == ""
    assert told(tmp_path, JobState.RUNNING, record()) == "", "where the scheduler names no nodes, none is lost"


def test_a_job_that_lost_a_node_says_which(tmp_path):
    servers = [record(), record(server="n1-1"), record(server="n2-0", node="n2")]
    assert told(tmp_path, JobState.RUNNING, *servers, nodes=("n2",)) == "lost n1; the other servers keep running"


@pytest.mark.parametrize(
    ("state", "nodes", "says"),
    [
        ("starting", ("n2",), ("gone", "its node has left the job")),
        ("draining", ("n2",), ("gone", "its node has left the job")),
        ("gone", ("n2",), ("gone", "word")),
        ("starting", ("n1", "n2"), ("starting", "word 1 min 30 s ago, no answer yet")),
        ("starting", (), ("starting", "word 1 min 30 s ago, no answer yet")),
    ],
)
def test_a_server_that_does_not_answer_tells_what_is_known_of_it(tmp_path, monkeypatch, state, nodes, says):
    (tmp_path / "records").mkdir()
    words = record(state=state, note="word", address="127.0.0.1", http_port=1)
    (tmp_path / "records" / "n1-0.json").write_text(words.model_dump_json())
    monkeypatch.setattr(time, "time", lambda: 190.0)
    (server,) = job_status(JobInfo(id="42", state=JobState.RUNNING, nodes=nodes), RunDir(tmp_path), timeout=1.0).servers
    assert (server.state, server.note) == says


def test_a_job_that_never_ran_is_not_told_as_requeued(tmp_path: Path):
    """The records are those of an earlier job with the same number."""
    old = record(updated=100)
    first = JobInfo(id="7", state=JobState.PENDING, submit=200.0, restarts=0)
    assert not of_former_run(old, first)
    assert "requeued" not in explained(first, RunDir(tmp_path), [old]).reason
    for restarts in (1, None):
        again = JobInfo(id="7", state=JobState.PENDING, submit=200.0, restarts=restarts)
        assert of_former_run(old, again)
