"""Shards of a dataset: whose an event is, runs over all of them on this machine, and one report of all."""

from __future__ import annotations

import dataclasses
import json
import signal
import sqlite3
import sys
from collections import Counter
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from command import exatrkx_hpc
from fakes.running import fake_triton, free_port
from runs import assert_whole, read_part
from typer.testing import CliRunner
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.errors import ConfigError, EndpointError, ExatrkxError, InputError, LaunchError, OutputError
from exatrkx_hpc.base.process import spawn
from exatrkx_hpc.cli import app
from exatrkx_hpc.page.write import write_page
from exatrkx_hpc.work.events.source import event_key, find_events
from exatrkx_hpc.work.nodes.run import here, run_sharded
from exatrkx_hpc.work.nodes.shard_task import read_order, run_shards, write_order
from exatrkx_hpc.work.nodes.state import ShardState, StateFile, read_state, together
from exatrkx_hpc.work.nodes.task import STOP
from exatrkx_hpc.work.results.shards import WHOLE, Shard, begin_sharding, forget_sharding, read_sharding
from exatrkx_hpc.work.run.report import read_report, render_table
from exatrkx_hpc.work.run.run import Settings, StoppedRun, run_clients
from exatrkx_hpc.work.workloads import exatrkx

HERE = here(lambda line: None)


def ledgers(out: Path) -> dict[int, dict[str, str]]:
    """The states of the events in the ledger of each shard."""
    found = {}
    for path in sorted((out / "shards").glob("*/ledger.sqlite")):
        with closing(sqlite3.connect(path)) as db:
            found[int(path.parent.name)] = dict(db.execute("SELECT name, state FROM events"))
    return found


def of_shard(settings: Settings, shard: Shard) -> list[str]:
    return [event.name for event in find_events(settings.events) if shard.owns(event_key(event.name))]


# Whose an event is


def test_an_event_is_of_one_shard_for_ever():
    owners = [next(k for k in range(5) if Shard(k, 5).owns(event_key(f"evt_{n}"))) for n in range(12)]
    assert owners == [4, 2, 2, 3, 3, 1, 1, 0, 3, 0, 2, 4], "OUTs that people have would fall apart"
    for n in range(50):
        assert sum(Shard(k, 3).owns(event_key(f"evt_{n}")) for k in range(3)) == 1
        assert WHOLE.owns(event_key(f"evt_{n}"))


@pytest.mark.parametrize("name", ["evt_{}", "{:08}", "run7/evt-{}".replace("/", "_"), "{}_{}"])
def test_shards_are_alike_in_size(name):
    keys = [event_key(name.format(n, n)) for n in range(8000)]
    counts = Counter(next(k for k in range(8) if Shard(k, 8).owns(key)) for key in keys)
    assert min(counts.values()) > 850 and max(counts.values()) < 1150


