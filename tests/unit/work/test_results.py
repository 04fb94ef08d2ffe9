"""The folder of a run's results, and a result in it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest

from exatrkx_hpc.base.errors import EndpointError, OutputError
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.write import write_result
from exatrkx_hpc.work.workloads.exatrkx import LABELS, WORKLOAD


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


def test_a_result_is_written_whole_and_told_by_size_and_digest(tmp_path):
    outputs = {LABELS: np.array([3, 1, 2], dtype=np.int64)}
    told = write_result(WORKLOAD, tmp_path / "e.csv", outputs, remedy="make room")
    data = (tmp_path / "e.csv").read_bytes()
    assert data == b"3\n1\n2\n"
    assert told == (len(data), hashlib.sha256(data).hexdigest())


def test_a_result_that_cannot_be_written_is_an_error_of_one_line(tmp_path):
    place = tmp_path / "nowhere" / "e.csv"
    with pytest.raises(OutputError) as refused:
        write_result(WORKLOAD, place, {LABELS: np.zeros(1, dtype=np.int64)}, remedy="make room")
    assert str(refused.value) == f"cannot write {place}: No such file or directory; make room"


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
