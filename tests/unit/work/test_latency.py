from __future__ import annotations

import numpy as np
import pytest

from exatrkx_hpc.work.run.latency import Latency, Stopwatch


def test_percentiles_are_within_one_percent_of_numpys_and_the_mean_is_exact():
    times = np.random.default_rng(7).lognormal(mean=-3, sigma=1.5, size=5000)
    watch = Stopwatch()
    for seconds in times:
        watch.add(seconds)
    latency = watch.latency()
    assert latency.mean == pytest.approx(1000 * times.mean())
    for percent, found in ((50, latency.p50), (95, latency.p95), (99, latency.p99)):
        assert found == pytest.approx(1000 * np.percentile(times, percent), rel=0.01)


def test_no_time_one_time_and_times_out_of_range():
    watch = Stopwatch()
    assert watch.latency() == Latency(mean=0, p50=0, p95=0, p99=0)
    watch.add(0.2)
    assert watch.latency().p50 == pytest.approx(200, rel=0.01) == watch.latency().p99
    watch.add(0.0)
    watch.add(1e9)
    assert 0 < watch.latency().p50 < watch.latency().p99


def test_many_times_at_once_are_the_same_as_one_by_one():
    times = np.random.default_rng(8).lognormal(mean=-3, sigma=1.0, size=500)
    one_by_one, at_once = Stopwatch(), Stopwatch()
    for seconds in times:
        one_by_one.add(seconds)
    at_once.add_all(times[:200])
    rest = Stopwatch()
    rest.add_all(times[200:])
    at_once.join(rest)
    assert at_once.histogram(40) == one_by_one.histogram(40)
    assert at_once.latency().p99 == one_by_one.latency().p99
    assert at_once.latency().mean == pytest.approx(one_by_one.latency().mean)


def test_a_histogram_spans_the_times_in_equal_steps_and_loses_none():
    times = np.random.default_rng(9).uniform(0.01, 0.5, size=3000)
    watch = Stopwatch()
    watch.add_all(times)
    edges, counts = watch.histogram(50)
    assert len(edges) == len(counts) + 1 <= 51 and sum(counts) == 3000
    assert edges[0] == pytest.approx(1000 * times.min(), rel=0.011)
    assert edges[-1] >= 1000 * times.max() * 0.99
    assert np.diff(np.log(edges)) == pytest.approx(np.log(edges[1] / edges[0]))
    inside = np.histogram(1000 * times, edges)[0]
    assert np.abs(inside - counts).max() <= 2  # rounding at an edge


def test_a_histogram_of_nothing_and_of_one_time():
    watch = Stopwatch()
    assert watch.histogram(50) == ((), ())
    watch.add(0.2)
    edges, counts = watch.histogram(50)
    assert counts == (1,) and edges[0] <= 200 * 1.0001 and edges[1] >= 200 * 0.9999
