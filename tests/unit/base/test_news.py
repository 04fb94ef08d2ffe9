"""The news: every kind has a code of its own, says one line, and comes back from its JSON."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import FrozenInstanceError, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from command import PROGRAM, exatrkx_hpc
from fakes.running import fake_triton
from local_farms import local_farm
from package_modules import NAMES
from paths import ROOT
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.job import JobInfo, JobState
from exatrkx_hpc.base.news import Level, News, Words, from_json, kinds
from exatrkx_hpc.base.process import spawn
from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.fleet.endpoint import read_endpoint
from exatrkx_hpc.fleet.events import BalancerReloaded, JobChanged, MemberChanged, SchedulerSilent
from exatrkx_hpc.fleet.orphans import farm_processes
from exatrkx_hpc.fleet.view import job_news
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.measure.events import PointNews
from exatrkx_hpc.work.news import RunNews, RunResumed, RunUnheard, ShardsLost, UnitsDoubtful, told_of

for _name in NAMES:
    if not _name.endswith("__main__") and not _name.startswith("exatrkx_hpc.tracking"):  # which knows no news
        importlib.import_module(_name)
KINDS = sorted(kinds(), key=lambda kind: kind.code)
TEXT = 'a "b" \\ ü; {c}'


def value(kind: Any) -> Any:
    """A value of a field's type; texts hold what JSON has to quote."""
    if get_origin(kind) is tuple:
        return (3, 4) if get_args(kind)[0] is int else (TEXT, "n1-0")
    if get_origin(kind) is Mapping:
        return {TEXT: 3}
    if get_origin(kind) is Literal:
        return get_args(kind)[-1]
    return {str: TEXT, int: 3, float: 1795329367.25, bool: True, JobState: JobState.TIMEOUT}[kind]


def example(kind: type[News]) -> News:
    hints = get_type_hints(kind)
    return kind(**{one.name: value(hints[one.name]) for one in fields(kind)})


def test_every_class_of_news_is_found_and_has_a_code_of_its_own():
    def below(kind: type) -> set[type]:
        return {one for child in kind.__subclasses__() for one in (child, *below(child))}

    abstract = {kind for kind in below(News) if "code" not in vars(kind)}
    assert abstract == {Words, RunNews, PointNews}, "a class of news without a code"
    codes = [kind.code for kind in KINDS]
    assert len(set(codes)) == len(codes) > 12
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)+", code) for code in codes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.code)
def test_each_kind_comes_back_from_its_json_and_says_one_line(kind: type[News]):
    news = example(kind)
    told = json.loads(news.as_json())
    assert from_json(news.as_json()) == news
    assert (told["code"], told["job"], told["time"]) == (kind.code, TEXT, 1795329367.25)
    assert told["level"] in {level.value for level in Level}
    assert told["message"] == str(news) != ""
    assert "\n" not in news.as_json() + news.as_line()
    assert {"code", "level", "message"}.isdisjoint(one.name for one in fields(kind))
    with pytest.raises(FrozenInstanceError):
        news.time = 0.0  # type: ignore[misc]


def test_every_code_and_field_is_in_the_docs():
    page = (ROOT / "docs" / "reference" / "endpoint.md").read_text().partition("## News")[2]
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    for kind in KINDS:
        (row,) = [row for row in rows if f"`{kind.code}`" in row.split("|")[1]]
        own = {one.name for one in fields(kind)} - {one.name for one in fields(News)}
        assert set(re.findall(r"`(\w+)`", row.split("|")[2])) == own, kind.code


@pytest.mark.parametrize(
    "told",
    [
        {},
        {"code": "no-such"},
        {"code": "job-changed", "state": "NO_SUCH_STATE"},
        {"code": "member-changed", "server": "n1-0"},
        3,
        "member-changed",
    ],
)
def test_what_is_no_news_is_refused(told):
    with pytest.raises(ValueError, match=r"code|this is no"):
        from_json(json.dumps(told))


def test_a_line_begins_with_the_local_time(monkeypatch):
    monkeypatch.setenv("TZ", "UTC+2")
    time.tzset()
    try:
        news = MemberChanged(time=0.0, job="1", server="n1-0", node="n1", state="ready", note="answers", ready=1)
        assert news.as_line() == "1969-12-31 22:00:00 n1-0: ready (answers), 1 ready"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_people_get_what_is_worth_a_line_and_programs_all(capsys):
    reloaded, silent = BalancerReloaded(servers=("n1-0",)), SchedulerSilent(reason="down")
    for tell in (teller(), teller(results=True), teller(as_json=True, results=True), teller(quiet=True)):
        tell(reloaded)
        tell(silent)
        print("--")
    out, err = capsys.readouterr()
    quiet, lines, rows, none = (part.splitlines() for part in out.split("--\n")[:4])
    assert (quiet, none) == ([], [])
    assert lines == [silent.as_line()] == err.splitlines()
    assert [from_json(row) for row in rows] == [reloaded, silent]


def test_levels_say_what_deserves_a_look():
    assert JobChanged(state=JobState.TIMEOUT).level is Level.ERROR
    assert JobChanged(state=JobState.COMPLETED).level is JobChanged(state=JobState.RUNNING).level is Level.INFO


