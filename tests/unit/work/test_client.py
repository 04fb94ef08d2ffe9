from __future__ import annotations

import asyncio
import socket
import threading

import numpy as np
import pytest
from fakes.running import expected, fake_triton, free_port

from exatrkx_hpc.base.errors import ConfigError, EndpointError, InputError, ModelError
from exatrkx_hpc.work.inference import channel
from exatrkx_hpc.work.inference.client import Client, check_endpoint, checked_address
from exatrkx_hpc.work.inference.retry import (
    CHANNEL_OPTIONS,
    Cause,
    Patience,
    Poisoned,
    RequestFailed,
    UnknownModel,
    explain,
    persist,
    worth_repeating,
)
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.workloads.exatrkx import WORKLOAD
from exatrkx_hpc.work.workloads.given import as_tensors


def ask(server, hits=4, **options):
    async def call():
        async with Client(server, **options) as client:
            return await client.ask({"hits": np.zeros((hits, 3), dtype=np.float32)})

    return asyncio.run(call())


# The policy


def test_grpc_repeats_by_itself_only_what_was_never_sent():
    options = dict(CHANNEL_OPTIONS)
    assert "grpc.service_config" not in options, "a retry policy would deliver an event that kills its server again"
    assert options["grpc.enable_retries"] == 1 and options["grpc.per_rpc_retry_buffer_size"] == 256 << 20
    assert options["grpc.keepalive_time_ms"] >= 300_000  # Triton ends a connection with more pings
    assert options["grpc.enable_http_proxy"] == 0
    assert options["grpc.max_reconnect_backoff_ms"] <= 5000  # the default of 120 s outlasts most outages


NO_SERVER = "no server of the farm could take the request"
WRAPPED = "Failed to process the request(s) for model{} 'embed_0_0', message: {}\n\nAt:\n  /x/serving.py(84): execute\n"


@pytest.mark.parametrize(
    ("status", "message", "more", "cause"),
    [
        ("UNAVAILABLE", "failed to connect to all addresses; last error: Connection refused", {}, Cause.NOT_SENT),
        ("UNAVAILABLE", "C-ares: hostname lookup error", {}, Cause.NOT_SENT),
        ("UNAVAILABLE", NO_SERVER, {}, Cause.NOT_SENT),
        ("UNAVAILABLE", NO_SERVER, {"member": "a:1", "sent": False}, Cause.NOT_SENT),
        ("UNAVAILABLE", NO_SERVER, {"member": "a:1", "sent": True}, Cause.TORN),
        ("UNAVAILABLE", NO_SERVER, {"member": "a:1"}, Cause.TORN),  # an older balancer
        ("UNAVAILABLE", "Socket closed", {}, Cause.TORN),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'x'", {}, Cause.DENIED),
        ("UNAVAILABLE", "This protocol is restricted, expecting header 'x'", {"member": "a:1"}, Cause.FAULT),
        ("UNAVAILABLE", "Socket closed", {"member": "a:1"}, Cause.FAULT),  # a server answered this
        ("UNAVAILABLE", "Exceeds maximum queue size", {"member": "a:1"}, Cause.BUSY),
        ("UNAVAILABLE", "Received http2 header with status: 503", {}, Cause.BUSY),
        ("UNKNOWN", "Received http2 header with status: 500", {}, Cause.BUSY),
        ("UNKNOWN", "Received http2 header with status: 413", {}, Cause.TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "Received message larger than max (9 vs. 4)", {}, Cause.TOO_LARGE),
        ("RESOURCE_EXHAUSTED", "queue is full", {}, Cause.BUSY),
        ("RESOURCE_EXHAUSTED", "CUDA out of memory", {}, Cause.FAULT),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", {}, Cause.DEADLINE),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", {"sent": False}, Cause.NOT_SENT),
        ("CANCELLED", "RST_STREAM 8", {}, Cause.TORN),
        ("ABORTED", "", {}, Cause.BUSY),
        ("INTERNAL", "Received RST_STREAM with error code 2", {}, Cause.TORN),
        ("INTERNAL", "Stub process 'frnn_0' is not healthy.", {}, Cause.FAULT),
        ("INTERNAL", WRAPPED.format("", "RuntimeError: " + "x" * 900 + " CUDA error: ECC"), {}, Cause.FAULT),
        ("INTERNAL", "Failed to increase the shared memory pool size for key 'x' to 99 bytes", {}, Cause.FAULT),
        ("INTERNAL", "unable to create std::bad_alloc", {}, Cause.FAULT),
        ("INTERNAL", WRAPPED.format("", "Refused: not enough CUDA error memory"), {}, Cause.REFUSED),
        ("INTERNAL", "IndexError: list index out of range", {}, Cause.REFUSED),
        ("INVALID_ARGUMENT", "unexpected shape for CUDA error", {}, Cause.REFUSED),
        ("NOT_FOUND", "Request for unknown model: 'exatrkx' has no available versions", {}, Cause.BUSY),
        ("NOT_FOUND", "Request for unknown model: 'exatrkx' is not found", {}, Cause.UNKNOWN_MODEL),
        ("UNAUTHENTICATED", "missing header", {}, Cause.DENIED),
        ("UNIMPLEMENTED", "", {}, Cause.DENIED),
    ],
)
def test_what_a_failure_says(status, message, more, cause):
    assert RequestFailed(status, message, **more).cause is cause


