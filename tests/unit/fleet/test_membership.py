"""Who may receive requests, decided from what was observed."""

from __future__ import annotations

import pytest
from server_records import record

from exatrkx_hpc.base.job import JobState
from exatrkx_hpc.fleet.members.reconcile import Member, changes, ready_members, reconcile
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.launch.run_dir import RunDir


def look(*records, ready=(), previous=(), job=JobState.RUNNING, tolerance=2) -> tuple[Member, ...]:
    answers = {r.server: r.server in ready for r in records}
    return reconcile(job=job, records=records, ready=answers, previous=previous, tolerance=tolerance)


def test_a_server_starts_and_becomes_ready_by_its_own_answer():
    first = look(record())
    assert [m.state for m in first] == ["starting"]
    second = look(record(), ready=["n1-0"], previous=first)
    assert [m.state for m in second] == ["ready"]
    assert ready_members(second) == second


def test_a_server_that_was_not_asked_is_not_ready():
    (member,) = reconcile(job=JobState.RUNNING, records=[record()], ready={}, previous=(), tolerance=2)
    assert member.state == "starting"


def test_a_starting_server_stays_starting_however_long_it_takes():
    members = look(record())
    for _ in range(100):
        members = look(record(), previous=members)
    assert members[0].state == "starting"


def test_a_ready_server_may_miss_probes_up_to_the_tolerance():
    members = look(record(), ready=["n1-0"])
    states = []
    for _ in range(4):
        members = look(record(), previous=members, tolerance=3)
        states.append(members[0].state)
    assert states == ["ready", "ready", "gone", "gone"]


def test_an_answer_forgives_the_missed_probes():
    members = look(record(), ready=["n1-0"])
    for _ in range(5):
        members = look(record(), previous=members, tolerance=2)
        members = look(record(), ready=["n1-0"], previous=members, tolerance=2)
    assert members[0].state == "ready"
    assert members[0].missed == 0


def test_a_server_that_answers_again_is_ready_again():
    members = look(record(), ready=["n1-0"])
    for _ in range(3):
        members = look(record(), previous=members)
    assert members[0].state == "gone"
    assert look(record(), ready=["n1-0"], previous=members)[0].state == "ready"


@pytest.mark.parametrize("state", ["draining", "gone"])
def test_a_servers_own_word_counts_at_once_although_it_still_answers(state):
    before = look(record(), ready=["n1-0"])
    after = look(record(state=state, note="its reason"), ready=["n1-0"], previous=before)
    assert (after[0].state, after[0].note) == (state, "its reason")


def test_a_new_start_is_starting_not_gone():
    before = look(record(), ready=["n1-0"])
    assert look(record(starts=2), previous=before)[0].state == "starting"


@pytest.mark.parametrize("job", [state for state in JobState if state.over])
def test_no_server_outlives_its_job(job):
    before = look(record(), ready=["n1-0"])
    after = look(record(), ready=["n1-0"], previous=before, job=job)
    assert after[0].state == "gone"
    assert job.value in after[0].note


def test_a_job_of_unknown_state_keeps_its_servers():
    members = look(record(), ready=["n1-0"], job=JobState.UNKNOWN)
    assert members[0].state == "ready"


def test_changes_are_new_members_new_states_and_new_starts():
    before = look(record("a-0"), record("b-0"), record("c-0"), ready=["a-0", "b-0"])
    after = look(
        record("a-0"),
        record("b-0", state="gone", note="x"),
        record("c-0", starts=2),
        record("d-0"),
        ready=["a-0"],
        previous=before,
    )
    assert [m.name for m in changes(before, after)] == ["b-0", "c-0", "d-0"]
    assert changes(after, after) == ()


def test_what_is_no_record_is_passed_over(tmp_path):
    folder = tmp_path / "records"
    folder.mkdir()
    (folder / "n1-0.json").write_text(record().model_dump_json())
    (folder / "torn.json").write_text(record().model_dump_json()[:40])
    (folder / "n2-0.json.new").write_text(record("n2-0").model_dump_json())
    (folder / "list.json").write_text("[1, 2]")
    (folder / "stranger.json").write_text('{"server": 7}')
    (folder / "binary.json").write_bytes(b"\xff\xfe")
    (folder / "folder.json").mkdir()
    (folder / "vanished.json").symlink_to(folder / "nothing")
    assert [r.server for r in read_records(RunDir(tmp_path))] == ["n1-0"]
    assert read_records(RunDir(tmp_path / "nowhere")) == ()


def test_a_server_that_could_not_be_asked_stays_as_it_was():
    before = look(record(), ready=["n1-0"])
    missed = look(record(), previous=before)
    (member,) = reconcile(job=JobState.RUNNING, records=[record()], ready={}, previous=missed, tolerance=2)
    assert (member.state, member.missed) == ("ready", 1)
    gone = look(record(), previous=missed)
    (member,) = reconcile(job=JobState.RUNNING, records=[record()], ready={}, previous=gone, tolerance=2)
    assert member.state == "gone"
