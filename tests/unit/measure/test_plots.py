"""Figures: written whole in each format, with labels, and every bar within its frame."""

from __future__ import annotations

from pathlib import Path

import pytest

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.measure.plots import Panel, save_panels

pytest.importorskip("matplotlib")
NAN = float("nan")
PANEL = Panel(
    title="efficiency",
    axis="pT of the particle [GeV]",
    edges=[0.5, 1.0, 2.0, 5.0],
    value=[0.9, NAN, 1.0],
    low=[0.8, NAN, 0.7],
    high=[0.95, NAN, 1.0],
    logarithmic=True,
    marked=(1.0, "counted above 1 GeV"),
)


def empty(title: str) -> Panel:
    return Panel(title=title, axis="η", edges=[-1.0, 0.0, 1.0], value=[NAN] * 2, low=[NAN] * 2, high=[NAN] * 2)


@pytest.mark.slow
@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")])
def test_each_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    path = tmp_path / "new" / f"x.{suffix}"
    save_panels(path, [PANEL, empty("fakes"), PANEL], heading="7 events")
    assert path.read_bytes().startswith(start)


@pytest.mark.slow
def test_the_same_figures_make_the_same_file(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        save_panels(tmp_path / name, [PANEL], heading="h")
    assert (tmp_path / "a.pdf").read_bytes() == (tmp_path / "b.pdf").read_bytes()


def test_the_words_are_there_and_an_empty_panel_says_so(tmp_path: Path) -> None:
    import matplotlib as mpl

    with mpl.rc_context({"svg.fonttype": "none"}):
        save_panels(tmp_path / "x.svg", [PANEL, empty("duplicate rate")], heading="7 events")
    text = (tmp_path / "x.svg").read_text()
    for words in ("7 events", "efficiency", "pT of the particle [GeV]", "counted above 1 GeV", "duplicate rate", "η"):
        assert words in text
    assert text.count("nothing to count") == 1


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="choose another folder"):
        save_panels(tmp_path / "file" / "x.png", [PANEL], heading="h")
