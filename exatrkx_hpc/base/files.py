"""Atomic file writes (write aside, then rename), free space, and file systems."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.base.readable import size

#: A disk with fewer free bytes counts as full: removing the partial file may have freed some space again.
_AS_GOOD_AS_NOTHING = 1 << 20
#: The first bytes of a Git LFS pointer, the text file that a clone has in place of the content.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
#: The remedy for such a file.
LFS_REMEDY = "fetch its content with 'git lfs pull'"


def is_lfs_pointer(path: Path) -> bool:
    """Return whether `path` is a Git LFS pointer, whose content was not fetched."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS_POINTER)) == _LFS_POINTER
    except OSError:
        return False


def write_whole(path: Path, content: str | bytes, *, mode: int = 0o644) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Raises OSError (disk full, no permission); `path` is then unchanged, and no temporary file is left.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(aside).chmod(mode)
        Path(aside).replace(path)
    except BaseException as error:
        Path(aside).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def write_new(path: Path, content: str) -> None:
    """Write a new file atomically; raises FileExistsError if it exists, OSError if it cannot be written."""
    handle, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
        Path(aside).chmod(0o644)
        os.link(aside, path)  # unlike a rename, a link never replaces a file
    finally:
        Path(aside).unlink(missing_ok=True)


def full_disk(error: BaseException, *places: Path) -> str:
    """Return which disk is full and its size if `error` or one of its causes reports a full disk, else ''.

    A failed write does not always name its file. Candidates are the paths in the error texts, `places`, the folder
    for temporary files and the current folder.
    """
    full = next((one for one in _causes(error) if _says_full(one)), None)
    if full is None:
        return ""
    if isinstance(full, OSError) and full.errno == errno.EDQUOT:
        return "the quota there is used up; 'quota -s' shows it on most systems"
    named = [full.filename] if isinstance(full, OSError) and full.filename else []
    named += [word for one in _causes(error) for word in re.findall(r"[^\s:;,'\"()]*/[^\s:;,'\"()]+", str(one))]
    disks = [_disk(folder) for folder in (*map(Path, named), *places, Path(tempfile.gettempdir()), Path.cwd())]
    return next((line for line, is_full in disks if is_full), disks[0][0] if named else "")


def _disk(folder: Path) -> tuple[str, bool]:
    """Return the free space on the disk of a folder, as text, and whether the disk counts as full."""
    existing = next(one for one in (folder, *folder.absolute().parents) if os.path.exists(one))  # noqa: PTH110 - Path.exists raises for a long name
    disk = os.statvfs(existing)
    if disk.f_files and not disk.f_favail:
        return f"the disk of {existing} has no free inodes ({disk.f_files:,} in use)", True
    free = disk.f_bavail * disk.f_frsize
    line = f"the disk of {existing} has {size(free)} free of {size(disk.f_blocks * disk.f_frsize)}"
    return line, free < _AS_GOOD_AS_NOTHING


def _causes(error: BaseException) -> Iterator[BaseException]:
    found: BaseException | None = error
    while found is not None:
        yield found
        found = found.__cause__ or found.__context__


def _says_full(error: BaseException) -> bool:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    # Errors of shutil, SQLite and C libraries have only text.
    return re.search(r"No space left on device|database or disk is full", str(error)) is not None


def odd_characters(path: Path) -> str:
    """Return the characters of `path` that a shell may interpret, each once and in order; '' if there are none.

    Triton's Python backend (2.51) starts a model with a command line that it does not quote.
    """
    return "".join(dict.fromkeys(re.findall(r"[^\w@%+=:,./-]", str(path))))