@pytest.mark.parametrize(
    ("status", "message", "again"),
    [
        ("UNAVAILABLE", "Socket closed", True),
        ("DEADLINE_EXCEEDED", "Deadline Exceeded", True),
        ("CANCELLED", "RST_STREAM 8", True),
        ("RESOURCE_EXHAUSTED", "queue is full", True),
        ("NOT_FOUND", "Request for unknown model: 'exatrkx' has no available versions", True),
        ("NOT_FOUND", "Request for unknown model: 'exatrkx' is not found", False),
        ("INTERNAL", "Received RST_STREAM with error code 2", True),
        ("INTERNAL", "Stub process 'frnn_0' is not healthy.", True),
        ("INTERNAL", "IndexError: list index out of range", False),
        ("INVALID_ARGUMENT", "unexpected shape", False),
        ("UNAUTHENTICATED", "missing header", False),
        ("UNIMPLEMENTED", "", False),
    ],
)
def test_what_is_worth_repeating(status, message, again):
    assert worth_repeating(RequestFailed(status, message)) is again


class Time:
    """A clock that moves only while something sleeps."""

    def __init__(self):
        self.now = 0.0
        self.pauses = []

    async def sleep(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds


def failing(times, status="UNAVAILABLE", message="failed to connect to all addresses"):
    left = [times]

    async def attempt():
        if left[0] > 0:
            left[0] -= 1
            raise RequestFailed(status, message)
        return "labels"

    return attempt


def test_patience_pauses_longer_each_time_and_counts_the_repeats():
    time = Time()
    patience = Patience(seconds=1000)
    value = asyncio.run(persist(failing(12), patience=patience, clock=lambda: time.now, sleep=time.sleep))
    assert value == ("labels", 12)
    assert all(0.5 * p <= pause <= p for p, pause in zip((0.1, 0.2, 0.4, 0.8, 1.6), time.pauses, strict=False))
    assert max(time.pauses) <= 5.0 and min(time.pauses[7:]) >= 2.5


def test_patience_ends_with_a_last_attempt_at_its_end():
    time = Time()
    with pytest.raises(RequestFailed):
        asyncio.run(persist(failing(10**6), patience=Patience(seconds=30), clock=lambda: time.now, sleep=time.sleep))
    assert time.now == pytest.approx(30)


@pytest.mark.parametrize(
    ("patience", "status"),
    [(0.0, "UNAVAILABLE"), (60.0, "INVALID_ARGUMENT"), (60.0, "CANCELLED"), (60.0, "DEADLINE_EXCEEDED")],
)
def test_no_patience_and_no_worth_mean_no_pause(patience, status):
    time = Time()
    failed = failing(1, status)
    with pytest.raises(RequestFailed):
        asyncio.run(persist(failed, patience=Patience(seconds=patience), clock=lambda: time.now, sleep=time.sleep))
    assert time.pauses == []


def test_an_unknown_model_is_waited_for_but_not_as_long_as_a_server():
    async def attempt():
        raise RequestFailed("NOT_FOUND", "Request for unknown model: 'exatrkx' is not found")

    time = Time()
    patience = Patience(seconds=1000, unknown_model=20)
    with pytest.raises(RequestFailed) as caught:
        asyncio.run(persist(attempt, patience=patience, clock=lambda: time.now, sleep=time.sleep))
    assert time.now == pytest.approx(20)
    assert isinstance(explain(caught.value, server="h:1", model="exatrkx"), UnknownModel)


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (WRAPPED.format("", "Refused: embed: INPUT__0 has a NaN"), "embed: INPUT__0 has a NaN"),
        (WRAPPED.format(" instance", "Refused: embed: x At: 3"), "embed: x At: 3"),
        ("in ensemble 'exatrkx', " + WRAPPED.format("", "Refused: no"), "in ensemble 'exatrkx', no"),
        (WRAPPED.format("", "Refused: " + "y" * 500), "y" * 399 + "…"),
        # Another error of a model keeps its place in the code.
        (WRAPPED.format("", "ValueError: no"), " ".join(WRAPPED.format("", "ValueError: no").split())),
    ],
)
def test_a_stages_refusal_is_told_without_tritons_words(message: str, told: str):
    assert RequestFailed("INTERNAL", message).message == told


