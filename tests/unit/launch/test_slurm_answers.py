"""What Slurm prints, as real ones printed it: 22.05 and 24.11 (see fakes/slurm_answers)."""

from __future__ import annotations

import json

import pytest
from paths import FAKES

from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.launch.slurm.parse import (
    Unreadable,
    expand_hosts,
    parse_accounting,
    parse_duration,
    parse_queue_json,
    parse_queue_lines,
    parse_state,
    parse_time,
)

ANSWERS = FAKES / "slurm_answers"
UID = 20001

#: squeue 22.05 with --format=QUEUE_FIELDS and SLURM_TIME_FORMAT=%s; job 1 is named 'a b|c'.
LINES = """\
1|RUNNING|nid[001-002]|17:53|None|1795329367|1795329367|a b|c
3|PENDING||12:00:00|Resources|1795329367|1795330567|wrap
2|COMPLETED|nid001|11:59:58|None|1795329367|1795329367|wrap
20|TIMEOUT|nid[001-002]|0:00|TimeLimit|1795329589|1795329590|job.sbatch
25|FAILED|nid001|5:00|NonZeroExitCode|1795330010|1795330010|oom.sh
28|NODE_FAIL|nid003|4:40|NodeDown|1795330010|1795330010|wrap
26|PENDING||5:00|BeginTime|1795330030|1795330151|wrap
24|CANCELLED||12:00:00|JobHeldUser|1795329662|1795329852|wrap
"""
#: The same of 24.11, with times as people read them, and a state of its last moments.
LINES_24_11 = """\
5|COMPLETING|nid001|4:58|None|2026-11-22T07:00:36|2026-11-22T07:00:37|wrap
7|PENDING||12:00:00|JobHeldUser|2026-11-22T07:00:36|N/A|wrap
4|PENDING||1:00:00|ReqNodeNotAvail, UnavailableNodes:nid[001-003]|2026-11-22T06:59:35|N/A|wrap
"""
#: sacct 22.05 with --parsable2 --format=ACCOUNT_FIELDS; job 25 is one whose step took too much memory.
ACCOUNTS = """\
1|20001|CANCELLED by 20001|nid[001-002]|1795329367|1795329367|0:0|None|12:00:00|00:10:00|a b|c
1.batch||CANCELLED|nid001|1795329367|1795329367|0:15|||00:10:00|batch
2|20001|COMPLETED|nid001|1795329367|1795329367|0:0|None|UNLIMITED|00:10:00|wrap
6|20002|RUNNING|nid003|1795329400|1795329400|0:0|None|12:00:00|00:10:00|wrap
25|20001|FAILED|nid001|1795330010|1795330010|1:0|None|12:00:00|00:10:00|oom.sh
25.batch||FAILED|nid001|1795330010|1795330010|1:0|||00:10:00|batch
25.0||OUT_OF_MEMORY|nid001|1795330010|1795330010|0:125|||00:10:00|python3
27|20001|FAILED|nid001|1795330010|1795330010|3:0|None|12:00:00|00:10:00|wrap
29|20001|FAILED|nid001|1795330010|1795330010|0:9|None|12:00:00|00:10:00|wrap
23|20001|PENDING|None assigned|1795329634|Unknown|0:0|None|12:00:00|00:10:00|wrap
"""


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("nid001", ("nid001",)),
        ("nid[001-003,010]", ("nid001", "nid002", "nid003", "nid010")),
        ("nid[001-002],login1", ("nid001", "nid002", "login1")),
        ("a[1-2]b[08-10]", ("a1b08", "a1b09", "a1b10", "a2b08", "a2b09", "a2b10")),
        ("x[9-11]-hsn0", ("x9-hsn0", "x10-hsn0", "x11-hsn0")),
        ("nid[001,003]", ("nid001", "nid003")),
        ("None assigned", ()),
        ("(null)", ()),
    ],
)
def test_a_compact_list_of_hosts_is_written_out_as_scontrol_does(text: str, names: tuple[str, ...]):
    assert expand_hosts(text) == names


