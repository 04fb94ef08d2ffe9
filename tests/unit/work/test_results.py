"""The folder of a run's results."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exatrkx_hpc.base.errors import EndpointError
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


def test_a_run_that_is_refused_leaves_no_folder_behind(tmp_path):
    results = Results(tmp_path / "new" / "out")
    with pytest.raises(EndpointError), results.owned():
        raise EndpointError("nothing answers")
    assert list(tmp_path.iterdir()) == []
    with results.owned():
        results.ledger.write_text("something")
    assert (tmp_path / "new" / "out" / "ledger.sqlite").exists()
    (tmp_path / "mine").mkdir()
    with pytest.raises(EndpointError), Results(tmp_path / "mine").owned():
        raise EndpointError("nothing answers")
    assert (tmp_path / "mine").is_dir(), "a folder that was there before stays"