def test_how_many_shards_there_are_is_written_down(tmp_path):
    assert read_sharding(tmp_path) is None
    begin_sharding(tmp_path, 6)
    (tmp_path / "shards" / "3").mkdir(parents=True)
    assert read_sharding(tmp_path) == 6
    forget_sharding(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{}", '{"format": 2, "shards": 4}', '{"format": 1, "shards": "4"}', "[1]"])
def test_a_file_that_does_not_say_it_is_refused(tmp_path, settings, text):
    begin_sharding(tmp_path, 4)
    (tmp_path / "shards.json").write_text(text)
    with pytest.raises(OutputError, match=r"shards\.json is damaged.*choose another -o"):
        read_sharding(tmp_path)


# A run over all shards on this machine


def test_every_event_is_done_once_in_its_shard_and_the_report_is_one(settings):
    sizes = [*range(30), 4000]
    run = settings(sizes=sizes, workers=2)
    tallies = []
    report = run_sharded(run, HERE, tallies.append, shards=3)
    report.check()
    assert (report.events, report.done, report.failed, report.not_tried) == (31, 31, (), 0)
    assert (report.items, report.workers, report.version) == (sum(sizes), (), "1")
    assert list(report.nodes.values()) == [31] and "events per node" in str(list(render_table(report).columns[0].cells))
    assert 0 < report.latency_ms.p50 <= report.latency_ms.p99 and report.seconds > 0
    assert read_report(run.report) == report
    assert assert_whole(run.events, run.folder) == 31
    assert {shard: sorted(states) for shard, states in ledgers(run.out).items()} == {
        shard: sorted(of_shard(run, Shard(shard, 3))) for shard in range(3)
    }
    assert (tallies[-1].events, tallies[-1].done) == (31, 31)
    assert [tally.done for tally in tallies] == sorted(tally.done for tally in tallies)


def test_a_plain_run_goes_on_with_all_shards(settings, tmp_path):
    run = settings(sizes=[3] * 8)
    run_sharded(run, HERE, shards=2)
    (run.events / "evt_8.csv").write_text("\n")
    (run.folder / "evt_0.csv").unlink()
    done = exatrkx_hpc("run-clients", "-s", run.server, "-o", "out", "-n", 1, "--json", cwd=tmp_path)
    told = json.loads(done.stdout)
    assert (told["done"], told["done_before"], told["events"]) == (9, 7, 9), done.stderr
    assert "events: 1 new" in done.stderr and "1 results were missing or damaged" in done.stderr
    page = (run.out / "report.html").read_text()
    assert "9 of 9 events" in page and "events through exatrkx" in page
    again = farm.run_clients(settings(server=f"127.0.0.1:{free_port()}"))
    assert (again.done, again.done_now) == (9, 0), "with nothing left there need be no endpoint"
    assert read_report(run.report).done_now == 2, "a run that had nothing to do has no figures"
    assert write_page(run.out).read_text().count("9 of 9 events")


def test_labels_in_parquet_are_parts_of_one_shard_each(settings):
    pytest.importorskip("pyarrow")
    run = settings(sizes=[3] * 20, result_format="parquet", part_events=4)
    run_sharded(run, HERE, shards=2).check()
    parts = [read_part(path) for path in run.folder.iterdir()]
    assert sorted(name for part in parts for name in part) == sorted(event.name for event in find_events(run.events))
    assert all(len({Shard(0, 2).owns(event_key(name)) for name in part}) == 1 for part in parts)
    np.testing.assert_array_equal(next(iter(parts[0].values())), [3, 1, 2])
    next(run.folder.iterdir()).unlink()
    again = run_sharded(run, HERE)
    assert again.done == 20 and 0 < again.done_now <= 4


def test_what_another_shard_writes_at_the_moment_stays(settings):
    run = settings(sizes=[3] * 12)
    ours, theirs = of_shard(run, Shard(0, 2))[0], of_shard(run, Shard(1, 2))[0]
    begin_sharding(run.out, 2, fresh=True)
    run.folder.mkdir(parents=True)
    for name in (ours, theirs):
        (run.folder / f"{name}.csv").write_text("9\n9\n")
        (run.folder / f".{name}.csv.abc12345").write_text("9")
    run_clients(dataclasses.replace(run, shard=Shard(0, 2)))
    left = {path.name for path in run.folder.iterdir()} - {f"{name}.csv" for name in of_shard(run, Shard(0, 2))}
    assert left == {f"{theirs}.csv", f".{theirs}.csv.abc12345"}
    assert (run.folder / f"{theirs}.csv").read_text() == "9\n9\n"
    run_clients(dataclasses.replace(run, shard=Shard(1, 2)))
    assert assert_whole(run.events, run.folder) == 12


def test_a_shard_may_have_no_events(settings):
    report = run_sharded(settings(sizes=[3] * 2), HERE, shards=7)
    assert (report.events, report.done) == (2, 2)


def test_bad_events_fail_alone_and_can_be_tried_again(settings):
    run = settings(sizes=[3] * 12)
    for name in ("evt_2", "evt_10", "evt_11"):
        (run.events / f"{name}.csv").write_text("no hits")
    report = run_sharded(run, HERE, shards=3)
    assert [one.event for one in report.failed] == ["evt_2", "evt_10", "evt_11"], "in natural order, whatever the shard"
    assert (report.done, report.failed_before, len(list(run.out.glob("shards/*/quarantine/*.json")))) == (9, 0, 3)
    again = run_sharded(run, HERE)
    assert (again.done_now, again.failed_before, again.failures) == (0, 3, 3)
    (run.events / "evt_2.csv").write_text("1,2,3\n")
    assert run_sharded(dataclasses.replace(run, retry_failed=True), HERE).done_now == 1


# What is refused


def test_with_and_without_shards_do_not_mix(settings):
    run = settings(sizes=[3] * 4)
    run_clients(run)
    with pytest.raises(
        OutputError, match=r"ledger\.sqlite belongs to a run without shards; resume without --srun and --sba"
    ):
        run_sharded(run, HERE, shards=2)
    other = dataclasses.replace(run, out=run.out.with_name("other"))
    run_sharded(other, HERE, shards=2)
    with pytest.raises(OutputError, match=r"other has 2 shards; resume them with 'exatrkx-hpc run-clients'"):
        run_clients(other)
    with pytest.raises(ConfigError, match="has no shards; set the number"):
        run_sharded(dataclasses.replace(run, out=run.out.with_name("third")), HERE)


def test_leaving_events_out_of_the_figures_is_refused_before_anything_is_forgotten(settings):
    run = settings(sizes=[3] * 4)
    run_sharded(run, HERE, shards=2)
    before = ledgers(run.out)
    with pytest.raises(ConfigError, match="-i is for a run without shards"):
        run_sharded(dataclasses.replace(run, ignore_first=1, fresh=True), HERE)
    assert ledgers(run.out) == before and before


def test_two_runs_at_once_are_refused(settings):
    run = settings(sizes=[3] * 4)

    def do(order, shards, *, of, look):
        with pytest.raises(OutputError, match=r"writes to .*out; wait until it ends"):
            run_sharded(run, HERE)
        return HERE(order, shards, of=of, look=look)

    assert run_sharded(run, do, shards=2).done == 4


def test_a_mistyped_address_makes_no_shards_and_costs_none(settings):
    dead = {"server": f"127.0.0.1:{free_port()}", "deadline": 0.5}
    run = settings(sizes=[3] * 4)
    with pytest.raises(EndpointError):
        run_sharded(settings(**dead), HERE, shards=2)
    assert read_sharding(run.out) is None
    run_sharded(run, HERE, shards=2)
    with pytest.raises(EndpointError):
        run_sharded(settings(fresh=True, **dead), HERE, shards=3)
    assert read_sharding(run.out) == 2 and assert_whole(run.events, run.folder) == 4
    fresh = run_sharded(settings(fresh=True), HERE, shards=3)
    assert (fresh.done_before, fresh.done, read_sharding(run.out)) == (0, 4, 3)


def test_an_event_that_changed_is_told_as_a_plain_run_tells_it(settings):
    run = settings(sizes=[3] * 6)
    run_sharded(run, HERE, shards=2)
    (run.events / "evt_3.csv").write_text("1,2,3\n")
    with pytest.raises(InputError, match=r"events changed since they were done \(evt_3\); restore them"):
        run_sharded(run, HERE)
    report = run_sharded(settings(accept_changes=True), HERE)
    assert (report.done, report.done_now, report.items) == (6, 1, 1)


def test_a_shard_that_waits_does_not_take_another_version_of_the_model(settings):
    run = settings(sizes=[3] * 8)

    def first_alone(order, shards, *, of, look):
        run_shards(order, [0], of=of, node="a")
        return "stopped by a test"

    with pytest.raises(StoppedRun, match="stopped by a test"):
        run_sharded(run, first_alone, shards=2)
    with fake_triton("--version", "2") as newer, pytest.raises(OutputError, match="of version 1 of the model, and"):
        run_sharded(settings(server=newer.server), HERE)


# What is lost


def lost(order: Settings, number: int) -> None:
    """A node begins with a shard and is gone."""
    StateFile(order.out, number, node="lost")


def test_what_is_lost_is_given_out_again(settings):
    run, rounds, said = settings(sizes=[3] * 20), [], []

    def do(order, shards, *, of, look):
        rounds.append(list(shards))
        if len(rounds) == 1:
            lost(order, 1)
            run_shards(order, [0, 2], of=of, node="a")
            return ""
        run_shards(order, shards, of=of, node="b")
        return ""

    report = run_sharded(run, do, shards=4, tell=said.append)
    assert rounds == [[0, 1, 2, 3], [1, 3]]
    assert [str(news) for news in said] == [
        "shards 1, 3 were lost because a node or a worker program ended; other nodes take over"
    ]
    assert report.done == 20 and set(report.nodes) == {"a", "b"}
    assert report.nodes["a"] == len(of_shard(run, Shard(0, 4))) + len(of_shard(run, Shard(2, 4)))


def test_what_is_lost_each_time_ends_the_run_and_the_next_one_goes_on(settings):
    run, rounds = settings(sizes=[3] * 20), []

    def do(order, shards, *, of, look):
        rounds.append(list(shards))
        lost(order, 1)
        run_shards(order, [0] if 0 in shards else [], of=of, node="a")
        return ""

    with pytest.raises(
        StoppedRun, match=r"shard 1 was lost, and no further event was done; see .*srun\.log; "
    ) as stopped:
        run_sharded(run, do, shards=2)
    report, first = stopped.value.report, len(of_shard(run, Shard(0, 2)))
    assert rounds == [[0, 1], [1]]
    assert (report.events, report.done, report.not_tried) == (20, first, 20 - first)
    assert run_sharded(run, HERE).done_now == 20 - first


def test_the_end_of_a_shard_in_an_earlier_run_is_none_of_this_one(settings):
    run, rounds = settings(sizes=[3] * 8), []
    run_sharded(run, HERE, shards=2)
    for number in range(8, 16):
        (run.events / f"evt_{number}.csv").write_text("1,2,3\n")

    def do(order, shards, *, of, look):
        rounds.append(list(shards))
        run_shards(order, shards[:1], of=of, node="a")  # the node of the others is lost before it has begun
        return ""

    assert run_sharded(run, do).done == 16
    assert rounds == [[0, 1], [1]]


def test_what_is_begun_anew_is_so_once(settings):
    run, written = settings(sizes=[3] * 8, fresh=True), []
    run_sharded(run, HERE, shards=3)

    def do(order, shards, *, of, look):
        assert not run.report.exists(), "the report of before"
        run_shards(order, shards, of=of, node="a")
        if not written:
            lost(order, 1)  # after it has done all
        written.append({path.name: path.stat().st_mtime_ns for path in run.folder.iterdir()})
        return ""

    assert run_sharded(run, do, shards=2).done == 8
    assert len(written) == 2 and written[0] == written[1]


def test_nobody_who_can_begin_is_an_error_and_later_a_reason(settings):
    run, rounds = settings(sizes=[3] * 6), []

    def nobody(order, shards, *, of, look):
        rounds.append(shards)
        if len(rounds) == 2:
            run_shards(order, [0], of=of, node="a")
            return ""
        raise LaunchError("no nodes")

    with pytest.raises(LaunchError, match=r"^no nodes$"):
        run_sharded(run, nobody, shards=2)
    with pytest.raises(StoppedRun, match=r"^no nodes; "):
        run_sharded(run, nobody)
    assert len(rounds) == 3


# What one node does


def test_an_order_says_everything(tmp_path):
    text = Path(exatrkx.__file__).read_text().replace('name="exatrkx"', 'name="mine"')
    (tmp_path / "mine.py").write_text(text)
    order = Settings(
        server="a:1", events=tmp_path / "e", out=tmp_path / "o", workers=3, in_flight=5, request_timeout=1.5,
        patience=2.5, deadline=3.5, model="m", workload="mine",
        workloads=str(tmp_path), mode="stages", repository=tmp_path / "r", fresh=True, retry_failed=True,
        accept_changes=True, event_column="c", result_format="parquet", part_events=7, times=True, ignore_first=2,
        accept_model_change=True, expect=9,
        token_file=tmp_path / "token", certificate=tmp_path / "c.pem", identity="farm/1/i", reports=tmp_path / "told",
    )  # fmt: skip
    bare = {field.name for field in dataclasses.fields(order) if getattr(order, field.name) == field.default}
    assert bare == {"shard"}, "a value that this test does not set"
    write_order(tmp_path / "task.json", order, [0, 4], of=6)
    assert read_order(tmp_path / "task.json") == (order, [0, 4], 6)


def task(settings: Settings, shards: list[int], *, of: int, rank: int = 0, tasks: int = 1):
    settings.out.mkdir(exist_ok=True)
    write_order(settings.out / "task.json", settings, shards, of=of)
    words = [sys.executable, "-m", "exatrkx_hpc.work.nodes.task", str(settings.out / "task.json")]
    env = {"SLURM_PROCID": str(rank), "SLURM_NTASKS": str(tasks), "SLURMD_NODENAME": f"n{rank}"}
    return spawn(["env", *(f"{name}={value}" for name, value in env.items()), *words], log=settings.out / "log")


def test_each_task_takes_its_share(settings):
    run = settings(sizes=[3] * 10)
    child = task(run, [0, 2, 3, 4], of=5, rank=1, tasks=2)
    assert child.wait(30) == 0, (run.out / "log").read_text()
    assert set(ledgers(run.out)) == {2, 4}
    state = read_state(run.out, 4)
    assert (state.node, state.code, state.done) == ("n1", 0, len(of_shard(run, Shard(4, 5))))
    assert read_state(run.out, 0) is None


def test_a_task_that_is_asked_to_end_says_so(settings):
    with fake_triton("--delay", "0.1") as slow:
        run = settings(sizes=[3] * 200, server=slow.server, in_flight=1)
        child = task(run, [0, 1], of=2)
        until(lambda: run.folder.is_dir() and list(run.folder.iterdir()), what="the first labels")
        child.send(STOP)
        assert child.wait(30) == 0, (run.out / "log").read_text()
    state = read_state(run.out, 0)
    assert (state.code, state.why) == (9, "stopped by SIGTERM") and 0 < state.done < 200
    assert read_state(run.out, 1) is None, "it begins with no other"
    assert assert_whole(run.events, run.folder) == state.done


def test_a_task_that_is_killed_leaves_a_shard_without_an_end(settings):
    with fake_triton("--delay", "0.1") as slow:
        run = settings(sizes=[3] * 60, server=slow.server)
        child = task(run, [0], of=2)
        until(lambda: run.folder.is_dir() and list(run.folder.iterdir()), what="the first labels")
        child.stop(grace=0, first=signal.SIGKILL)
    assert read_state(run.out, 0).code is None
    begin_sharding(run.out, 2)
    report = run_sharded(settings(), HERE)
    assert report.done == 60 and assert_whole(run.events, run.folder) == 60


def test_a_shard_that_has_just_begun_has_done_nothing(tmp_path):
    StateFile(tmp_path, 3, node="a")
    state = read_state(tmp_path, 3)
    assert (state.node, state.code, state.why, state.members) == ("a", None, "", {})
    assert {state.events, state.done, state.failed, state.retries, state.in_flight} == {0}


def test_an_error_comes_back_in_its_own_class():
    assert isinstance(ShardState(node="a", code=6, why="x").error, InputError)
    assert isinstance(ShardState(node="a", code=8, why="x").error, OutputError)
    assert ShardState(node="a", code=0).error is None and ShardState(node="a").error is None


def test_a_shard_that_has_not_counted_is_taken_for_an_average_one():
    assert together({0: ShardState(node="a")}, of=2) is None
    states = {0: ShardState(node="a", events=10, done=4, in_flight=2), 1: ShardState(node="b", events=12, code=0)}
    tally = together(states, of=4)
    assert (tally.events, tally.done, tally.in_flight) == (44, 4, 2)
    empty = {2: ShardState(node="a", code=0), 3: ShardState(node="b", code=0)}
    assert together({**states, **empty}, of=4).events == 22, "a shard that has ended without events has none"


# The command line


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--srun"], 2, "this shell is not in one; get one with 'salloc --no-kill -N 2', or use --sbatch"),
        (["--srun", "--sbatch"], 2, "--srun and --sbatch are mutually exclusive"),
        (["-N", "2"], 2, "-N applies only to a workers' job; add --sbatch or --srun"),
        (["--srun", "-A", "m1"], 2, "-A applies only to a workers' job; add --sbatch"),
        (["--dry-run"], 2, "--dry-run prints the script of a workers' job; add --sbatch"),
        (["--sbatch", "--site", "local"], 2, "--sbatch needs Slurm, which site local does not use; omit --sbatch"),
        (["--sbatch", "-s", "127.0.0.1:9191"], 5, "other nodes cannot reach the endpoint 127.0.0.1:9191; let the"),
        (["--sbatch", "-s", "localhost:9191"], 5, 'balancer.host = "internal"'),
        (["--sbatch"], 6, "folder events does not exist"),
    ],
)
def test_what_cannot_work_is_one_line(words, code, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    default = () if "-s" in words else ("-s", "192.0.2.1:9191")
    refused = CliRunner().invoke(app, ["run-clients", *default, *words]).exception
    assert isinstance(refused, ExatrkxError) and refused.exit_code == code
    assert says in str(refused) and "\n" not in str(refused)
    assert list(tmp_path.iterdir()) == []
