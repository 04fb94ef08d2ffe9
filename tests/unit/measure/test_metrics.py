from __future__ import annotations

import contextlib
import csv
import errno
import http.server
import io
import os
import random
import threading
from collections.abc import Callable

import pytest
from fakes.running import free_port
from paths import FAKES
from rich.console import Console

from exatrkx_hpc.base.errors import EndpointError, OutputError
from exatrkx_hpc.measure.counters import COUNTED, Counters, Snapshot, parse
from exatrkx_hpc.measure.metrics import (
    ModelTimes,
    fetch,
    fetch_fleet,
    fleet_times,
    metrics_url,
    model_times,
    render_table,
    stage_shares,
)
from exatrkx_hpc.measure.record import CSV_COLUMNS, append_csv

# What a Triton 2.51 said after 16 events, less the lines that nothing here reads.
REAL = (FAKES / "triton_metrics.txt").read_text()


@contextlib.contextmanager
def http_server(body: str, status: int = 200, *, asked: Callable[[], object] = lambda: None):
    """A server with these metrics; `asked` is called before it answers."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked()
            self.send_response(status if self.path == "/metrics" else 404)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def snapshot(url="a", version="1", model="gnn", **counters) -> Snapshot:
    return Snapshot(url=url, counters={(model, version): Counters(**counters)})


def test_the_metrics_of_a_real_triton_become_milliseconds_per_request():
    times = {one.model: one for one in model_times(parse(REAL, url="x"))}
    assert sorted(times) == ["exatrkx", "frnn", "gnn"]
    gnn = times["gnn"]
    assert (gnn.successes, gnn.failures, gnn.inferences, gnn.executions) == (16, 0, 16, 16)
    assert gnn.request_ms == pytest.approx(1408.073 / 16)
    assert gnn.queue_ms == pytest.approx(797.425 / 16)
    assert gnn.input_ms == pytest.approx(0.616 / 16)
    assert gnn.infer_ms == pytest.approx(595.548 / 16)
    assert gnn.output_ms == pytest.approx(14.415 / 16)
    shares = stage_shares(list(times.values()))
    assert shares == {"frnn": pytest.approx(416.168 / 1026.747), "gnn": pytest.approx(610.579 / 1026.747)}


def test_failures_are_summed_over_their_reasons():
    text = REAL.replace('gnn",reason="OTHER",version="1"} 0', 'gnn",reason="OTHER",version="1"} 2')
    text = text.replace('gnn",reason="BACKEND",version="1"} 0', 'gnn",reason="BACKEND",version="1"} 3')
    assert {one.model: one.failures for one in model_times(parse(text, url="x"))} == {"exatrkx": 0, "frnn": 0, "gnn": 5}


def test_versions_are_summed_before_the_division():
    both = Snapshot(
        url="a",
        counters={
            ("gnn", "1"): Counters(request_success=1, request_duration_us=9000),
            ("gnn", "2"): Counters(request_success=3, request_duration_us=3000),
        },
    )
    (gnn,) = model_times(both)
    assert gnn.successes == 4 and gnn.request_ms == 3.0


def test_a_fleet_is_summed_before_the_division():
    busy = snapshot("a", request_success=90, queue_duration_us=90_000)
    idle = snapshot("b", request_success=10, queue_duration_us=910_000)
    (gnn,) = fleet_times([busy, idle])
    assert gnn.successes == 100 and gnn.queue_ms == 10.0  # the mean of the two means would be 46


def test_only_what_came_since_the_earlier_snapshot_counts():
    before = snapshot(request_success=10, request_duration_us=1_000_000)
    after = snapshot(request_success=14, request_duration_us=1_008_000)
    (gnn,) = model_times(after, before)
    assert gnn.successes == 4 and gnn.request_ms == 2.0
    assert model_times(after, after)[0] == ModelTimes(
        model="gnn",
        successes=0,
        failures=0,
        inferences=0,
        executions=0,
        request_ms=0,
        queue_ms=0,
        input_ms=0,
        infer_ms=0,
        output_ms=0,
    )


def test_a_server_that_began_anew_counts_from_zero_in_all_its_counters():
    before = snapshot(request_success=10, request_duration_us=1_000_000)
    # One counter fell; the other has already passed its old value, and must count in full too.
    after = snapshot(request_success=4, request_duration_us=2_000_000)
    (gnn,) = model_times(after, before)
    assert gnn.successes == 4 and gnn.request_ms == 500.0


def several(url="a", instance="", **successes: int) -> Snapshot:
    """A server's counters of several models; `v2_gnn=3` is version 2 of gnn."""
    keys = {name: (name.removeprefix("v2_"), "2" if name.startswith("v2_") else "1") for name in successes}
    counted = {keys[name]: Counters(request_success=n, request_duration_us=1000 * n) for name, n in successes.items()}
    return Snapshot(url=url, counters=counted, instance=instance)


