"""Servers judged by their answers, as a pure function of what was seen."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from server_records import record

from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet.members.judge import Seen, Standing, Verdict, Work, judge
from exatrkx_hpc.fleet.members.reconcile import Member, MemberState


class Court:
    """Servers whose counters grow as a test says, looked at every 5 s."""

    def __init__(self, *names: str, trials: bool = False, **rules: object) -> None:
        self.names = list(names)
        self.trials = trials
        self.rules = MonitorSection.model_validate(rules)
        self.now = 1000.0
        self.work = {name: {"m": Work()} for name in names}
        self.states: dict[str, MemberState] = dict.fromkeys(names, "ready")
        self.starts = dict.fromkeys(names, 1)
        self.standings: Mapping[str, Standing] = {}
        self.verdict: Verdict
        self.look()

    def look(self, *, seconds: float = 5.0, trials: Mapping[str, str] | None = None, **work: Work) -> dict[str, str]:
        """Let time pass and requests end (`a=Work(...)`), look, and return the states."""
        self.now += seconds
        for name, more in work.items():
            before = self.work[name]["m"]
            self.work[name]["m"] = Work(
                successes=before.successes + more.successes,
                failures=before.failures + more.failures,
                seconds=before.seconds + more.seconds,
                pending=more.pending,
            )
        members = tuple(
            Member(record=record(name, starts=self.starts[name]), state=self.states[name], note="answers")
            for name in self.names
        )
        seen = Seen(
            samples={name: dict(self.work[name]) for name in self.names if self.states[name] == "ready"},
            trials={(name, self.starts[name]): fault for name, fault in (trials or {}).items()},
        )
        self.verdict = judge(members, self.standings, seen, rules=self.rules, trials=self.trials, now=self.now)
        self.standings = self.verdict.standings
        return {member.name: member.state for member in self.verdict.members}

    def note(self, name: str) -> str:
        return next(member.note for member in self.verdict.members if member.name == name)


GOOD = Work(successes=50, seconds=0.5)
BAD = Work(failures=400)


def test_a_server_that_fails_all_is_ejected_and_says_why():
    court = Court("a", "b", "c")
    assert court.look(a=BAD, b=GOOD, c=GOOD) == {"a": "ejected", "b": "ready", "c": "ready"}
    assert court.note("a") == "m: 400 of 400 requests failed, at other servers 0%"


def test_events_that_fail_everywhere_cost_no_server_its_place():
    court = Court("a", "b")
    half = Work(successes=20, failures=20, seconds=0.2)
    assert court.look(a=half, b=half) == {"a": "ready", "b": "ready"}
    assert court.look(a=Work(failures=40), b=Work(failures=40)) == {"a": "ready", "b": "ready"}


def test_a_few_failures_are_an_accident():
    court = Court("a", "b", failure_share=0.1)
    few = Work(successes=10, failures=10, seconds=0.1)
    assert court.look(a=few, b=Work(successes=100, seconds=1.0)) == {"a": "ejected", "b": "ready"}
    court = Court("a", "b", failure_share=0.1)
    assert court.look(a=few, b=Work(successes=14, failures=6, seconds=0.2)) == {"a": "ready", "b": "ready"}


def test_too_few_requests_say_nothing():
    court = Court("a", "b")
    assert court.look(a=Work(failures=9), b=GOOD) == {"a": "ready", "b": "ready"}


def test_a_lone_server_is_never_ejected():
    court = Court("a")
    assert court.look(a=BAD) == {"a": "ready"}


@pytest.mark.parametrize(("servers", "sick", "out"), [(2, 1, 1), (3, 2, 2), (6, 2, 2), (9, 5, 5)])
def test_the_last_third_always_stays(servers, sick, out):
    names = [f"n{n}" for n in range(servers)]
    court = Court(*names)
    for _ in range(6):
        states = court.look(**{name: BAD if at < sick else GOOD for at, name in enumerate(names)})
    assert list(states.values()).count("ejected") == out
    assert list(states.values()).count("ready") >= -(-servers // 3)
    fresh = Court(*names)
    everyone = fresh.look(**dict.fromkeys(names, BAD))
    assert list(everyone.values()).count("ejected") == 0


def test_servers_that_are_out_because_of_their_trials_count_for_the_last_third():
    names = [f"n{n}" for n in range(6)]
    court = Court(*names, trials=True)
    court.look(trials={name: "" if at < 3 else "bad" for at, name in enumerate(names)})
    states = court.look(n0=BAD, n1=BAD, n2=GOOD, trials=dict.fromkeys(names[3:], "bad"))
    assert list(states.values()).count("ready") == 2


def test_a_server_many_times_as_slow_is_ejected():
    court = Court("a", "b", "c")
    states = court.look(a=Work(successes=5, seconds=5.0), b=GOOD, c=GOOD)
    assert states == {"a": "ejected", "b": "ready", "c": "ready"}
    assert court.note("a") == "m: a request takes 1 s, at other servers 0.01 s"


def test_small_latencies_are_never_slow():
    court = Court("a", "b")
    assert court.look(a=Work(successes=50, seconds=2.0), b=Work(successes=50, seconds=0.05))["a"] == "ready"


def test_a_server_whose_requests_wait_while_the_others_answer_is_ejected():
    court = Court("a", "b", stall=20)
    states = [court.look(a=Work(pending=3), b=GOOD)["a"] for _ in range(6)]
    assert states[:3] == ["ready"] * 3 and states[-1] == "ejected"
    assert "requests wait" in court.note("a")


def test_a_server_without_requests_is_idle_not_stalled():
    court = Court("a", "b", stall=20)
    assert [court.look(a=Work(), b=GOOD)["a"] for _ in range(10)] == ["ready"] * 10


def test_ejections_end_and_grow():
    court = Court("a", "b", eject_time=30, eject_time_max=70)
    lasted = []
    for _ in range(4):
        assert court.look(a=BAD, b=GOOD)["a"] == "ejected"
        begin = court.now
        while court.look(b=GOOD)["a"] == "ejected":
            pass
        lasted.append(court.now - begin)
    assert lasted == [30, 60, 70, 70]


def test_an_old_failure_does_not_eject_again():
    court = Court("a", "b", eject_time=1)
    court.look(a=BAD, b=GOOD)
    assert [court.look(a=GOOD, b=GOOD)["a"] for _ in range(6)] == ["ready"] * 6


def test_ejection_can_be_turned_off():
    assert Court("a", "b", eject=False).look(a=BAD, b=GOOD)["a"] == "ready"


def test_a_server_takes_requests_only_after_its_trial():
    court = Court("a", "b", trials=True)
    assert court.look() == {"a": "starting", "b": "starting"}
    assert court.verdict.to_try == ("a", "b")
    assert court.look(trials={"a": ""}) == {"a": "ready", "b": "starting"}
    assert court.verdict.to_try == ("b",)


def test_a_server_that_fails_its_trial_stays_out_while_another_passes():
    court = Court("a", "b", trials=True)
    assert court.look(trials={"a": "", "b": "m failed"}) == {"a": "ready", "b": "ejected"}
    assert court.note("b") == "its trial failed: m failed"
    for _ in range(5):
        assert court.look(trials={"b": "m failed"})["b"] == "ejected"
    assert court.look(trials={"b": ""})["b"] == "ready"


def test_if_no_server_passes_its_trial_the_trial_may_be_wrong():
    court = Court("a", "b", trials=True)
    faults = {"a": "bad", "b": "bad"}
    assert [court.look(trials=faults)["a"] for _ in range(3)] == ["ejected", "ejected", "ready"]
    assert "although no server passes" in court.note("a")
    assert court.look(trials={"b": ""}) == {"a": "ejected", "b": "ready"}


def test_an_ejected_server_returns_by_a_trial_alone():
    court = Court("a", "b", trials=True, eject_time=10)
    court.look(trials={"a": "", "b": ""})
    assert court.look(a=BAD, b=GOOD)["a"] == "ejected"
    assert court.verdict.to_try == ()
    court.look(b=GOOD)
    court.look(b=GOOD)
    assert court.verdict.to_try == ("a",)
    assert court.look(b=GOOD, trials={"a": "still bad"})["a"] == "ejected"
    assert court.verdict.to_try == (), "it waits before it is tried again"
    assert court.look(b=GOOD, trials={"a": ""})["a"] == "ready"


def test_a_new_start_is_judged_anew():
    court = Court("a", "b", trials=True)
    court.look(trials={"a": "", "b": ""})
    court.look(a=BAD, b=GOOD)
    court.starts["a"] = 2
    assert court.look(b=GOOD)["a"] == "starting"
    assert court.look(trials={"a": ""})["a"] == "ready"


def test_a_server_that_stays_ejected_is_restarted_once_in_a_while():
    court = Court("a", "b", trials=True, sick_after=60)
    court.look(trials={"a": "", "b": "bad"})
    asked = [court.look(trials={"b": "bad"}) and court.verdict.to_restart.get("b") for _ in range(30)]
    assert [at for at, why in enumerate(asked) if why] == [10, 22]
    assert asked[10] == "its trial failed: bad"


def test_a_server_that_is_silent_for_long_is_restarted():
    court = Court("a", "b", sick_after=60)
    court.states["a"] = "gone"
    asked = [court.look() and "a" in court.verdict.to_restart for _ in range(14)]
    assert asked.index(True) == 12
    assert not any(Court("a", sick_after=0).verdict.to_restart)


def test_a_server_that_never_becomes_ready_is_restarted():
    court = Court("a", start_within=100)
    court.states["a"], court.starts["a"] = "starting", 2
    asked = [court.look() and court.verdict.to_restart.get("a") for _ in range(22)]
    assert asked.index("not ready after 100 s") == 20


@pytest.mark.parametrize("state", ["draining", "gone"])
def test_a_servers_own_word_is_not_overruled(state):
    court = Court("a", "b", sick_after=10)
    members = (
        Member(record=record("a", state=state), state=state, note="its word"),
        Member(record=record("b"), state="ready", note="answers"),
    )
    for step in range(10):
        verdict = judge(members, {}, Seen(), rules=court.rules, trials=False, now=1000 + 10.0 * step)
        assert verdict.members == members and verdict.to_restart == {}
