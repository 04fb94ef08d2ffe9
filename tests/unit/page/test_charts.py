from __future__ import annotations

import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from exatrkx_hpc.page.charts import Chart, distribution, rate_over_time, shares
from exatrkx_hpc.page.svg import element, linear, logarithmic

CHART = Chart(name="it", title="A <title> & more", description='Says "so"')
HOSTILE = "</svg><script>alert(1)</script>&\"'"


def parsed(svg: str) -> ET.Element:
    """The drawing; anything that is not well-formed raises."""
    return ET.fromstring(svg)


def of_class(svg: str, name: str) -> list[ET.Element]:
    return [one for one in parsed(svg).iter() if name in one.get("class", "").split()]


def words(svg: str) -> list[str]:
    return ["".join(one.itertext()) for one in parsed(svg).iter("text")]


def test_attributes_and_words_are_escaped():
    drawn = element("rect", class_="a b", stroke_width=1.5, x=2.0, note=HOSTILE)
    assert drawn.startswith('<rect class="a b" stroke-width="1.5" x="2" note="')
    assert ET.fromstring(drawn).get("note") == HOSTILE
    assert parsed(shares(CHART, {HOSTILE: 1}, unit="s", total="t")).find(".//script") is None


def test_a_linear_scale_has_few_round_ticks():
    scale = linear(219, start=0, end=100, fit=True)
    assert scale.ticks == (0, 50, 100, 150, 200, 250) and scale.high == 250 and scale(125) == 50
    assert linear(84, start=0, end=84, most=8).ticks == (0, 20, 40, 60, 80)
    assert linear(2, start=0, end=1, most=5, whole=True).ticks == (0, 1, 2)
    assert linear(0, start=0, end=1).ticks[-1] <= 1  # nothing happened; still an axis
    assert scale(-5) == 0 and scale(1e9) == 100


def test_a_logarithmic_scale_has_ticks_inside_and_enough_of_them():
    scale = logarithmic(40, 2500, start=0, end=100)
    assert scale.ticks == (50, 100, 200, 500, 1000, 2000)
    assert scale((40 * 2500) ** 0.5) == pytest.approx(50)
    assert logarithmic(130, 810, start=0, end=1).ticks == (200, 400, 600, 800)
    assert logarithmic(101, 103.5, start=0, end=1).ticks == pytest.approx([101, 101.5, 102, 102.5, 103, 103.5])
    assert logarithmic(5, 5, start=3, end=9)(5) == 3
    assert logarithmic(0.1, 1e6, start=0, end=1).ticks == pytest.approx([10.0**n for n in range(-1, 7)])


def test_each_chart_says_what_it_is_to_who_cannot_see_it():
    drawn = parsed(shares(CHART, {"a": 1}, unit="s", total="t"))
    assert drawn.get("role") == "img" and drawn.get("aria-labelledby") == "it-title it-text"
    told = {one.get("id"): one.text for one in drawn if one.get("id")}
    assert told == {"it-title": "A <title> & more", "it-text": 'Says "so"'}


def test_the_rate_is_where_it_belongs():
    drawn = rate_over_time(CHART, [10, 30], [0, 1, 2], unit="s", mean=20, begins=[1])
    (line,) = of_class(drawn, "line")
    points = [tuple(map(float, pair.split())) for pair in line.get("d").lstrip("M").split("L")]
    heights = [y for _, y in points]
    assert heights[0] == heights[1] > heights[2] == heights[3]
    floor = of_class(drawn, "axis")[0].get("y1")
    assert (float(floor) - heights[0]) * 3 == pytest.approx(float(floor) - heights[2], abs=0.2)
    assert "mean 20 events/s" in words(drawn) and "throughput [events/s]" in words(drawn)
    assert "running time [s]" in words(drawn)
    (begin,) = of_class(drawn, "faint")
    assert float(begin.get("x1")) == pytest.approx(points[1][0], abs=0.1)


def test_the_bars_of_a_distribution_are_as_high_as_their_counts():
    drawn = distribution(CHART, [4, 0, 2], [10, 20, 40, 80], unit="ms", marks={"p50": 18, "p95": 70, "p99": 79})
    high, low = of_class(drawn, "bar")
    assert float(high.get("height")) == pytest.approx(2 * float(low.get("height")))
    assert float(high.get("width")) == pytest.approx(float(low.get("width")), abs=0.1)  # equal on this axis
    said = [text for text in parsed(drawn).iter("text") if text.text.startswith("p")]
    assert [text.text for text in said] == ["p50 18 ms", "p95 70 ms", "p99 79 ms"]
    rows = [float(text.get("y")) for text in said]
    assert min(later - sooner for sooner, later in pairwise(rows)) >= 14  # none covers another
    assert [text.get("text-anchor") for text in said] == ["start", "end", "end"]  # none leaves the drawing


def test_one_time_alone_is_a_distribution():
    assert len(of_class(distribution(CHART, [1], [10, 10.1], unit="ms", marks={"p50": 10.05}), "bar")) == 1


def test_shares_are_of_the_sum_and_many_are_gathered():
    drawn = shares(CHART, {"gnn": 3, "embed": 1}, unit="s", total="all compute")
    assert "75.0 %, 3 s" in words(drawn) and "25.0 %, 1 s" in words(drawn) and "share of all compute" in words(drawn)
    wide, narrow = (float(bar.get("width")) for bar in of_class(drawn, "bar"))
    assert wide == pytest.approx(3 * narrow, abs=0.1)
    many = shares(CHART, {f"n{count}": 2 for count in range(100)}, unit="events", total="t", most=10)
    assert len(of_class(many, "bar")) == 10 and "91 others" in words(many) and "91.0 %, 182 events" in words(many)


def test_a_long_name_is_shortened_in_its_middle_and_whole_in_its_hint():
    name = "host-" + "x" * 60 + ":8001"
    drawn = shares(CHART, {name: 1}, unit="events", total="t")
    assert any("…" in said and said.endswith(":8001") for said in words(drawn))
    assert any(hint.text.startswith(name) for hint in parsed(drawn).iter("title") if hint.text)