@pytest.mark.parametrize(
    ("before", "after", "counted"),
    [
        pytest.param({"embed": 5, "gnn": 100}, {"embed": 8, "gnn": 3}, {"embed": 8, "gnn": 3}, id="one fell, one grew"),
        pytest.param({"embed": 5, "gnn": 5}, {"embed": 5, "gnn": 4}, {"embed": 5, "gnn": 4}, id="one is the same"),
        pytest.param({"gnn": 9, "v2_gnn": 1}, {"gnn": 2, "v2_gnn": 6}, {"gnn": 8}, id="one version fell"),
        pytest.param({"embed": 5}, {"embed": 7, "gnn": 3}, {"embed": 2, "gnn": 3}, id="a model that was loaded"),
        pytest.param({"embed": 5, "gnn": 9}, {"embed": 7}, {"embed": 2}, id="a model that was unloaded"),
        pytest.param({"embed": 5, "gnn": 9}, {"embed": 4, "wcc": 3}, {"embed": 4, "wcc": 3}, id="another repository"),
        pytest.param({}, {"embed": 4}, {"embed": 4}, id="nothing before"),
        pytest.param({"embed": 4}, {}, {}, id="nothing after"),
        pytest.param({"embed": 0, "gnn": 0}, {"embed": 0, "gnn": 2}, {"embed": 0, "gnn": 2}, id="zeros"),
    ],
)
def test_a_server_begins_anew_as_a_whole(before: dict, after: dict, counted: dict):
    found = {one.model: one.successes for one in model_times(several(**after), several(**before))}
    assert found == counted


@pytest.mark.parametrize("field", COUNTED)
def test_any_counter_that_fell_tells_that_the_server_began_anew(field: str):
    whole = dict.fromkeys(COUNTED, 10.0)
    before = Snapshot(url="a", counters={("embed", "1"): Counters(**whole), ("gnn", "1"): Counters(**whole)})
    more = Counters(request_success=70.0, request_duration_us=700.0)
    after = Snapshot(url="a", counters={("embed", "1"): Counters(**whole | {field: 9.0}), ("gnn", "1"): more + more})
    assert {one.model: one.successes for one in model_times(after, before)}["gnn"] == 140


@pytest.mark.parametrize(("names", "counted"), [(("", ""), 2), (("", "b"), 2), (("a", "a"), 2), (("a", "b"), 7)])
def test_another_process_at_the_same_address_counts_in_full(names: tuple[str, str], counted: int):
    before, after = (several(instance=name, gnn=n) for name, n in zip(names, (5, 7), strict=True))
    assert model_times(after, before)[0].successes == counted


def test_a_restart_of_one_server_leaves_the_others_as_they_are():
    before = [several("a", embed=5, gnn=100), several("b", embed=50, gnn=50)]
    after = [several("a", embed=8, gnn=3), several("b", embed=51, gnn=52)]
    assert {one.model: one.successes for one in fleet_times(after, before)} == {"embed": 8 + 1, "gnn": 3 + 2}


def with_value(value: str, counter: str = "request_success", model: str = "gnn") -> str:
    """What a real Triton said, with another value of one counter."""
    begin = f'nv_inference_{counter}{{model="{model}",version="1"}} '
    lines = [begin + value if line.startswith(begin) else line for line in REAL.splitlines()]
    assert begin + value in lines
    return "\n".join(lines) + "\n"


NO_COUNTS = ["NaN", "nan", "+Inf", "-Inf", "inf", "-1", "-0.5", "1e400", "1e300", str(2**53 + 2), "3.5"]


