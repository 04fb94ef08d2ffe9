from __future__ import annotations

import re
from dataclasses import replace

import pytest
from told_history import FIGURES, NOTHING, TOLD, Page

from exatrkx_hpc.page.history import Throughput
from exatrkx_hpc.page.page import render_page
from exatrkx_hpc.work.run.latency import Latency


def test_the_page_holds_every_figure_and_table():
    page = Page(render_page(TOLD))
    assert tuple(page.ids("figure")) == FIGURES
    assert page.ids("section") == ["first-failures", "runs", "settings", "versions"]
    drawings = [found for name, found in page.elements if name == "svg"]
    assert len(drawings) == len(FIGURES) and {found["role"] for found in drawings} == {"img"}
    named = {found.get("id") for _, found in page.elements}
    assert all(set(found["aria-labelledby"].split()) <= named for found in drawings)
    for words in (
        *("1,990 of 2,000 events have results; 4 in quarantine; 3 failed", "3 not done yet", "stopped by SIGTERM"),
        *("mean 184 events/s", "p50 82 ms", "p95 150 ms", "p99 300 ms", "running time [s]", "latency [ms]"),
        *("93.8 %, 120 s", "57.1 %, 4 events", "was killed", "resumed once", "2.51.0", "5,000,000"),
    ):
        assert words in page.words, words


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (replace(TOLD.runs[0]), "3 not done yet. The last run was killed."),
        (replace(TOLD.runs[1], stopped="no labels <came>"), "yet. The last run ended early: no labels <came>."),
        (replace(TOLD.runs[1], stopped=""), "3 not done yet.\n"),
    ],
)
def test_the_verdict_says_how_the_last_run_ended(run, says):
    assert says in Page(render_page(replace(TOLD, runs=(run,)))).words


def test_what_is_not_known_is_left_out():
    bare = replace(TOLD, members={}, compute={}, kinds={}, failures=(), settings={}, versions={}, runs=TOLD.runs[:1])
    page = Page(render_page(bare))
    assert page.ids("figure") == ["throughput", "latency"] and page.ids("section") == []
    page = Page(render_page(NOTHING))
    assert page.ids("figure") == [] and "Every event has a result." in page.words


def test_names_cannot_become_markup_and_every_letter_can_be_written():
    html = render_page(TOLD)
    page = Page(html)
    assert html.encode()  # no lone surrogate
    assert not {"script", "img", "iframe", "object", "embed"} & {name for name, _ in page.elements}
    assert "<script>alert(1)</script>" in page.words and not re.search("[\x00-\x08\x0b-\x1f\u202e]", html)
    assert len(re.findall("</title>", html)) == len(re.findall("<title", html))


def test_the_page_refers_to_nothing_outside_itself():
    html = render_page(replace(TOLD, members={"n1": 1}, failures=(), settings={}))
    assert not re.search(r"https?:|//|url\(|@import", html)
    for name, attributes in Page(html).elements:
        assert not {"src", "action", "srcset", "background"} & set(attributes), name
        assert attributes.get("href", "data:,") == "data:,", name
        assert not [key for key in attributes if key.startswith("on")]
    (policy,) = (found["content"] for name, found in Page(html).elements if "http-equiv" in found)
    assert policy.startswith("default-src 'none';") and "script" not in policy


@pytest.mark.parametrize(
    ("figures", "unit"), [(Latency(mean=1, p50=9_000, p95=2, p99=3), "ms"), (Latency(mean=1, p50=20_000), "s")]
)
def test_long_latencies_are_in_seconds(figures, unit):
    told = replace(TOLD, latency=replace(TOLD.latency, figures=figures))
    assert f"latency [{unit}]" in Page(render_page(told)).words


@pytest.mark.parametrize(("seconds", "unit"), [(100, "s"), (1000, "min"), (100_000, "h")])
def test_the_time_axis_has_a_unit_that_fits(seconds, unit):
    told = replace(TOLD, throughput=Throughput(counts=(5, 5), edges=(0, seconds / 2, seconds)))
    assert f"running time [{unit}]" in Page(render_page(told)).words
