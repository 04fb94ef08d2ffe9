"""Outlier detection over real connections: counters of pretend servers, trials, words to servers, and its memory."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paths import FAKES
from server_records import record
from test_probe import serving
from waiting import until

from exatrkx_hpc.base.member_reports import MemberCounts, MemberReports, write_member_report
from exatrkx_hpc.base.news import News
from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet.events import RestartAsked
from exatrkx_hpc.fleet.members.judge import Work
from exatrkx_hpc.fleet.members.outliers import OutlierDetection, Trial, ask_server, parse_work, read_ejected
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.launch.run_dir import RunDir

METRICS = """\
# TYPE nv_inference_request_success counter
nv_inference_request_success{{model="m",version="1"}} {good}
nv_inference_request_success{{model="m",version="2"}} 1
nv_inference_request_failure{{model="m",reason="BACKEND",version="1"}} {bad}
nv_inference_request_failure{{model="m",reason="CANCELED",version="1"}} 100000
nv_inference_request_duration_us{{model="m",version="1"}} 2.5e+06
nv_inference_pending_request_count{{model="m",version="1"}} 3
nv_gpu_utilization{{gpu_uuid="x"}} 0.5
"""


def test_the_work_of_a_model_is_read_from_tritons_metrics():
    text = METRICS.format(good=10, bad=4).encode()
    assert parse_work(text) == {"m": Work(successes=11, failures=4, seconds=2.5, pending=3)}
    real = parse_work((FAKES / "triton_metrics.txt").read_bytes())
    assert real["exatrkx"].successes == 16 and set(real) == {"exatrkx", "gnn", "frnn"}
    assert parse_work(b"<html>") == {}


def member(name: str = "a", **values: object) -> Member:
    """A server that answers; without `values`, nothing listens at its ports."""
    return Member(
        record=record(name, **{"address": "127.0.0.1", "metrics_port": 1, **values}), state="ready", note="answers"
    )


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    return RunDir(tmp_path)


@pytest.fixture
def detection(run_dir: RunDir):
    """Make detections of one job, each like that of another monitor; `told` has their news."""
    made: list[OutlierDetection] = []
    told: list[News] = []

    def make(trial: Trial | None = None, **settings: object) -> OutlierDetection:
        rules = MonitorSection.model_validate({"sample_interval": 0.001, "probe_timeout": 20, **settings})
        made.append(OutlierDetection(run_dir, rules, trial=trial, tell=told.append))
        return made[-1]

    make.told = told
    yield make
    for one in made:
        one.close()


def states(members: tuple[Member, ...]) -> dict[str, str]:
    return {one.name: one.state for one in members}


class Counters:
    """The metrics of a server, which a test changes."""

    def __init__(self) -> None:
        self.good = self.bad = 0

    def __call__(self, path: str) -> tuple[int, str]:
        return 200, METRICS.format(good=self.good, bad=self.bad)


def test_a_server_whose_counters_tell_failures_is_ejected_and_stays_so_for_the_next_monitor(detection, run_dir):
    sick, well = Counters(), Counters()
    with serving(sick) as one, serving(well) as other:
        members = (
            member("a", address=one.address, metrics_port=one.http_port),
            member("b", address=other.address, metrics_port=other.http_port),
        )
        judge = detection()
        judge(members)
        sick.bad, well.good = 300, 100
        assert states(judge(members)) == {"a": "ejected", "b": "ready"}
        assert read_ejected(run_dir) == {("a", 1): "m: 300 of 300 requests failed, at other servers 0%"}
        never = detection(trial=lambda _: "still", eject_time=1000)
        assert states(never(members)) == {"a": "ejected", "b": "ready"}


def test_what_clients_report_counts_too(detection, run_dir):
    """Of a server that breaks streams, its own counters say nothing."""
    with serving(Counters()) as one, serving(Counters()) as other:
        members = (
            member("a", address=one.address, metrics_port=one.http_port, grpc_port=1),
            member("b", address=other.address, metrics_port=other.http_port, grpc_port=2),
        )
        judge = detection()
        judge(members)
        counts = {
            f"{one.address}:1": MemberCounts(failures=25),
            f"{one.address}:2": MemberCounts(answers=90),
        }
        write_member_report(run_dir.reports, "host-1", {name: MemberCounts() for name in counts})
        judge(members)
        write_member_report(run_dir.reports, "host-1", counts)
        after = judge(members)
        assert states(after) == {"a": "ejected", "b": "ready"}
        assert after[0].note == "25 of 25 requests failed, at other servers 0%"


def test_reports_of_several_clients_are_summed_and_what_is_none_is_passed_over(tmp_path):
    reports = MemberReports(tmp_path / "reports")
    assert reports.totals() == {}
    write_member_report(tmp_path / "reports", "h-1", {"a:1": MemberCounts(answers=5)})
    write_member_report(tmp_path / "reports", "h-2", {"a:1": MemberCounts(answers=2, failures=1)})
    for name, text in (("torn", '{"members": {"a:1"'), ("list", "[]"), ("other", '{"members": {"a:1": {"x": 1}}}')):
        (tmp_path / "reports" / f"{name}.json").write_text(text)
    assert reports.totals() == {"a:1": MemberCounts(answers=7, failures=1)}


def test_a_folder_of_reports_that_cannot_be_listed_counts_as_before(tmp_path, monkeypatch):
    reports = MemberReports(tmp_path / "reports")
    write_member_report(tmp_path / "reports", "h-1", {"a:1": MemberCounts(answers=5)})
    known = reports.totals()

    def stale(*_: object) -> Iterator[Path]:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Path, "glob", stale)
    assert reports.totals() == known == {"a:1": MemberCounts(answers=5)}


def looks(judge: OutlierDetection, members: tuple[Member, ...]) -> Callable[[dict[str, str]], bool]:
    return lambda wanted: states(judge(members)) == wanted


def test_servers_are_tried_side_by_side_and_join_when_they_have_passed(detection):
    may_pass = threading.Event()

    def trial(one: Member) -> str:
        if one.name == "slow":
            may_pass.wait(60)
        return ""

    judge = detection(trial)
    members = (member("slow"), member("quick"))
    try:
        assert states(judge(members)) == {"slow": "starting", "quick": "starting"}
        until(lambda: states(judge(members)) == {"slow": "starting", "quick": "ready"}, what="the quick one")
    finally:
        may_pass.set()
    until(lambda: states(judge(members)) == {"slow": "ready", "quick": "ready"}, what="the slow one")


def test_a_server_that_started_again_has_a_trial_of_its_own(detection):
    """The trial of its last start still waits, and then fails; neither delays nor fails the new one."""
    first, second = member("a", starts=1), member("a", starts=2)
    other = member("b")
    first_ends, tried = threading.Event(), []

    def trial(one: Member) -> str:
        tried.append((one.name, one.record.starts))
        if one.record.starts == 1 and one.name == "a":
            first_ends.wait(60)
            return "it died"
        return ""

    judge = detection(trial)
    try:
        judge((first, other))
        until(lambda: states(judge((second, other))) == {"a": "ready", "b": "ready"}, what="the second start")
    finally:
        first_ends.set()
    until(lambda: "exatrkx-trial" not in {one.name for one in threading.enumerate()}, what="the end of the first trial")
    assert states(judge((second, other))) == {"a": "ready", "b": "ready"}
    assert sorted(tried) == [("a", 1), ("a", 2), ("b", 1)]


def test_a_new_monitor_does_not_try_again_what_has_passed(detection):
    judge = detection(lambda _: "")
    until(lambda: states(judge((member("a"),))) == {"a": "ready"}, what="the first monitor's trial")
    assert states(detection(lambda _: "never asked")((member("a"),))) == {"a": "ready"}


def test_a_trial_that_raises_is_a_fault_in_one_line(detection):
    def trial(one: Member) -> str:
        if one.name == "a":
            raise ValueError("odd")
        return ""

    judge = detection(trial)
    members = (member("a"), member("b"))
    until(lambda: states(judge(members)) == {"a": "ejected", "b": "ready"}, what="an ejection")
    assert judge(members)[0].note == "its trial failed: ValueError: odd"


@pytest.mark.parametrize("error", [OSError(24, "Too many open files"), RuntimeError("no thread"), MemoryError()])
def test_a_trial_that_this_machine_could_not_make_says_nothing_about_the_server(detection, error):
    tried = []

    def trial(one: Member) -> str:
        tried.append(one.name)
        if len(tried) < 3:
            raise error
        return ""

    judge, seen = detection(trial), set()
    until(lambda: seen.add(state := judge((member("a"),))[0].state) or state == "ready", what="a trial")
    assert seen == {"starting", "ready"} and len(tried) == 3


def test_without_threads_a_server_waits_for_its_trial(detection, monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    judge = detection(lambda _: "")
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        assert states(judge((member("a"),))) == {"a": "starting"}
    until(lambda: states(judge((member("a"),))) == {"a": "ready"}, what="a trial")


def test_a_silent_server_is_asked_to_restart(detection, run_dir):
    judge = detection(sick_after=0.001)
    silent = Member(record=record("a"), state="gone", note="does not answer")
    judge((silent,))
    until(lambda: judge((silent,)) and run_dir.word("a").exists(), what="a word")
    assert run_dir.word("a").read_text() == "restart\nmonitor\n"
    asked = detection.told[0]
    assert isinstance(asked, RestartAsked) and str(asked) == "a: asked to restart (does not answer)"


def test_a_word_to_a_server_lies_where_its_script_looks(run_dir):
    ask_server(run_dir, "n1-0", "drain", by="request")
    assert (run_dir.path / "stop.d" / "n1-0").read_text().split() == ["drain", "request"]


def test_servers_of_an_adopted_endpoint_need_no_first_trial(detection):
    served, new = member("n1"), member("n2")
    judge = detection(trial=lambda member: "the trial cannot be made")
    judge.adopt((served,))
    assert states(judge((served, new))) == {served.name: "ready", new.name: "starting"}