def test_a_long_reason_of_many_lines_becomes_one_short_line():
    failure = RequestFailed("INTERNAL", "Traceback:\n  File x\n" + "y" * 5000)
    error = explain(failure, server="h:1", model="exatrkx")
    assert isinstance(error, ModelError) and "\n" not in str(error) and len(str(error)) < 600


# The client against a server


@pytest.mark.parametrize("hits", [0, 1, 2, 1000])
def test_every_hit_gets_its_label(server, hits):
    answer = ask(server, hits)
    assert answer.outputs["labels"].dtype == np.int64 and answer.outputs["labels"].flags.writeable
    np.testing.assert_array_equal(answer.outputs["labels"], expected(hits))
    assert answer.retries == 0


@pytest.mark.parametrize(
    ("hits", "fault"),
    [
        (np.zeros(3), r"shape \[3\], not \[N,3\]"),
        (np.zeros((4, 2)), r"shape \[4, 2\]"),
        (np.zeros((1, 4, 3)), r"shape \[1, 4, 3\]"),
        (1.0, r"shape \[\]"),
        ([["a", "b", "c"]], "hits are <U1, text"),
        ([[1, 2, 3], [1, 2]], "cannot be turned into float32"),
        ([[0, 0, 0], [1, np.nan, 3]], "row 1 of hits is not finite"),
        ([[1e39, 0, 0]], "row 0 of hits is not finite"),
    ],
)
def test_arrays_that_are_no_hits_are_refused_before_they_are_sent(hits, fault):
    with pytest.raises(InputError, match=fault):
        as_tensors(WORKLOAD, hits)


def test_any_numbers_of_the_right_shape_are_hits():
    hits = as_tensors(WORKLOAD, np.asfortranarray(np.arange(12, dtype=np.int16).reshape(4, 3)))["hits"]
    assert hits.dtype == np.float32 and hits.flags.c_contiguous and hits[3, 2] == 11


@pytest.mark.parametrize(
    "address",
    [
        *("localhost", "http://h:8001", ":8001", "h:0", "h:99999", "h:x", "h:٣", "", "a b:1", "a\nb:1", "a:1\n"),
        *("é:80", "*:1", "..:80", "[::1:80", "a:b:80", "a%zz:80", "a?b:80", "a@b:80", "a#:1", "x" * 64 + ":80"),
    ],
)
def test_an_address_that_is_none(address):
    with pytest.raises(ConfigError, match="HOST:PORT"):
        checked_address(address)


@pytest.mark.parametrize("address", ["nid_001.cluster:80", "10.0.0.1:9191", "[::1]:8001", "host.:1", f"{'x' * 63}:80"])
def test_an_address(address):
    assert checked_address(address) == address


@pytest.mark.slow
def test_a_host_that_nobody_knows_is_told():
    with pytest.raises(
        EndpointError, match=r"the host name of no-such-host.invalid:80 cannot be resolved; set --server"
    ):
        ask("no-such-host.invalid:80", patience=1)


@pytest.mark.parametrize(
    ("switches", "repeats"),
    [
        (["--unloading", "3"], 3),
        (["--fail", "2", "--fail-status", "CANCELLED"], 2),
        (["--fail", "2", "--fail-status", "RESOURCE_EXHAUSTED"], 2),
        (["--fail", "1", "--fail-message", "Received RST_STREAM with error code 2"], 1),
        (["--unavailable", "3"], 3),
    ],
)
def test_a_server_in_trouble_is_asked_again(switches, repeats):
    with fake_triton(*switches) as fake:
        answer = ask(fake.server, patience=30)
    assert answer.retries == repeats
    np.testing.assert_array_equal(answer.outputs["labels"], expected(4))


