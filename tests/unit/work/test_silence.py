"""What a person sees while no server answers."""

from __future__ import annotations

import threading

import pytest
from fakes.running import fake_triton, free_port

from exatrkx_hpc.work.news import EndpointAnswers, EndpointSilent
from exatrkx_hpc.work.nodes.state import StateFile, read_state, together
from exatrkx_hpc.work.run import silence as module
from exatrkx_hpc.work.run.progress import Tally, silent
from exatrkx_hpc.work.run.run import StoppedRun, run_clients
from exatrkx_hpc.work.run.silence import Listener, Silence


class Clock:
    """A clock that stands still until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_line_each_ten_seconds_and_one_when_it_answers_again():
    told, clock = [], Clock()
    listener = Listener(server="h:1", patience=600.0, tell=told.append, clock=clock)
    assert listener.look() is None
    for _ in range(25):
        listener.failed("nothing answers")
        clock.now += 1.0
        listener.look()
    assert [(news.seconds, news.tried, news.left) for news in told] == [(10.0, 10, 590.0), (20.0, 20, 580.0)]
    assert (
        str(told[1]) == "no result from h:1 for 20 s, 20 retries, gives up in 9 min 40 s; last failure: nothing answers"
    )
    assert listener.silence == Silence(seconds=25.0, tried=25, left=575.0)
    listener.answered()
    assert isinstance(told[-1], EndpointAnswers) and str(told[-1]) == "h:1 answers again, after 25 s"
    assert listener.look() is None and listener.silence is None


def test_a_retry_among_answers_is_not_told():
    told, clock = [], Clock()
    listener = Listener(server="h:1", patience=600.0, tell=told.append, clock=clock)
    for _ in range(50):
        listener.failed("torn")
        clock.now += 1.0
        assert listener.look() is None
        listener.answered()
    assert told == []


def test_the_progress_of_shards_has_the_silence_of_all(tmp_path):
    quiet = Silence(seconds=30.0, tried=4, left=570.0)
    for shard, silence in enumerate((quiet, Silence(seconds=20.0, tried=3, left=580.0))):
        state = StateFile(tmp_path, shard, node="n1", clock=lambda: 0.0)
        state._written = -10.0
        state.show(Tally(events=10, done=1, failed=0, silence=silence))
    states = {shard: read_state(tmp_path, shard) for shard in range(2)}
    assert together(states, 2).silence == Silence(seconds=20.0, tried=7, left=580.0)
    assert silent(quiet) == "no server answers for 30 s, tried 4 times, gives up in 9 min 30 s"
    state.show(Tally(events=10, done=2, failed=0))
    state.end(0)
    assert together({0: states[0], 1: read_state(tmp_path, 1)}, 2).silence == quiet


def test_a_run_tells_of_servers_that_are_away_and_counts_retries_without_a_result(settings, monkeypatch):
    monkeypatch.setattr(module, "EVERY", 1.0)
    monkeypatch.setattr(module, "_SHOWN", 0.5)
    port, told, tallies, back = free_port(), [], [], []

    def show(tally):
        tallies.append(tally)
        if tally.silence is not None and tally.silence.seconds > 3 and not back:
            back.append(fake_triton("--port", str(port)))
            threading.Thread(target=back[0].__enter__).start()

    try:
        with fake_triton("--port", str(port), "--die-after", "4") as fake:
            report = run_clients(settings(sizes=[3] * 12, server=fake.server), show, tell=told.append)
    finally:
        back[0].__exit__(None, None, None)
    lines = [news for news in told if isinstance(news, EndpointSilent)]
    assert lines and lines[0].tried > 0 and 590 < lines[0].left < 600 and "connection refused" in lines[-1].reason
    assert any(isinstance(news, EndpointAnswers) for news in told)
    assert any(tally.retries and tally.silence is not None and tally.done <= 4 for tally in tallies)
    assert report.done == 12 and report.retries >= lines[-1].tried


@pytest.mark.slow
def test_the_last_line_of_a_run_that_gave_up_says_how_to_go_on(settings):
    with (
        fake_triton("--die-after", "4") as fake,
        pytest.raises(StoppedRun, match=r"no results from .*; run the same command again to go on$") as stopped,
    ):
        run_clients(settings(sizes=[3] * 60, server=fake.server, patience=1.0))
    assert stopped.value.report.retries > 0, "although no event has a result since"
