"""A folder is replaced as a whole, whatever happens between the two renames."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from exatrkx_hpc.models.replace import swap


def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a new folder and an old one, each with a file of its name."""
    for name in ("new", "out"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    return tmp_path / "new", tmp_path / "out"


def test_a_stop_between_the_renames_loses_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, out = folders(tmp_path)
    rename = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        moved = rename(self, target)
        if self == out:
            os.kill(os.getpid(), signal.SIGINT)
        return moved

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swap(new, out, tmp_path / "old")
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "old").iterdir()] == ["out"]


def test_a_folder_that_cannot_be_moved_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    new, out = folders(tmp_path)
    rename = Path.rename

    def refused(self: Path, target: Path) -> Path:
        if self == new:
            raise OSError(28, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="No space left"):
        swap(new, out, tmp_path / "old")
    assert [path.name for path in out.iterdir()] == ["out"] and new.exists()