@pytest.mark.parametrize("counter", ["request_success", "exec_count", "queue_duration_us"])
@pytest.mark.parametrize("value", NO_COUNTS)
def test_what_is_no_count_is_an_error_of_one_line(counter: str, value: str):
    text = with_value(value, counter)
    if value == "3.5" and counter.endswith("_us"):  # a time may have a fraction
        assert parse(text, url="u").counters["gnn", "1"].queue_duration_us == 3.5
        return
    with pytest.raises(EndpointError) as error:
        parse(text, url="http://n1:8002/metrics")
    said = str(error.value)
    assert said.startswith(f"http://n1:8002/metrics: nv_inference_{counter} of model 'gnn' version '1' is ")
    assert "which is not a count" in said and "\n" not in said


def test_a_counter_that_is_missing_is_no_zero():
    for counter in COUNTED:
        text = "".join(
            line + "\n" for line in REAL.splitlines() if not line.startswith((f'nv_inference_{counter}{{model="frnn"',))
        )
        with pytest.raises(EndpointError, match=rf"nv_inference_{counter} of model 'frnn' version '1' is missing; "):
            parse(text, url="u")


def test_a_series_that_is_there_twice_is_no_sum():
    line = 'nv_inference_request_success{model="gnn",version="1"} 16\n'
    with pytest.raises(EndpointError, match="nv_inference_request_success of model 'gnn' version '1' appears twice"):
        parse(REAL.replace(line, 2 * line), url="u")


def test_the_series_of_several_gpus_are_summed():
    lines = []
    for line in REAL.splitlines():
        lines += [line.replace("{model=", f'{{gpu_uuid="GPU-{n}",model=') for n in (0, 1)] if "{model=" in line else []
    gnn = {one.model: one for one in model_times(parse("\n".join(lines) + "\n", url="u"))}["gnn"]
    assert gnn.successes == 32 and gnn.infer_ms == pytest.approx(595.548 / 16)


@pytest.mark.slow
def test_whatever_is_broken_in_the_text_is_an_error_of_one_line():
    broken = random.Random(1)
    data = REAL.encode()
    for _ in range(2000):
        torn = bytearray(data)
        torn[broken.randrange(len(torn))] = broken.randrange(256)
        if broken.random() < 0.3:
            del torn[broken.randrange(len(torn)) :]
        try:
            times = model_times(parse(torn.decode(errors="replace"), url="u"))
        except EndpointError as error:
            assert "\n" not in str(error)
        else:
            assert all(one.request_ms >= 0 and one.successes >= 0 for one in times)


def test_a_server_that_is_named_twice_counts_once():
    with http_server(REAL) as server:
        snapshots, errors = fetch_fleet([server, metrics_url(server), server])
    assert len(snapshots) == 1 and not errors


def test_in_a_fleet_each_server_is_compared_with_itself():
    before = [snapshot("a", request_success=10), snapshot("b", request_success=100)]
    after = [snapshot("b", request_success=5), snapshot("a", request_success=11), snapshot("c", request_success=7)]
    (gnn,) = fleet_times(after, before)
    assert gnn.successes == 5 + 1 + 7


def test_shares_without_requests_are_zero():
    assert stage_shares(model_times(snapshot())) == {"gnn": 0.0}


def test_metrics_are_fetched_over_http():
    with http_server(REAL) as server:
        got = fetch(server)
        assert fetch(metrics_url(server)) == got
    assert got.url == f"http://{server}/metrics" and got.counters["gnn", "1"].request_success == 16


def test_no_proxy_is_asked(web_proxy):
    with http_server(REAL) as server:
        assert fetch(server).counters["gnn", "1"].request_success == 16


def test_the_servers_of_a_fleet_are_asked_at_once():
    """Each answers only when all have been asked."""
    together = threading.Barrier(3, timeout=20)
    with contextlib.ExitStack() as stack:
        snapshots, errors = fetch_fleet(
            [stack.enter_context(http_server(REAL, asked=together.wait)) for _ in range(3)], deadline=30
        )
    assert len(snapshots) == 3 and not errors


def test_what_is_no_triton_says_so():
    with pytest.raises(
        EndpointError, match=r"nothing answers at http://127.0.0.1:\d+/metrics; check that the server is up"
    ):
        fetch(f"127.0.0.1:{free_port()}")
    with (
        http_server("go_goroutines 7\n") as server,
        pytest.raises(EndpointError, match="does not return Triton's metrics"),
    ):
        fetch(server)
    with http_server("<html>no {metrics\n") as server, pytest.raises(EndpointError, match="Prometheus' format"):
        fetch(server)
    with http_server("", status=500) as server, pytest.raises(EndpointError, match="answers 500"):
        fetch(server)
    for address in ("a b:1", "[::1:8002", "host:99999", "*:1", "", f"{'x' * 64}:8002", "file:///etc/passwd"):
        with pytest.raises(EndpointError, match=r"no metrics from .*check the address"):
            fetch(address)


