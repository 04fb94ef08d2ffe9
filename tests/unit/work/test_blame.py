"""Who is to blame: the event, a server or the endpoint."""

from __future__ import annotations

import pytest

from exatrkx_hpc.work.inference.blame import ALONE_AFTER, DELIVERIES, REFUSALS, Case, Decision, Judge, poisoned
from exatrkx_hpc.work.inference.retry import Cause


def made(*goods: tuple[str, str], patience: float = 600.0, proven: bool = False) -> Judge:
    """Return a judge that has seen these good answers, each an event and its server."""
    judge = Judge(patience=patience, proven=proven)
    for event, member in goods:
        judge.answered(event, member)
    return judge


def decisions(judge: Judge, case: Case, *failures: tuple[Cause, str], alone: bool | None = None) -> list[Decision]:
    """Return the decisions on deliveries that fail one after the other, alone when the case demands it."""
    return [
        judge.failed(case, cause, member, alone=case.alone if alone is None else alone, now=0.0).decision
        for cause, member in failures
    ]


GOOD = [("g1", "a:1"), ("g2", "b:1"), ("g3", "c:1")]


@pytest.mark.parametrize("cause", [Cause.TORN, Cause.FAULT])
def test_three_strikes_on_two_servers_condemn_if_the_last_one_is_alone(cause):
    case = Case(event="e")
    found = decisions(made(*GOOD), case, (cause, "a:1"), (cause, "b:1"), (cause, "a:1"))
    assert found == [Decision.LAST, Decision.LAST, Decision.POISON]
    assert [strike.alone for strike in case.strikes] == [False, False, True]
    assert "3 deliveries ended without an answer on a:1, b:1" in poisoned(case, "why")


def test_a_strike_among_others_never_condemns():
    failures = [(Cause.TORN, f"{server}:1") for server in "abcabcabc"]
    assert set(decisions(made(*GOOD), Case(event="e"), *failures, alone=False)) == {Decision.LAST}


def test_three_strikes_on_one_server_of_several_do_not_condemn_but_four_do():
    torn = (Cause.TORN, "a:1")
    assert decisions(made(*GOOD), Case(event="e"), *[torn] * 4)[-2:] == [Decision.LAST, Decision.POISON]


def test_deadlines_have_no_server_and_condemn_after_four():
    late = (Cause.DEADLINE, "")
    found = decisions(made(*GOOD), Case(event="e"), *[late] * DELIVERIES)
    assert found == [Decision.LAST, Decision.LAST, Decision.LAST, Decision.POISON]
    assert decisions(made(("g", "")), Case(event="e"), *[late] * 3)[-1] is Decision.POISON, "the only server"


def test_strikes_of_earlier_runs_count():
    case = Case(event="e")
    decisions(made(*GOOD), case, (Cause.TORN, "a:1"), (Cause.TORN, "b:1"))
    assert len(case.strikes) == ALONE_AFTER and case.alone
    later = Case(event="e", strikes=case.strikes)
    assert decisions(made(*GOOD), later, (Cause.TORN, "c:1")) == [Decision.POISON]
    # Also if it is the only event that is left: the earlier run got answers.
    later = Case(event="e", strikes=case.strikes[:2])
    assert decisions(made(proven=True), later, (Cause.TORN, "c:1")) == [Decision.POISON]


def test_no_event_is_condemned_while_many_fail():
    judge = made(*GOOD)
    cases = [Case(event=f"e{number}") for number in range(8)]
    for server in ("a:1", "b:1"):
        for case in cases:
            decisions(judge, case, (Cause.TORN, server))
    assert {decisions(judge, case, (Cause.TORN, "c:1"))[0] for case in cases} == {Decision.LAST}
    # They are delivered once more, and then they fail because of the endpoint; the next run tries them again.
    assert {decisions(judge, case, (Cause.TORN, "c:1"))[0] for case in cases} == {Decision.ENDPOINT}


def test_good_answers_in_between_tell_the_one_that_kills():
    judge = made(*GOOD)
    cases = [Case(event=f"e{number}") for number in range(8)]
    for server in ("a:1", "b:1"):
        for case in cases:
            decisions(judge, case, (Cause.TORN, server))
    for case in cases[1:]:
        judge.answered(case.event, "c:1")
    assert decisions(judge, cases[0], (Cause.TORN, "c:1")) == [Decision.POISON]


