"""The folder of a run's results."""

from __future__ import annotations

import os
from pathlib import Path

from exatrkx_hpc.work.results.layout import Results


def test_a_copy_of_the_lock_in_a_child_that_starts_keeps_nobody_out(tmp_path):
    """Between fork and exec a child of another thread has every descriptor, the lock's too."""
    with Results(tmp_path / "out").owned() as locked:
        assert locked
        lock = next(fd for fd in os.listdir("/proc/self/fd") if target(fd) == str(tmp_path / "out" / ".lock"))
        copy = os.dup(int(lock))
    try:
        with Results(tmp_path / "out").owned() as locked:
            assert locked
    finally:
        os.close(copy)


def target(fd: str) -> str:
    try:
        return str(Path("/proc/self/fd", fd).readlink())
    except OSError:
        return ""