def test_the_table_has_a_row_for_each_model():
    console = Console(file=io.StringIO(), width=140)
    console.print(render_table(model_times(parse(REAL, url="x"))))
    text = console.file.getvalue()
    assert "88.005" in text and "49.839" in text and "frnn" in text
    assert "twice for its ensemble" not in text  # nothing failed
    console.print(render_table(model_times(snapshot(request_failure=2))))
    assert "twice for its ensemble" in " ".join(console.file.getvalue().split())


# The CSV


TIMES = model_times(parse(REAL, url="x"))


def test_rows_are_appended_under_one_header(tmp_path):
    path = tmp_path / "m.csv"
    append_csv(path, TIMES, at=1000.25)
    append_csv(path, TIMES, at=1001.25)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and tuple(rows[0]) == CSV_COLUMNS
    assert [row["time"] for row in rows] == ["1000.250"] * 3 + ["1001.250"] * 3
    assert rows[5]["model"] == "gnn" and float(rows[5]["request_ms"]) == pytest.approx(88.0045625)


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_a_torn_row_of_a_crash_is_cut_off(tmp_path, cut):
    whole, torn = tmp_path / "whole.csv", tmp_path / "torn.csv"
    append_csv(whole, TIMES, at=1.0)
    size = whole.stat().st_size
    append_csv(whole, TIMES, at=2.0)
    torn.write_bytes(whole.read_bytes()[: size + cut])
    append_csv(torn, TIMES, at=2.0)
    kept = whole.read_bytes()[size : size + cut].rfind(b"\n") + 1
    assert torn.read_bytes() == whole.read_bytes()[: size + kept] + whole.read_bytes()[size:]


def test_a_torn_header_is_written_again(tmp_path):
    whole, torn = tmp_path / "whole.csv", tmp_path / "torn.csv"
    append_csv(whole, TIMES, at=1.0)
    torn.write_bytes(whole.read_bytes()[:20])
    append_csv(torn, TIMES, at=1.0)
    assert torn.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("content", ["a,b\n1,2\n", "a,b", "x" * 1000])
def test_a_file_of_something_else_is_left_alone(tmp_path, content):
    (tmp_path / "m.csv").write_text(content)
    with pytest.raises(OutputError, match="other columns"):
        append_csv(tmp_path / "m.csv", TIMES, at=1.0)
    assert (tmp_path / "m.csv").read_text() == content


def test_rows_that_do_not_fit_are_taken_back(tmp_path):
    import resource

    path = tmp_path / "m.csv"
    append_csv(path, TIMES, at=1.0)
    size = path.stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
    try:
        with pytest.raises(OutputError, match=os.strerror(errno.EFBIG)):
            append_csv(path, TIMES, at=2.0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.stat().st_size == size


def test_a_csv_in_no_folder(tmp_path):
    with pytest.raises(OutputError, match=r"cannot write .*m\.csv: No such file"):
        append_csv(tmp_path / "nowhere" / "m.csv", TIMES, at=1.0)


def test_a_server_that_is_silent_is_named_and_the_others_count():
    silent = f"127.0.0.1:{free_port()}"
    with http_server(REAL) as one, http_server(REAL) as two:
        snapshots, errors = fetch_fleet([one, silent, two])
    assert [snapshot.url for snapshot in snapshots] == [metrics_url(one), metrics_url(two)]
    assert [silent in str(error) for error in errors] == [True]


def test_a_fleet_of_which_nobody_answers():
    one, two = (f"127.0.0.1:{free_port()}" for _ in range(2))
    with pytest.raises(EndpointError, match=f"^nothing answers at http://{one}"):
        fetch_fleet([one])
    with pytest.raises(EndpointError, match=f"none of 2 servers returns metrics; nothing answers at http://{one}"):
        fetch_fleet([one, two])
    with pytest.raises(EndpointError, match="none of 0 servers"):
        fetch_fleet([])
