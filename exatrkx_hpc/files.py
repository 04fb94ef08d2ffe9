"""Files that are whole or absent: written aside, then renamed."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

#: How the text file begins that Git LFS leaves in a clone in the place of the content.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
#: What to say of such a file.
LFS_REMEDY = "fetch its content with 'git lfs pull'"


def is_lfs_pointer(path: Path) -> bool:
    """Say whether `path` is what Git LFS leaves in the place of a file whose content was not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Raises OSError (disk full, no permission) and then leaves neither a part nor the file aside behind.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(aside).chmod(mode)
        Path(aside).replace(path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def write_new(path: Path, content: str) -> None:
    """Write a file that must not be there yet, whole; raises FileExistsError when it is, else as write_whole."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(aside).chmod(0o644)
        os.link(aside, path)  # unlike a rename, a link never replaces a file
    finally:
        Path(aside).unlink(missing_ok=True)


def odd_characters(path: Path) -> str:
    """Return the characters of `path` that a shell reads as more than text, in their order, or nothing.

    Triton's Python backend (2.51) starts a model by a command line that it does not quote.
    """
    return "".join(dict.fromkeys(re.findall(r"[^\w@%+=:,./-]", str(path))))