def test_news_of_a_run_say_whose_they_are():
    told: list[News] = []
    of_node = told_of(told.append, node="n1")
    told_of(of_node, shard="0/4")(RunResumed(events=4, done=3, left=1))
    of_node(RunUnheard(job="7", answer="scancel 7"))
    of_node(ShardsLost(shards=(1, 3)))
    assert [str(news) for news in told] == [
        "n1: shard 0/4: 3 of 4 events were done before, 1 are left",
        "n1: no program waits for job 7 any more, its first node may be lost: scancel 7",
        "shards 1, 3 were lost because a node or a worker program ended; other nodes take over",
    ]


def test_a_program_reads_what_a_run_tells(tmp_path: Path):
    """One that is done already asks no endpoint: its news are on stderr, and on stdout is the report alone."""
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "evt_0.csv").write_text("1,2,3\n")
    with fake_triton() as fake:
        words = ("run-clients", "-s", fake.server, "-n", 1, "-d", "events", "--json")
        first = exatrkx_hpc(*words, cwd=tmp_path)
    assert first.returncode == 0 and json.loads(first.stdout)["done"] == 1
    assert isinstance(from_json(first.stderr), UnitsDoubtful)
    again = exatrkx_hpc(*words, cwd=tmp_path)
    (line,) = again.stderr.splitlines()
    news = from_json(line)
    assert news == RunResumed(time=news.time, events=1, done=1, left=0)
    assert json.loads(again.stdout)["done_before"] == 1
    assert exatrkx_hpc(*words[:-1], cwd=tmp_path).stderr.splitlines()[0].endswith(f" {news}")


def test_what_is_new_of_a_job():
    before = JobInfo(id="7", state=JobState.RUNNING)
    silent = JobInfo(id="7", state=JobState.UNKNOWN, reason="down", answered=False)
    assert job_news(before, before) is None
    assert isinstance(job_news(before, silent), SchedulerSilent)
    assert job_news(silent, silent) is None
    back = job_news(silent, before)
    assert isinstance(back, JobChanged) and (back.job, back.state, back.back) == ("7", JobState.RUNNING, True)


@pytest.fixture
def folder(tmp_path: Path, nginx: str) -> Iterator[Path]:
    """A folder with the farm.toml of a fake server; what was deployed from it ends with the test."""
    what = local_farm(tmp_path / "runs")
    sections = {
        "cluster": {"local_address": what.cluster.local_address},
        "job": {"nodes": 1},
        "server": {
            "triton": what.server.triton,
            "model_repository": what.server.model_repository,
            "drain": 0,
            "exit_timeout": 2,
        },
        "balancer": {"grpc_port": 0, "http_port": 0},
        "monitor": {"prometheus": False, "trial": False},
    }
    lines = ['site = "local"', f"run_root = {json.dumps(what.run_root)}"]
    for name, values in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    (tmp_path / "farm.toml").write_text("\n".join(lines) + "\n")
    yield tmp_path
    for job in farm.jobs(what):
        farm.stop(job, drain=False)


def test_a_program_reads_all_that_happens_to_a_farm(folder: Path):
    """From the deploy to the end of a monitor by Ctrl-C: each line is JSON, and stdout of deploy is the job alone."""
    done = exatrkx_hpc("deploy", "--json", "--wait", 60, cwd=folder)
    assert done.returncode == 0, done.stderr
    job = json.loads(done.stdout)["job"]
    told = [from_json(line) for line in done.stderr.splitlines()]
    assert {one.code for one in told} <= {"job-progress", "models-building"}
    log = folder / "monitor.log"
    child = spawn([PROGRAM, "monitor", job, "--json"], log=log, cwd=folder)
    try:
        until(lambda: '"ready": 1' in log.read_text(), what="a ready server")
        child.send(signal.SIGINT)
        assert child.wait(60) == 0, log.read_text()
    finally:
        child.stop(grace=1)
    news = [from_json(line) for line in log.read_text().splitlines()]
    assert {one.job for one in news} == {job}
    moments = [one.time for one in news]  # of several threads: made in one order, told in another
    assert all(later > earlier - 1 for earlier, later in pairwise(moments))
    codes = [one.code for one in news]
    assert codes[0] == "endpoint-opened" and codes[-1] == "monitor-stopped"
    assert {"member-changed", "job-changed", "balancer-reloaded"} < set(codes)


def test_a_reader_that_goes_costs_no_endpoint(folder: Path):
    """As `monitor --json | head -1` does: the endpoint serves on until it is stopped, and then nothing is left."""
    job = exatrkx_hpc("deploy", cwd=folder).stdout.strip()
    log, run_dir = folder / "head.log", FarmDir(folder / "runs").job(job)
    script = f"exec {shlex.quote(PROGRAM)} monitor {job} --json > >(head -1)"
    child = spawn(["bash", "-c", script], log=log, cwd=folder)
    try:
        until(lambda: (now := read_endpoint(run_dir)) and now.ready == 1, what="a ready server", deadline=60)
        assert child.returncode() is None
    finally:
        child.stop(grace=20)
    assert json.loads(log.read_text().splitlines()[0])["code"] == "endpoint-opened"
    assert not run_dir.endpoint.exists()
    assert not [
        process for process in farm_processes(run_dir.farm.path, of_monitors=["nginx"]) if process.program == "nginx"
    ]