@pytest.mark.parametrize(
    ("words", "state"),
    [
        ("RUNNING", JobState.RUNNING),
        (["RUNNING"], JobState.RUNNING),
        (["CANCELLED", "COMPLETING"], JobState.COMPLETING),
        (["RUNNING", "CONFIGURING"], JobState.PENDING),
        (["PENDING", "REQUEUED"], JobState.PENDING),
        ("CANCELLED by 20001", JobState.CANCELLED),
        ("CANCELLED+", JobState.CANCELLED),
        ("BOOT_FAIL", JobState.NODE_FAIL),
        ("DEADLINE", JobState.TIMEOUT),
        ("SOMETHING_NEW", JobState.UNKNOWN),
        ("", JobState.UNKNOWN),
        ([], JobState.UNKNOWN),
    ],
)
def test_the_words_of_a_state(words: str | list[str], state: JobState):
    assert parse_state(words) is state


def test_unknown_is_not_over():
    assert not JobState.UNKNOWN.over
    assert {state for state in JobState if not state.over} == {
        JobState.PENDING,
        JobState.RUNNING,
        JobState.COMPLETING,
        JobState.UNKNOWN,
    }


def test_json_of_22_05():
    queue = parse_queue_json((ANSWERS / "squeue-22.05.json").read_text(), uid=UID, now=1795329392)
    assert not queue.whole
    assert sorted(queue.jobs) == ["1", "2", "3", "4", "5"]
    assert queue.jobs["1"] == JobInfo(
        id="1",
        state=JobState.RUNNING,
        nodes=("nid001", "nid002"),
        time_left=1795330567 - 1795329392,
        name="a b|c",
        submit=1795329367,
        start=1795329367,
        restarts=0,
    )
    assert queue.jobs["3"].state is JobState.PENDING
    assert (queue.jobs["3"].reason, queue.jobs["3"].nodes) == ("Resources", ())
    assert (queue.jobs["3"].time_left, queue.jobs["3"].start) == (720 * 60, 1795330567)
    assert (queue.jobs["2"].state, queue.jobs["2"].time_left) == (JobState.COMPLETED, None)


@pytest.mark.parametrize("name", ["squeue-24.11.json", "squeue-v0.0.40.json"])
def test_json_of_the_newer_parsers(name: str):
    queue = parse_queue_json((ANSWERS / name).read_text(), uid=UID, now=1795330840)
    assert not queue.whole
    assert queue.jobs["1"] == JobInfo(
        id="1",
        state=JobState.RUNNING,
        nodes=("nid001", "nid002"),
        time_left=1795332036 - 1795330840,
        name="a b|c",
        submit=1795330836,
        start=1795330836,
        restarts=0,
    )
    states = {job: info.state.value for job, info in queue.jobs.items()}
    assert states == {
        "1": "RUNNING",
        "2": "COMPLETED",
        "3": "FAILED",
        "4": "PENDING",
        "5": "COMPLETING",
        "6": "PENDING",
        "7": "PENDING",
    }
    assert (queue.jobs["7"].reason, queue.jobs["7"].start, queue.jobs["7"].time_left) == ("JobHeldUser", None, 43200)


def test_json_after_a_node_has_crashed():
    queue = parse_queue_json((ANSWERS / "squeue-22.05-after-a-crash.json").read_text(), uid=UID, now=1795330040)
    assert (queue.jobs["28"].state, queue.jobs["28"].reason) == (JobState.NODE_FAIL, "NodeDown")
    assert (queue.jobs["26"].state, queue.jobs["26"].reason) == (JobState.PENDING, "BeginTime")


def changed(name: str, **fields: object) -> str:
    answer = json.loads((ANSWERS / name).read_text())
    answer["jobs"][0].update(fields)
    return json.dumps(answer)


def test_jobs_of_others_are_left_out_and_told_of():
    queue = parse_queue_json(changed("squeue-22.05.json", user_id=20002), uid=UID, now=0)
    assert queue.whole
    assert "1" not in queue.jobs and len(queue.jobs) == 4