def test_a_server_that_hangs_is_asked_again_after_the_deadline():
    with fake_triton("--hang", "600", "--hang-first", "1") as fake:
        assert ask(fake.server, request_timeout=1.0, patience=30).retries == 1


def test_a_server_that_hangs_for_good_is_given_up():
    with (
        fake_triton("--hang", "600", "--hang-first", "1000") as fake,
        pytest.raises(EndpointError, match=r"no answer from 127\.0\.0\.1:\d+ within the request timeout"),
    ):
        ask(fake.server, request_timeout=0.2, patience=0.3)


@pytest.mark.parametrize(
    ("switches", "error", "words"),
    [
        (["--fail", "99", "--fail-status", "INVALID_ARGUMENT"], ModelError, r"exatrkx at .* \(INVALID_ARGUMENT\)"),
        (["--fail", "99", "--fail-status", "INTERNAL"], ModelError, r"\(INTERNAL\): the model broke"),
        (["--drop-label"], ModelError, r"sent labels int64 \[3\], not int64 \[4\], for 4 hits"),
    ],
)
def test_what_the_only_server_says_twice_fails(switches, error, words):
    # A patience of a day would outlast the test's own time limit.
    with fake_triton(*switches) as fake, pytest.raises(error, match=words) as caught:
        ask(fake.server, patience=86400)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back_is_waited_for():
    port = free_port()

    async def call():
        async with Client(f"127.0.0.1:{port}", patience=60) as client:
            waiting = asyncio.create_task(client.ask({"hits": np.zeros((4, 3), dtype=np.float32)}))
            await asyncio.sleep(2.5)  # longer than gRPC's own repeats of a refused connection
            assert not waiting.done()
            with fake_triton("--port", str(port)):
                return await waiting

    assert asyncio.run(call()).retries > 0


def deliveries(notes) -> int:
    return len(notes.read_text().splitlines())


@pytest.mark.parametrize(
    ("switch", "error", "words", "number"),
    [
        ("--gone", EndpointError, "does not serve exatrkx", 4),
        ("--hanger", EndpointError, "no answer from", 4),
        ("--refused", ModelError, "unexpected shape", 2),
    ],
)
def test_an_event_that_the_only_server_never_answers_is_delivered_few_times(tmp_path, switch, error, words, number):
    """It is not condemned: the server has never answered any event."""
    with (
        fake_triton(switch, "4", "--notes", str(tmp_path / "notes")) as fake,
        pytest.raises(error, match=words) as caught,
    ):
        ask(fake.server, request_timeout=0.5, patience=86400)
    assert deliveries(tmp_path / "notes") == number and not isinstance(caught.value, Poisoned)


def test_an_event_that_costs_a_server_which_answers_others_is_condemned(tmp_path):
    async def call(server):
        async with Client(server, patience=86400) as client:
            await client.ask({"hits": np.zeros((3, 3), dtype=np.float32)})
            await client.ask({"hits": np.zeros((4, 3), dtype=np.float32)})

    with (
        fake_triton("--gone", "4", "--notes", str(tmp_path / "notes")) as fake,
        pytest.raises(Poisoned, match="3 deliveries ended without an answer"),
    ):
        asyncio.run(call(fake.server))


def test_an_event_that_is_too_large_fails_at_once_and_says_what_to_raise(tmp_path):
    with (
        fake_triton("--large", "4", "--notes", str(tmp_path / "notes")) as fake,
        pytest.raises(InputError, match=r"too large .*\(99 vs\. 9\).*raise the limit on gRPC messages"),
    ):
        ask(fake.server, patience=86400)
    assert deliveries(tmp_path / "notes") == 1


def test_a_request_that_protobuf_cannot_hold_is_too_large_without_being_sent(monkeypatch):
    monkeypatch.setattr(channel, "LARGEST", 40)
    with pytest.raises(InputError, match=r"too large .*\(48 vs\. 40\)"):
        ask("127.0.0.1:1", patience=86400)