@pytest.mark.parametrize("cause", [Cause.TORN, Cause.FAULT, Cause.DEADLINE])
@pytest.mark.parametrize("number", [1, 2])
def test_an_endpoint_that_never_answered_condemns_no_event(number, cause):
    judge = Judge(patience=600.0)
    cases = [Case(event=f"e{one}") for one in range(number)]
    for _ in range(DELIVERIES):
        found = [decisions(judge, case, (cause, ""))[0] for case in cases]
    assert found == [Decision.ENDPOINT] * number


def test_a_sick_servers_faults_are_no_strikes():
    judge, sick = made(*GOOD), (Cause.FAULT, "a:1")
    cases = [Case(event=f"e{number}") for number in range(5)]
    for case in cases:
        decisions(judge, case, sick, sick)
    assert [len(case.strikes) for case in cases] == [2, 0, 0, 0, 0], "only the first one trusted it"
    found = decisions(judge, cases[0], *[sick] * DELIVERIES)
    assert found == [Decision.AGAIN] * DELIVERIES and len(cases[0].strikes) == 2, "alone, it waits for the servers"


def test_two_events_that_exhaust_the_only_server_do_not_alternate():
    judge, cases = made(("g", "a:1")), [Case(event="e0"), Case(event="e1")]
    for _ in range(DELIVERIES):
        found = [decisions(judge, case, (Cause.FAULT, "a:1"))[0] for case in cases]
    assert found == [Decision.ENDPOINT, Decision.ENDPOINT], "no server is left to trust, so they are not condemned"
    assert [len(case.strikes) for case in cases] == [DELIVERIES, DELIVERIES]


def test_a_connection_to_the_balancer_that_breaks_is_no_strike():
    case = Case(event="e")
    assert decisions(made(*GOOD), case, (Cause.TORN, "")) == [Decision.AGAIN] and not case.strikes


def refusals(*members: str) -> list[tuple[Cause, str]]:
    return [(Cause.REFUSED, member) for member in members]


def test_two_servers_that_refuse_an_event_blame_it():
    found = decisions(made(*GOOD), Case(event="e"), *refusals("a:1", "b:1"))
    assert found == [Decision.AGAIN, Decision.REFUSED]


def test_one_server_of_several_is_believed_only_if_it_answers_others_well():
    found = decisions(made(*GOOD), Case(event="e"), *refusals(*["a:1"] * REFUSALS))
    assert found == [Decision.AGAIN] * (REFUSALS - 1) + [Decision.REFUSED]
    judge = made(*GOOD)
    decisions(judge, Case(event="other"), *refusals("a:1"))
    assert set(decisions(judge, Case(event="e"), *refusals(*["a:1"] * 30))) == {Decision.AGAIN}


def test_two_sick_servers_of_three_do_not_blame_an_event():
    judge = made(*GOOD)
    for server in ("a:1", "b:1"):
        decisions(judge, Case(event="other"), *refusals(server))
    case = Case(event="e")
    assert decisions(judge, case, *refusals("a:1", "b:1", "a:1"))[-1] is Decision.AGAIN
    assert decisions(judge, case, *refusals("c:1")) == [Decision.REFUSED]


def test_the_only_server_is_believed_the_second_time_or_later_if_it_may_not_be_the_only_one():
    assert decisions(made(), Case(event="e"), *refusals("", ""))[-1] is Decision.REFUSED
    assert decisions(made(("g", "a:1")), Case(event="e"), *refusals("a:1", "a:1"))[-1] is Decision.REFUSED
    found = decisions(made(), Case(event="e"), *refusals(*["a:1"] * 4))
    assert found == [Decision.AGAIN] * 3 + [Decision.REFUSED]


def test_what_counts_for_nothing_is_repeated_until_the_patience_ends():
    judge, case = made(*GOOD, patience=60.0), Case(event="e")
    found = [judge.failed(case, Cause.DENIED, "", alone=False, now=10.0 * turn).decision for turn in range(9)]
    assert found == [Decision.AGAIN] * 7 + [Decision.ENDPOINT] * 2