@pytest.mark.parametrize("limit", [{"set": False, "infinite": True, "number": 0}, 0xFFFFFFFF, 0xFFFFFFFE])
def test_without_a_limit_no_time_is_left_to_tell(limit: object):
    text = changed("squeue-22.05.json", time_limit=limit, end_time={"set": False, "infinite": False, "number": 0})
    assert parse_queue_json(text, uid=UID, now=0).jobs["1"].time_left is None


def test_time_does_not_run_below_nothing():
    text = (ANSWERS / "squeue-22.05.json").read_text()
    assert parse_queue_json(text, uid=UID, now=1795330600).jobs["1"].time_left == 0


#: Slurm 22.05 with its slurmctld down prints this and ends with status 0.
DOWN = """\
{"meta": {"Slurm": {"release": "22.05.8"}}, "errors": [
 {"description": "Failed while looking for jobs", "error_number": -1, "error": "Unspecified error",
  "source": "slurm_load_jobs"}], "jobs": []}
"""


@pytest.mark.parametrize("text", [DOWN, "", "{", "[]", "{}", '{"jobs": null}', '{"jobs": [{}]}', '{"jobs": [7]}', "7"])
def test_what_is_no_queue_is_not_an_empty_one(text: str):
    with pytest.raises(Unreadable):
        parse_queue_json(text, uid=UID, now=0)


def test_an_empty_queue_is_one():
    assert parse_queue_json('{"jobs": [], "errors": []}', uid=UID, now=0).jobs == {}
    assert parse_queue_lines("").jobs == {}


def test_plain_lines():
    jobs = parse_queue_lines(LINES).jobs
    assert jobs["1"] == JobInfo(
        id="1",
        state=JobState.RUNNING,
        nodes=("nid001", "nid002"),
        time_left=17 * 60 + 53,
        name="a b|c",
        submit=1795329367,
        start=1795329367,
    )
    assert {job: info.state.value for job, info in jobs.items()} == {
        "1": "RUNNING",
        "3": "PENDING",
        "2": "COMPLETED",
        "20": "TIMEOUT",
        "25": "FAILED",
        "28": "NODE_FAIL",
        "26": "PENDING",
        "24": "CANCELLED",
    }
    assert (jobs["26"].reason, jobs["26"].time_left, jobs["28"].time_left) == ("BeginTime", 300, None)


def test_plain_lines_of_24_11():
    jobs = parse_queue_lines(LINES_24_11).jobs
    assert jobs["5"].state is JobState.COMPLETING
    assert jobs["7"].start is None
    assert jobs["7"].submit == parse_time("2026-11-22T07:00:36") is not None
    assert jobs["4"].reason == "ReqNodeNotAvail, UnavailableNodes:nid[001-003]"


def test_what_a_job_had_left_of_its_limit():
    by_lines = {job: info.unused for job, info in parse_queue_lines(LINES).jobs.items() if info.unused is not None}
    assert by_lines == {"2": 43198, "20": 0, "25": 300, "28": 280, "24": 43200}
    job = {"job_id": 1, "job_state": "COMPLETED", "start_time": 1000, "end_time": 1090, "time_limit": 2}
    assert parse_queue_json(json.dumps({"jobs": [job]}), uid=UID, now=2000).jobs["1"].unused == 30
    assert parse_queue_json(json.dumps({"jobs": [{**job, "time_limit": 1}]}), uid=UID, now=2000).jobs["1"].unused == 0
    running = {**job, "job_state": "RUNNING"}
    assert parse_queue_json(json.dumps({"jobs": [running]}), uid=UID, now=1050).jobs["1"].unused is None


def test_a_line_of_another_form_is_left_out():
    assert set(parse_queue_lines("squeue: warning\n1|RUNNING\n" + LINES).jobs) == set(parse_queue_lines(LINES).jobs)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("4:59", 299),
        ("12:00:00", 43200),
        ("1-02:03:04", 93784),
        ("0:00", 0),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_durations(text: str, seconds: float | None):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["N/A", "Unknown", "", "0"])
