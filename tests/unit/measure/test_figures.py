"""The figures of a scan: which there are, that they are the same each time, and that nothing overlaps."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from bench_rows import repeated, row, scan
from command import complaint, exatrkx_hpc

from exatrkx_hpc.base.errors import ConfigError, InputError
from exatrkx_hpc.measure.bench_table import Row, write_table
from exatrkx_hpc.measure.comparison import MOST, save_comparison
from exatrkx_hpc.measure.figure_file import Series, draw, new_figure
from exatrkx_hpc.measure.figures import make_figures, save_figures

pytestmark = pytest.mark.slow


if TYPE_CHECKING:
    from matplotlib.figure import Figure

pytest.importorskip("matplotlib")

ALL = ["latency_split", "scaling", "service_direct", "throughput_concurrency", "throughput_instances"]


def names(paths: list[Path]) -> list[str]:
    return sorted(path.stem for path in paths)


def test_a_scan_of_everything_gives_every_figure_with_its_labels_and_error_bars(tmp_path: Path):
    written = save_figures(scan(), tmp_path, formats=("svg",), title="a title")
    assert names(written) == ALL
    for path in written:
        text = path.read_text()
        comments = "".join(part.partition("-->")[0] for part in text.split("<!--")[1:])  # the letters are outlines
        assert "a title" in comments, path
        assert "means of 1 to 3 repetitions" in comments, path
        assert "standard deviation" in comments, path
    concurrency = (tmp_path / "throughput_concurrency.svg").read_text()
    assert "<!-- events per second -->" in concurrency
    assert "<!-- requests in flight -->" in concurrency
    latency = (tmp_path / "latency_split.svg").read_text()
    for part in ("queue", "input", "compute", "output", "network and client", "latency [ms]"):
        assert f"<!-- {part} -->" in latency, part


def test_figures_that_the_rows_are_not_enough_for_are_left_out(tmp_path: Path):
    one = save_figures([row()], tmp_path / "one", formats=("svg",))
    assert names(one) == ["latency_split", "throughput_concurrency", "throughput_instances"]
    assert "one repetition, no error bars" in (tmp_path / "one" / "latency_split.svg").read_text()
    two = save_figures([*repeated(9, 10), *repeated(17, 19, servers=2)], tmp_path / "two", formats=("svg",))
    assert names(two) == ["latency_split", "scaling", "throughput_concurrency", "throughput_instances"]
    assert save_figures([row(0, 2, 2, kind="direct")], tmp_path / "none") == []


def test_a_rate_of_zero_is_drawn(tmp_path: Path):
    rows = [replace(one, events_per_s=0.0) for one in repeated(9, 10)]
    rows += [*repeated(17, 19, servers=2), row(0, 2, 2, kind="direct")]
    assert "scaling" in names(save_figures(rows, tmp_path, formats=("svg",)))


@pytest.mark.parametrize(("suffix", "begin"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_the_same_figures_are_the_same_file(tmp_path: Path, suffix: str, begin: bytes):
    rows = repeated(9, 10, 11)
    one, other = (save_figures(rows, tmp_path / name, formats=(suffix,)) for name in "ab")
    for left, right in zip(one, other, strict=True):
        assert left.read_bytes().startswith(begin)
        assert left.read_bytes() == right.read_bytes()


@pytest.fixture(scope="module")
def drawn() -> dict[str, Figure]:
    figures = dict(make_figures(scan(), title="A title of some length above it all"))
    for figure in figures.values():
        figure.draw_without_rendering()
    return figures


@pytest.mark.parametrize("name", ALL)
def test_no_text_of_a_figure_overlaps_another_or_leaves_the_page(drawn: dict[str, Figure], name: str):
    figure = drawn[name]
    renderer = figure.canvas.get_renderer()
    panels = [axes for axes in figure.axes if axes.axison]
    texts = [figure._supxlabel, figure.legends[0]]
    texts += [text for axes in panels for text in (axes.title, axes.xaxis.label, axes.yaxis.label) if text.get_text()]
    boxes = [text.get_window_extent(renderer) for text in texts]
    boxes += [axes.get_window_extent(renderer) for axes in panels]
    page = figure.bbox
    for number, box in enumerate(boxes):
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1, number
        for other in boxes[number + 1 :]:
            assert not box.overlaps(other), (number, boxes)


@pytest.mark.parametrize("name", ALL)
def test_every_point_of_a_figure_lies_within_its_axes(drawn: dict[str, Figure], name: str):
    for axes in drawn[name].axes:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        points = [point for container in axes.containers if hasattr(container, "lines") for point in xy(container)]
        for x, y in points:
            assert left <= x <= right and bottom <= y <= top, (name, x, y)
    assert any(axes.containers for axes in drawn[name].axes)


def xy(container) -> list:
    line = container.lines[0]
    return list(zip(line.get_xdata(), line.get_ydata(), strict=True)) if line is not None else []


def test_points_of_the_same_place_are_drawn_apart():
    figure = new_figure(4.0, 3.0)
    axes = figure.subplots()
    draw(axes, [Series(x=[1, 2], y=[5, 5], spread=[0, 0], place=place) for place in (0, 1)])
    one, other = (container.lines[0].get_xdata() for container in axes.containers)
    assert all(left < right < left + 0.1 for left, right in zip(one, other, strict=True))


def comments_of(path: Path) -> list[str]:
    """The words of a figure: its letters are outlines, with the text as a comment."""
    return [part.partition("-->")[0].strip() for part in path.read_text().split("<!--")[1:]]


def points(**facts) -> list[Row]:
    return [one for n in (1, 2, 4) for one in repeated(9 * n, 10 * n, concurrency=n, **facts)]


@pytest.mark.parametrize(
    ("one", "other", "labels"),
    [
        ({}, {"model": "exatrkx_fused"}, ["exatrkx", "exatrkx_fused"]),
        ({"calls": "sync"}, {"calls": "async"}, ["sync", "async"]),
        ({"calls": ""}, {"calls": "async"}, ["default", "async"]),
        ({"calls": "sync"}, {"calls": "async", "model": "m"}, ["exatrkx, sync", "m, async"]),
        ({}, {}, ["a", "b"]),
        ({}, {"instances": 2}, ["a, 1x1", "b, 1x2"]),
    ],
)
def test_two_scans_are_lines_of_one_figure(tmp_path: Path, one: dict, other: dict, labels: list[str]):
    scans = {"a": points(**one), "b": points(**other)}
    (path,) = save_comparison(scans, tmp_path, formats=("svg",), title="a title")
    words = comments_of(path)
    assert path.stem == "comparison" and {"a title", *labels} <= set(words)
    assert {"events per second", "p95 latency [ms]", "requests in flight"} <= set(words)


def test_a_comparison_that_cannot_be_drawn_is_refused(tmp_path: Path):
    many = {str(n): points(instances=n) for n in range(1, MOST + 2)}
    with pytest.raises(ConfigError, match=f"{MOST + 1} lines are more than {MOST}"):
        save_comparison(many, tmp_path)
    with pytest.raises(InputError, match="b has no point with a server"):
        save_comparison({"a": points(), "b": [row(0, 2, 2, kind="direct")]}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_plot_compares_several_tables(tmp_path: Path):
    for name, calls in (("one", "sync"), ("two", "async")):
        (tmp_path / name).mkdir()
        write_table(tmp_path / name, points(calls=calls))
    done = exatrkx_hpc("plot", "one", "two/bench.csv", "--format", "svg,png", "-o", "out", cwd=tmp_path)
    assert done.stdout.splitlines() == ["out/comparison.svg", "out/comparison.png"], done.stderr
    assert {"sync", "async"} <= set(comments_of(tmp_path / "out/comparison.svg"))
    assert "three does not exist" in complaint(exatrkx_hpc("plot", "one", "three", cwd=tmp_path), 6)


def test_plot_writes_the_figures_of_a_table(tmp_path: Path):
    write_table(tmp_path, repeated(9, 10))
    done = exatrkx_hpc("plot", "bench.csv", "--format", "svg", "-o", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert names([Path(line) for line in done.stdout.splitlines()]) == names(list((tmp_path / "out").glob("*.svg")))
    assert len(list((tmp_path / "out").iterdir())) == 3
    wrong = exatrkx_hpc("plot", ".", "--format", "jpg", cwd=tmp_path)
    assert "--format jpg is unknown; use png, svg, pdf" in complaint(wrong, 2)
    assert "nowhere does not exist" in complaint(exatrkx_hpc("plot", "nowhere", cwd=tmp_path), 6)
