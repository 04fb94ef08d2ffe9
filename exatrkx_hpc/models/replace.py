"""Replace a folder as a whole: a reader sees the old one or the new one, never a mixture."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.base.errors import OutputError


@contextlib.contextmanager
def folder_aside(out: Path) -> Iterator[Path]:
    """Give an empty folder beside `out`, on the same disk; at the end it goes with what is left in it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """Give the path of a new folder beside `out`, which the block makes; it takes the place of `out` at the end.

    When the block fails, `out` stays as it was. Raises OutputError when something cannot be written.
    """
    try:
        with folder_aside(out) as aside:
            fresh = aside / "new"
            yield fresh
            _swap(fresh, out, aside / "old")
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {_reason(error)}; check permissions and free space, or choose another folder"
        ) from error


def _swap(fresh: Path, out: Path, old: Path) -> None:
    """Put `fresh` in the place of `out`; on failure the old folder is back where it was."""
    fresh.chmod(0o755)  # Triton may run as another user than the one who builds.
    if not out.exists():
        fresh.rename(out)
        return
    out.rename(old)
    try:
        fresh.rename(out)
    except OSError:
        old.rename(out)
        raise


def _reason(error: OSError) -> str:
    """Return what the system said, in one line; copytree collects what it said of each file."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][0][-1])
    return error.strerror or str(error)
