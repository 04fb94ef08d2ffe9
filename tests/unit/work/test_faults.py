"""Whose fault failures are: when a run goes on all the same, and when it stops."""

from __future__ import annotations

import pytest

from exatrkx_hpc.work.run.faults import BROKEN_MODEL, DEAD_ENDPOINT, DEATHS_OF_ONE_EVENT, Faults


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def faults(clock) -> Faults:
    """The faults of a run with two workers, whose requests have seven seconds of patience."""
    return Faults(server="h:1", patience=7.0, workers=2, clock=clock)


def test_so_many_events_in_a_row_that_fail_in_the_model_are_the_models_fault(faults):
    assert [faults.of_failure("model", "bad shape") for _ in range(BROKEN_MODEL - 1)] == [None] * (BROKEN_MODEL - 1)
    reason = faults.of_failure("model", "bad shape")
    assert reason is not None and reason.startswith(f"{BROKEN_MODEL} events in a row failed in the model")
    assert "bad shape" in reason


def test_as_many_in_all_are_not(faults):
    for _ in range(3):
        assert {faults.of_failure("model", "bad shape") for _ in range(BROKEN_MODEL - 1)} == {None}
        faults.answered()


def test_events_that_fail_for_another_reason_do_not_count(faults):
    for kind in ("input", "file", "endpoint", "worker"):
        assert {faults.of_failure(kind, "x") for _ in range(2 * BROKEN_MODEL)} == {None}
    assert faults.of_failure("model", "bad shape") is None


def test_an_endpoint_that_is_silent_for_the_patience_of_a_request_is_asked(faults, clock):
    clock.now += 60.0
    faults.begin()
    clock.now += 6.9
    assert faults.silent is None
    faults.answered()
    clock.now += 6.9
    assert faults.silent is None
    clock.now += 0.1
    assert faults.of_failure("model", "bad shape") is None, "the model did answer"
    assert faults.silent == 7.0 and faults.dead("refused") == "no results from h:1 for 7 s (refused)"
    faults.lives()
    assert faults.silent is None and not faults.lies, "it was ready when it was asked"
    clock.now += 7.0
    assert faults.silent == 7.0 and faults.lies
    assert faults.dead("CUDA error") == "no results from h:1 for 14 s (CUDA error)"


def test_without_patience_a_moment_of_silence_is_no_death(clock):
    faults = Faults(server="h:1", patience=0.0, workers=2, clock=clock)
    clock.now += DEAD_ENDPOINT - 0.1
    assert faults.silent is None
    clock.now += 0.1
    assert faults.silent is not None


def test_an_event_is_given_up_when_its_worker_died_too_often(faults):
    assert [faults.killed_again("a") for _ in range(DEATHS_OF_ONE_EVENT)] == [False, False, True]
    assert faults.killed_again("b") is False, "each event has its own count"
    assert faults.given_up("a", "worker") == DEATHS_OF_ONE_EVENT
    assert faults.given_up("b", "model") == 2, "the worker that died, and the one that lived"
    assert faults.killed_again("a") is False, "it was forgotten"


def test_an_event_that_is_done_tells_how_many_workers_had_it(faults):
    faults.killed_again("a")
    assert (faults.written("a"), faults.written("b")) == (2, 1)
    assert faults.written("a") == 1, "its deaths were forgotten"


def test_workers_that_end_all_the_time_stop_the_run(faults):
    most = DEATHS_OF_ONE_EVENT * 3  # what two events at fault may cost, and as much again
    for _ in range(2):
        assert {faults.of_death("SIGKILL") for _ in range(most)} == {None}
        faults.written("a")
    assert {faults.of_death("SIGKILL") for _ in range(most)} == {None}
    assert faults.of_death("SIGSEGV") == "the workers keep dying, the last one by SIGSEGV; see their output"
