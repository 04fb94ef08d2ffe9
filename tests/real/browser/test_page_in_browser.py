"""The page of a run in a real browser: what it shows, and that it asks nobody for anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import DARK, REMEDY, browse, net
from told_history import FIGURES, TOLD, Page

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.base.process import find_program
from exatrkx_hpc.page.page import render_page


@pytest.fixture(scope="module")
def chromium() -> str:
    """The program of a browser."""
    try:
        return find_program("chromium", remedy=REMEDY)
    except MissingComponent as error:
        pytest.skip(str(error))


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


def test_it_is_dark_where_the_reader_wants_it_dark_and_served_it_asks_for_itself_alone(chromium, tmp_path):
    with net() as server:
        server.pages = {"http://farm.test/report.html": render_page(TOLD)}
        browse("http://farm.test/report.html", server, tmp_path, DARK, picture=tmp_path / "dark.png")
        assert server.asked == ["http://farm.test/report.html"]  # not even an icon
    assert painted(tmp_path / "dark.png", (18, 22, 27)) > 10_000 < painted(tmp_path / "dark.png", (86, 180, 233))


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
