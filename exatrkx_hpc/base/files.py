"""Files that are whole or absent, written aside and then renamed; and where a folder is."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.base.readable import size

#: A disk with less than this free is as good as full: what did not fit is gone again.
_AS_GOOD_AS_NOTHING = 1 << 20
#: How the text file begins that Git LFS leaves in a clone in the place of the content.
_LFS_POINTER = b"version https://git-lfs.github.com/spec/v1"
#: What to say of such a file.
LFS_REMEDY = "fetch its content with 'git lfs pull'"
#: File systems that live in one machine's memory or in one container.
_OF_ONE_MACHINE = {"tmpfs", "ramfs", "devtmpfs", "overlay", "aufs", "squashfs", "rootfs"}
_MOUNTS = Path("/proc/self/mountinfo")
#: Every machine has its own of these, whatever file system they are on.
_OWN_FOLDERS = (Path("/tmp"), Path("/var/tmp"))


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
    except BaseException as error:
        Path(aside).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
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


def full_disk(error: BaseException, *places: Path) -> str:
    """Return which disk is full and how large it is, where that is what `error` or its cause says; nothing otherwise.

    A write that fails does not always say of which file: then it is looked for at the paths that the error's text
    names, at `places`, and in the folders for temporary files and of this process.
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
    """Return what is left on the disk of a folder, in words, and whether it is as good as nothing."""
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    disk = os.statvfs(existing)
    if disk.f_files and not disk.f_favail:
        return f"the disk of {existing} takes no more files ({disk.f_files:,} are there)", True
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
    # shutil's collection of errors, SQLite and libraries in C have words alone.
    return re.search(r"No space left on device|database or disk is full", str(error)) is not None


def odd_characters(path: Path) -> str:
    """Return the characters of `path` that a shell reads as more than text, in their order, or nothing.

    Triton's Python backend (2.51) starts a model by a command line that it does not quote.
    """
    return "".join(dict.fromkeys(re.findall(r"[^\w@%+=:,./-]", str(path))))


def local_file_system(path: Path) -> str | None:
    """Return the type of the file system of `path` if no other machine can see it, such as tmpfs; else None.

    `path` need not exist yet. A folder of such a file system that somebody mounted again in another place counts
    as arranged for. None is no proof: a disk may be exported to the nodes, or not.
    """
    resolved = path.resolve()
    found, longest = None, -1
    for line in _MOUNTS.read_text().splitlines():  # a later mount covers an earlier one in the same place
        fields, _, rest = line.partition(" - ")
        root, place = (_unescaped(field) for field in fields.split()[3:5])
        if len(place) >= longest and resolved.is_relative_to(place):
            kind = rest.split()[0]
            found, longest = kind if kind in _OF_ONE_MACHINE and root == "/" else None, len(place)
    return found


def of_this_machine(path: Path) -> str:
    """Return why no other machine sees `path`, which need not exist yet, or nothing when nothing speaks against it."""
    if (kind := local_file_system(path)) is not None:
        return f"is on {kind}, which the nodes do not share with this machine"
    existing = next(one for one in (path, *path.parents) if one.exists()).resolve()
    for own in _OWN_FOLDERS:
        # A folder that somebody mounted below it is another matter.
        if existing.is_relative_to(own) and existing.stat().st_dev == own.stat().st_dev:
            return f"is below {own}, of which every machine has its own"
    return ""


def _unescaped(field: str) -> str:
    r"""Return a field of mountinfo, in which a blank is \040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