def test_after_a_deadline_there_is_a_new_connection_and_other_requests_keep_theirs():
    async def call():
        line = channel.Channel(fake.server)

        async def infer(hits, timeout):
            features = np.zeros((hits, 3), dtype=np.float32)
            return await line.infer("exatrkx", {"FEATURES": features}, ["LABELS"], timeout=timeout)

        slow, before = asyncio.create_task(infer(3, 60.0)), line._now
        with pytest.raises(RequestFailed, match="DEADLINE_EXCEEDED"):
            await infer(4, 0.5)
        assert line._now is not before and line._old == {before}
        assert (await slow).outputs["LABELS"].tolist() == [3, 1, 2]
        assert not line._old
        await line.close()

    with fake_triton("--hanger", "4", "--delay", "1.0") as fake:
        asyncio.run(call())


def test_a_wrong_token_is_told_at_once():
    with (
        fake_triton("--fail", "99", "--fail-status", "UNAUTHENTICATED") as fake,
        pytest.raises(EndpointError, match="refuses the token; use the run root of its farm, or set --token-file"),
    ):
        ask(fake.server, patience=86400)


# Before a run


@pytest.mark.slow
def test_a_refused_connection_is_named():
    with pytest.raises(
        EndpointError, match=r"nothing answers at 127.0.0.1:\d+ \(connection refused\); check that the farm is up"
    ):
        check_endpoint(f"127.0.0.1:{free_port()}")


def test_a_model_that_is_not_loaded_is_named_with_those_that_are(server):
    check_endpoint(server, "exatrkx")
    with pytest.raises(ModelError, match=r"traccc-gpu is not ready at .* \(ready: exatrkx\)"):
        check_endpoint(server, "traccc-gpu")


@pytest.mark.slow
def test_a_port_that_speaks_no_grpc():
    def answer_http(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answer_http, args=(listener,), daemon=True)
        thread.start()
        with pytest.raises(EndpointError):
            check_endpoint(f"127.0.0.1:{listener.getsockname()[1]}", deadline=1.0)
        thread.join(timeout=10)


# The notebook's endpoint


def test_the_endpoint_works_like_a_function(server):
    with Endpoint(server) as endpoint:
        endpoint.check()
        assert endpoint.server == server and repr(endpoint) == f"Endpoint({server!r}, mode='ensemble', model='exatrkx')"
        np.testing.assert_array_equal(endpoint.find_tracks([[0, 0, 0], [1, 1, 1]]), [2, 1])
        with pytest.raises(InputError):
            endpoint.find_tracks([1, 2, 3])


def test_map_keeps_the_order_and_looks_ahead_only_so_far(server):
    taken = []

    def events():
        for number in range(30):
            taken.append(number)
            yield np.zeros((number, 3))

    with Endpoint(server) as endpoint:
        for number, labels in enumerate(endpoint.map(events(), in_flight=4)):
            np.testing.assert_array_equal(labels, expected(number))
            assert len(taken) <= number + 4
        assert number == 29
        assert list(endpoint.map([])) == []
        with pytest.raises(ConfigError, match="in_flight must be at least 1"):
            endpoint.map([], in_flight=0)


def test_map_ends_at_the_first_bad_event_and_the_endpoint_lives_on(server):
    with Endpoint(server) as endpoint:
        results = endpoint.map([np.zeros((1, 3)), np.zeros((1, 2)), np.zeros((1, 3))], in_flight=3)
        assert next(results).tolist() == [1]
        with pytest.raises(InputError):
            next(results)
        half_used = endpoint.map([np.zeros((1, 3))] * 10)
        next(half_used)
        half_used.close()
        assert endpoint.find_tracks(np.zeros((1, 3))).tolist() == [1]


def test_the_endpoint_works_where_a_loop_already_runs(server):
    async def notebook_cell():
        with Endpoint(server) as endpoint:
            return endpoint.find_tracks(np.zeros((3, 3)))

    assert asyncio.run(notebook_cell()).tolist() == [3, 1, 2]


def test_a_closed_endpoint_says_so_and_leaves_no_thread(server):
    endpoint = Endpoint(server)
    assert "exatrkx-endpoint" in {thread.name for thread in threading.enumerate()}
    endpoint.close()
    endpoint.close()
    assert "exatrkx-endpoint" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(EndpointError, match="closed"):
        endpoint.find_tracks(np.zeros((1, 3)))
    with pytest.raises(ConfigError):
        Endpoint("nonsense")
    assert "exatrkx-endpoint" not in {thread.name for thread in threading.enumerate()}
