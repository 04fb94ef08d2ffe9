from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import DARK, REMEDY, browse, net

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.process import find_program
from exatrkx_hpc.page.history import History, Run, Spread, Throughput
from exatrkx_hpc.page.page import render_page
from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.latency import Latency

HOSTILE = "evt_</title><script>alert(1)</script><img src=http://leak.invalid/x>\"'\udcff\x1b[31m\u202e"
FIGURES = ("throughput", "latency", "members", "stages", "failures")
TOLD = History(
    model="exatrkx",
    mode="ensemble",
    events=2000,
    done=1990,
    failed=3,
    quarantined=4,
    item="hits",
    items=5_000_000,
    retries=57,
    runs=(
        Run(began=1.7e9, ended=1.7e9 + 5, server="127.0.0.1:9191", killed=True),
        Run(began=1.7e9 + 60, ended=1.7e9 + 65, server="127.0.0.1:9191", stopped="stopped by SIGTERM"),
    ),
    throughput=Throughput(counts=(190, 200) * 5 + (40,), edges=(*range(11), 10.8), begins=(5.0,)),
    latency=Spread(
        counts=(10, 900, 1000, 70, 10),
        edges_ms=(20, 40, 80, 160, 320, 640),
        figures=Latency(mean=85, p50=82, p95=150, p99=300),
    ),
    members={"nid001:8001": 1100, HOSTILE: 890},
    compute={"embed": 8000.0, "gnn": 120_000.0},
    kinds={"input": 4, "endpoint": 3},
    failures=(Failed(event=HOSTILE, kind="input", reason=HOSTILE),),
    settings={"workers": "8", "events": f"/scratch/{HOSTILE}"},
    versions={"Triton": "2.51.0"},
)
NOTHING = History(
    model="", mode="", events=0, done=0, failed=0, quarantined=0, item="hits", items=0, retries=0, runs=(),
    throughput=Throughput(), latency=Spread(),
)  # fmt: skip


class Page(HTMLParser):
    """What is on a page: its elements with their attributes, and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def ids(self, tag: str) -> list[str]:
        return [found["id"] for name, found in self.elements if name == tag and "id" in found]


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


@pytest.fixture(scope="module")
def chromium() -> str:
    """The program of a browser."""
    try:
        return find_program("chromium", remedy=REMEDY)
    except MissingComponent as error:
        pytest.skip(str(error))


@pytest.mark.browser
def test_a_real_browser_shows_the_figures_and_asks_for_nothing(chromium, tmp_path):
    path = tmp_path / "a b.html"
    path.write_text(render_page(TOLD), encoding="utf-8")
    with net() as server:
        seen = Page(browse(path.as_uri(), server, tmp_path, picture=tmp_path / "light.png"))
        assert server.asked == []
    assert tuple(seen.ids("figure")) == FIGURES
    assert [found["role"] for name, found in seen.elements if name == "svg"] == ["img"] * len(FIGURES)
    assert "script" not in {name for name, _ in seen.elements}
    assert painted(tmp_path / "light.png", (255, 255, 255)) > 10_000 < painted(tmp_path / "light.png", (0, 114, 178))


@pytest.mark.browser
def test_it_is_dark_where_the_reader_wants_it_dark_and_served_it_asks_for_itself_alone(chromium, tmp_path):
    with net() as server:
        server.pages = {"http://farm.test/report.html": render_page(TOLD)}
        browse("http://farm.test/report.html", server, tmp_path, DARK, picture=tmp_path / "dark.png")
        assert server.asked == ["http://farm.test/report.html"]  # not even an icon
    assert painted(tmp_path / "dark.png", (18, 22, 27)) > 10_000 < painted(tmp_path / "dark.png", (86, 180, 233))


@pytest.mark.browser
def test_the_policy_keeps_a_page_that_was_tampered_with_from_asking_anyone(chromium, tmp_path):
    leak = '<img src="http://leak.test/a"><script src="http://leak.test/b"></script></body>'
    tampered = render_page(TOLD).replace("</body>", leak)
    with net() as server:
        (tmp_path / "kept.html").write_text(tampered)
        browse((tmp_path / "kept.html").as_uri(), server, tmp_path)
        assert server.asked == []
        (tmp_path / "open.html").write_text(tampered.replace("Content-Security-Policy", "X-Nothing"))
        browse((tmp_path / "open.html").as_uri(), server, tmp_path)
        assert {"http://leak.test/a", "http://leak.test/b"} <= set(server.asked)  # so the net would have seen it


def painted(picture: Path, colour: tuple[int, int, int]) -> int:
    """How many pixels of a picture have a colour."""
    imread = pytest.importorskip("matplotlib.image").imread
    pixels = (imread(picture)[..., :3] * 255).round().astype(int)
    return int((pixels == colour).all(axis=-1).sum())
