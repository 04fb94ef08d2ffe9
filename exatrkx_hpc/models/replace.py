"""Replace a folder as a whole: a reader never sees a mixture of the old and the new one."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.base.signals import deferred_signals


@contextlib.contextmanager
def folder_aside(out: Path) -> Iterator[Path]:
    """Yield an empty temporary folder beside `out`, on the same file system; remove it at the end."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield aside
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def replaced(out: Path) -> Iterator[Path]:
    """Yield a path beside `out` at which the block makes a new folder; the new folder replaces `out` at the end.

    If the block fails, `out` stays unchanged. Raises OutputError when something cannot be written.
    """
    try:
        with folder_aside(out) as aside:
            fresh = aside / "new"
            yield fresh
            swap(fresh, out, aside / "old")
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {_reason(error)}; check permissions and free space, or choose another folder"
        ) from error


def swap(fresh: Path, out: Path, old: Path) -> None:
    """Replace `out` by `fresh`, and move an old folder to `old`; on failure, restore it."""
    fresh.chmod(0o755)  # Triton may run as another user than the one who builds.
    if not out.exists():
        fresh.rename(out)
        return
    with deferred_signals():  # a stop between the two would lose the old folder
        out.rename(old)
        try:
            fresh.rename(out)
        except OSError:
            old.rename(out)
            raise


def _reason(error: OSError) -> str:
    """Return the system's message in one line; copytree collects one message per file, and the first is used."""
    if isinstance(error, shutil.Error) and error.args and error.args[0]:
        return str(error.args[0][0][-1])
    return error.strerror or str(error)