def test_a_time_that_is_none(text: str):
    assert parse_time(text) is None


def test_the_accounting():
    jobs = parse_accounting(ACCOUNTS, uid=UID)
    assert set(jobs) == {"1", "2", "6", "25", "27", "29", "23"}
    assert (jobs["1"].state, jobs["1"].reason, jobs["1"].name) == (JobState.CANCELLED, "CANCELLED by 20001", "a b|c")
    assert (jobs["2"].state, jobs["2"].nodes, jobs["2"].reason) == (JobState.COMPLETED, ("nid001",), "")
    assert (jobs["27"].state, jobs["27"].reason) == (JobState.FAILED, "exit status 3")
    assert (jobs["29"].state, jobs["29"].reason) == (JobState.FAILED, "ended by signal 9")
    assert (jobs["23"].state, jobs["23"].nodes) == (JobState.PENDING, ())
    unused = {job: info.unused for job, info in jobs.items()}
    assert unused == {"1": 42600, "2": None, "6": None, "25": 42600, "27": 42600, "29": 42600, "23": None}


def test_memory_that_ran_out_in_a_step_is_named():
    info = parse_accounting(ACCOUNTS, uid=UID)["25"]
    assert (info.state, info.reason) == (JobState.OUT_OF_MEMORY, "step 25.0 ran out of memory")


def test_a_job_that_has_just_failed_may_yet_turn_out_to_have_lacked_memory():
    (row,) = (row for row in ACCOUNTS.splitlines() if row.startswith("27|"))
    end = 1795330010 + 600
    assert parse_accounting(row, uid=UID, now=end + 5)["27"].state is JobState.COMPLETING
    assert parse_accounting(row, uid=UID, now=end + 7)["27"].state is JobState.FAILED


def test_a_job_of_another_user_is_not_told_of():
    info = parse_accounting(ACCOUNTS, uid=UID)["6"]
    assert (info.state, info.reason) == (JobState.UNKNOWN, "it is a job of another user, uid 20002")


# --- an answer with several rows of one job


def test_one_row_that_says_that_the_job_lives_counts():
    def row(state: str) -> str:
        return f"42|{state}|nid001|1:00|None|1|1|exatrkx\n"

    for ended in ("PREEMPTED", "NODE_FAIL", "CANCELLED"):
        for living in ("RUNNING", "PENDING", "COMPLETING"):
            for rows in (row(ended) + row(living), row(living) + row(ended)):
                assert parse_queue_lines(rows).jobs["42"].state is JobState[living]
    assert parse_queue_lines(row("RUNNING") + row("PENDING")).jobs["42"].state is JobState.PENDING
    assert parse_queue_lines(row("FAILED") + row("TIMEOUT")).jobs["42"].state is JobState.TIMEOUT


def test_one_row_of_the_accounting_that_says_that_the_job_lives_counts():
    def row(state: str) -> str:
        return f"42|7|{state}|nid001|1|1|0:0|None|00:30:00|00:00:10|exatrkx\n"

    for rows in (row("NODE_FAIL") + row("RUNNING"), row("RUNNING") + row("NODE_FAIL")):
        assert parse_accounting(rows, uid=7)["42"].state is JobState.RUNNING
    assert parse_accounting(row("NODE_FAIL"), uid=7)["42"].end == 11


@pytest.mark.parametrize(
    ("words", "state"),
    [
        (["PREEMPTED", "REQUEUED"], JobState.PENDING),
        (["NODE_FAIL", "COMPLETING"], JobState.COMPLETING),
        (["PREEMPTED", "PENDING"], JobState.PENDING),
        (["NODE_FAIL", "RUNNING"], JobState.RUNNING),
        (["PREEMPTED"], JobState.PREEMPTED),
    ],
)
def test_one_word_that_says_that_the_job_lives_counts(words: list[str], state: JobState):
    assert parse_state(words) is state
