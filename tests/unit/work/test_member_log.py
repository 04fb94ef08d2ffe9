"""What a run reports of the servers, so that the monitor can judge them by their answers."""

from __future__ import annotations

from pathlib import Path

from fakes.running import fake_triton

from exatrkx_hpc.base.member_reports import MemberCounts, MemberReports
from exatrkx_hpc.work.inference.retry import Cause
from exatrkx_hpc.work.run.member_log import MemberLog
from exatrkx_hpc.work.run.run import run_clients


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_monitor_reads_what_a_run_saw(tmp_path: Path) -> None:
    clock, folder = Clock(), tmp_path / "reports"
    log = MemberLog(folder, clock=clock)
    log.answered("10.0.0.1:8001")
    for cause in (Cause.TORN, Cause.FAULT, Cause.REFUSED, Cause.DEADLINE):
        log.failed("10.0.0.2:8001", cause)
    for cause in (Cause.TORN, Cause.DEADLINE):  # nothing named the server
        log.failed("", cause)
    log.write()
    assert MemberReports(folder).totals() == {
        "10.0.0.1:8001": MemberCounts(answers=1),
        "10.0.0.2:8001": MemberCounts(failures=4),
    }
    log.answered("10.0.0.1:8001")
    log.write()
    assert MemberReports(folder).totals()["10.0.0.1:8001"].answers == 1, "the last report is too young"
    clock.now += 10
    log.write()
    assert MemberReports(folder).totals()["10.0.0.1:8001"].answers == 2
    log.answered("10.0.0.1:8001")
    log.write(last=True)
    assert MemberReports(folder).totals()["10.0.0.1:8001"].answers == 3, "the run ends"


def test_two_runs_do_not_share_a_report(tmp_path: Path) -> None:
    for _ in range(2):
        log = MemberLog(tmp_path / "reports")
        log.answered("10.0.0.1:8001")
        log.write()
    assert MemberReports(tmp_path / "reports").totals() == {"10.0.0.1:8001": MemberCounts(answers=2)}


def test_a_report_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    log = MemberLog(tmp_path / "no" / "such" / "reports")
    log.answered("10.0.0.1:8001")
    log.write()
    MemberLog(None).write()
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "no" / "such").mkdir(parents=True)
    log.write(last=True)
    assert MemberReports(tmp_path / "no" / "such" / "reports").totals(), "it is written later"


def test_a_run_reports_its_last_answers(settings, tmp_path: Path) -> None:
    with fake_triton("--member", "n1:8001") as fake:
        run_clients(settings(sizes=[3] * 30, server=fake.server, reports=tmp_path / "reports"))
    assert MemberReports(tmp_path / "reports").totals() == {"n1:8001": MemberCounts(answers=30)}
