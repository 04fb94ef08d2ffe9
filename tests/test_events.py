from __future__ import annotations

import os

import numpy as np
import pytest

from exatrkx_hpc.errors import InputError
from exatrkx_hpc.work.events import find_events, labels_text, read_hits, read_labels


def test_events_are_the_csv_files_of_the_folder_in_natural_order(tmp_path):
    for name in ("evt_10.csv", "evt_2.csv", "evt_1.csv", "b.csv", "7.csv", "notes.txt", ".evt_3.csv.x", ".h.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "evt_1.csv").write_text("")
    (tmp_path / "folder.csv").mkdir()
    events = find_events(tmp_path)
    assert [event.name for event in events] == ["7", "b", "evt_1", "evt_2", "evt_10"]
    assert events[3].path == tmp_path / "evt_2.csv"


def test_a_folder_without_events_says_how_to_make_some(tmp_path):
    (tmp_path / "truth").mkdir()
    with pytest.raises(InputError, match=r"no events \(\*\.csv, .* in .*; 'exatrkx-hpc events generate'"):
        find_events(tmp_path)


def test_a_missing_folder_and_a_file_in_its_place(tmp_path):
    with pytest.raises(InputError, match=r"there is no folder .*nowhere"):
        find_events(tmp_path / "nowhere")
    (tmp_path / "x").write_text("")
    with pytest.raises(InputError, match=r"x is a file"):
        find_events(tmp_path / "x")


@pytest.fixture
def closed_folder(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    root = os.geteuid() == 0
    if root:  # root reads everything, so it becomes nobody for a while
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o700)


def test_an_unreadable_folder(closed_folder):
    with pytest.raises(InputError, match=r"cannot read the folder /.*closed: Permission denied"):
        find_events(closed_folder)


def test_hits_are_contiguous_single_precision(tmp_path):
    path = tmp_path / "evt.csv"
    path.write_text("0.5,-1e-3,2\n1,2,3\r\n 4 , 5,6")
    hits = read_hits(path)
    assert hits.dtype == np.float32 and hits.flags.c_contiguous and hits.flags.aligned
    np.testing.assert_array_equal(hits, np.array([[0.5, -1e-3, 2], [1, 2, 3], [4, 5, 6]], dtype=np.float32))


@pytest.mark.parametrize("number", [0, 1, 2])
def test_small_events_keep_two_dimensions(tmp_path, number):
    path = tmp_path / "evt.csv"
    np.savetxt(path, np.ones((number, 3)), delimiter=",")
    assert read_hits(path).shape == (number, 3)


@pytest.mark.parametrize(
    ("second_line", "fault"),
    [
        ("1,2", "2 columns, not 3"),
        ("1", "1 column, not 3"),
        ("1,2,3,4", "4 columns, not 3"),
        ("1,two,3", "'two' is not a number"),
        ("1,,3", "'' is not a number"),
        ("1,2,nan", "nan is not finite"),
        ("1,2,NaN", "NaN is not finite"),
        ("inf,2,3", "inf is not finite"),
        ("1,-Infinity,3", "-Infinity is not finite"),
        ("1,1e39,3", "1e39 is not finite"),
        ("", "a blank line"),
        ("   ", "a blank line"),
        ("# 1,2,3", "'# 1' is not a number"),
        ("1;2;3", "1 column, not 3"),
    ],
)
def test_a_bad_line_is_named(tmp_path, second_line, fault):
    path = tmp_path / "evt.csv"
    path.write_text(f"1,2,3\n{second_line}\n4,5,6\n")
    with pytest.raises(InputError) as caught:
        read_hits(path)
    assert str(caught.value).startswith(f"{path}:2: {fault}")
    assert "\n" not in str(caught.value)


def test_a_file_that_has_two_columns_throughout(tmp_path):
    path = tmp_path / "evt.csv"
    path.write_text("1,2\n3,4\n5,6\n")
    with pytest.raises(InputError, match=r"evt\.csv:1: 2 columns, not 3"):
        read_hits(path)


def test_a_header_a_binary_file_and_a_folder(tmp_path):
    path = tmp_path / "evt.csv"
    path.write_text("r,phi,z\n1,2,3\n")
    with pytest.raises(InputError, match=r":1: 'r' is not a number; .* without a header"):
        read_hits(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"is not text"):
        read_hits(path)
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_hits(tmp_path)


def test_labels_survive_their_file(tmp_path):
    labels = np.array([3, -1, 0, 2**40], dtype=np.int64)
    assert labels_text(labels) == "3\n-1\n0\n1099511627776\n"
    (tmp_path / "l.csv").write_text(labels_text(labels))
    np.testing.assert_array_equal(read_labels(tmp_path / "l.csv"), labels)
    assert labels_text(labels[:0]) == ""
    (tmp_path / "l.csv").write_text("")
    assert read_labels(tmp_path / "l.csv").shape == (0,)
    (tmp_path / "l.csv").write_text("1\n2.5\n")
    with pytest.raises(InputError, match="one integer a line"):
        read_labels(tmp_path / "l.csv")


def test_the_reference_events_read_as_numpy_reads_them(reference_data):
    events = find_events(reference_data / "exatrkx" / "events")
    assert len(events) == 16 and events[1].name == "evt_1" and events[-1].name == "evt_88"
    for event in events[:4]:
        np.testing.assert_array_equal(read_hits(event.path), np.loadtxt(event.path, delimiter=",", dtype=np.float32))
