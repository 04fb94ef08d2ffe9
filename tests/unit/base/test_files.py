"""Files are whole or absent, whatever happens while they are written."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
from command import exatrkx_hpc
from runs import tiny_disk

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.base.files import full_disk, write_new, write_whole
from exatrkx_hpc.base.process import run

WRITERS = [write_whole, write_new]


def everything(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("write", WRITERS)
def test_the_text_is_there_as_utf8_and_nothing_else_is(write, tmp_path):
    write(tmp_path / "é.txt", "Ω\n")
    assert everything(tmp_path) == {"é.txt": "Ω\n".encode()}


def test_whole_takes_bytes_and_a_mode_whatever_the_umask_is(tmp_path):
    before = os.umask(0o077)
    try:
        write_whole(tmp_path / "a", b"\0\xff")
        write_whole(tmp_path / "b", "x", mode=0o700)
    finally:
        os.umask(before)
    assert (tmp_path / "a").read_bytes() == b"\0\xff"
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o644, 0o700]


def test_whole_replaces_and_a_reader_keeps_what_it_opened(tmp_path):
    path = tmp_path / "a"
    write_whole(path, "old")
    with path.open() as reader:
        write_whole(path, "new")
        assert reader.read() == "old"
    assert path.read_text() == "new"


def test_new_never_replaces_a_file_or_a_link(tmp_path):
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").symlink_to("nowhere")
    for name in "ab":
        with pytest.raises(FileExistsError):
            write_new(tmp_path / name, "new")
    assert (tmp_path / "a").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


#: Writes in a process of its own whose files cannot grow over 1000 bytes: a stand-in for a full disk. The
#: limit would hold for the test's own output, too.
_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from exatrkx_hpc.base import files

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    getattr(files, sys.argv[1])(Path(sys.argv[2]), "x" * 1001)
except OSError as error:
    print(error.strerror)
"""


def write_on_a_full_disk(write, path: Path) -> str:
    return run([sys.executable, "-c", _FULL_DISK, write.__name__, str(path)]).stdout


@pytest.mark.parametrize("write", WRITERS)
def test_a_disk_that_fills_up_leaves_nothing(write, tmp_path):
    assert write_on_a_full_disk(write, tmp_path / "a") == "File too large\n"
    assert everything(tmp_path) == {}


def test_a_disk_that_fills_up_leaves_the_old_file(tmp_path):
    write_whole(tmp_path / "a", "old")
    assert write_on_a_full_disk(write_whole, tmp_path / "a") == "File too large\n"
    assert everything(tmp_path) == {"a": b"old"}


@pytest.mark.parametrize("write", WRITERS)
def test_a_folder_that_is_not_there_is_an_error(write, tmp_path):
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "a", "x")


def test_a_target_that_cannot_be_replaced_leaves_nothing_aside(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "a", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_text_that_is_no_utf8_leaves_nothing(tmp_path):
    for write in WRITERS:
        with pytest.raises(UnicodeEncodeError):
            write(tmp_path / "a", "\udcff")
    assert everything(tmp_path) == {}


@pytest.mark.slow
def test_many_writers_at_once_leave_one_whole_file(tmp_path):
    code = (
        "import sys; from pathlib import Path; from exatrkx_hpc.base.files import write_whole\n"
        "for n in range(200): write_whole(Path(sys.argv[1]), sys.argv[2] * 5000)"
    )
    script = f'for letter in a b c; do "{sys.executable}" -c "$1" "$2" $letter & done; wait'
    done = run(["bash", "-c", script, "bash", code, str(tmp_path / "a")])
    assert (done.returncode, done.stderr) == (0, "")
    text = (tmp_path / "a").read_text()
    assert len(text) == 5000 and len(set(text)) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


@pytest.mark.parametrize(
    "words",
    [
        ["events", "generate", "--events", "40", "--out", "disk/events"],
        ["models", "build", "--device", "cpu", "--out", "disk/models"],
        ["setup", "--site", "local", "--run-root", "disk/runs"],
        ["demo", "--folder", "disk/demo"],
    ],
    ids=lambda words: words[0],
)
def test_a_full_disk_is_named_with_its_size(tmp_path, words):
    with tiny_disk(tmp_path / "disk", "64k"):
        done = exatrkx_hpc(*words, cwd=tmp_path)
        assert done.returncode == 8, done.complaint
        *_, line = done.stderr.splitlines()
        assert line.startswith("exatrkx-hpc: ") and "No space left on device" in line and "Errno" not in line
        assert re.search(r"; the disk of \S*disk\S* has [0-9.]+ (B|KiB) free of 64 KiB$", line), line


def test_the_disk_is_found_whatever_the_error_says(tmp_path):
    bare = OSError(errno.ENOSPC, "No space left on device")
    with tiny_disk(tmp_path / "disk", "64k,nr_inodes=6") as disk:
        (disk / "fill").write_bytes(b"x" * 60000)
        assert full_disk(bare, disk).startswith(f"the disk of {disk} has ")
        assert full_disk(OutputError(f"cannot write {disk}/new/x: no room")) == ""
        told = OutputError(f"cannot write {disk}/new/x: no room")
        told.__cause__ = bare
        assert full_disk(told).startswith(f"the disk of {disk} has ")
        assert full_disk(sqlite3.OperationalError("database or disk is full"), disk / "new").startswith("the disk of ")
        assert full_disk(shutil.Error([("a", f"{disk}/b", "[Errno 28] No space left on device")])).endswith("64 KiB")
        (disk / "fill").unlink()
        for number in range(5):
            (disk / str(number)).touch()
        assert full_disk(bare, disk) == f"the disk of {disk} has no free inodes (6 in use)"
        with pytest.raises(OSError, match="No space left") as caught:
            write_whole(disk / "whole", "x")
        assert full_disk(caught.value).startswith(f"the disk of {disk} has no")
    assert "quota" in full_disk(OSError(errno.EDQUOT, "Disk quota exceeded"))
    assert full_disk(ValueError("/x")) == ""


def test_a_file_that_cannot_be_written_is_named(tmp_path):
    with tiny_disk(tmp_path / "disk", "64k") as disk, pytest.raises(OSError, match="No space left") as caught:
        write_whole(disk / "large", b"x" * 200_000)
    assert caught.value.filename == str(disk / "large")
