from __future__ import annotations

import gzip
import os

import numpy as np
import pytest
from runs import labels_text, read_labels

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import find_events


def test_events_are_the_csv_files_of_the_folder_in_natural_order(tmp_path):
    for name in ("evt_10.csv", "evt_2.csv", "evt_1.csv", "b.csv", "7.csv", "notes.txt", ".evt_3.csv.x", ".h.csv"):
        (tmp_path / name).write_text("")
    (tmp_path / "truth").mkdir()
    (tmp_path / "truth" / "evt_1.csv").write_text("")
    (tmp_path / "folder.csv").mkdir()
    events = find_events(tmp_path)
    assert [event.name for event in events] == ["7", "b", "evt_1", "evt_2", "evt_10", "folder"], (
        "a folder fails when it is read"
    )
    assert events[3].path == tmp_path / "evt_2.csv"


def test_a_folder_without_events_says_how_to_make_some(tmp_path):
    (tmp_path / "truth").mkdir()
    with pytest.raises(InputError, match=r"no events \(\*\.csv, .* in .*; generate some with 'exatrkx-hpc"):
        find_events(tmp_path)


def test_a_folder_of_packed_events_says_so(tmp_path):
    (tmp_path / "evt_0.csv.gz").write_bytes(gzip.compress(b"1,2,3\n", mtime=0))
    with pytest.raises(InputError, match=r"no events .*, but evt_0\.csv\.gz; unpack such files"):
        find_events(tmp_path)


def test_a_missing_folder_and_a_file_in_its_place(tmp_path):
    with pytest.raises(InputError, match=r"folder .*nowhere does not exist"):
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
    np.savetxt(path, np.ones((number, 3)), delimiter=",", footer="" if number else "\n", comments="")
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
        ("1;2;3", "1 column, not 3 (the values are separated by semicolons, not by commas)"),
        ("1\t2\t3", "1 column, not 3 (the values are separated by tabs, not by commas)"),
        ("1 2  3", "1 column, not 3 (the values are separated by spaces, not by commas)"),
        ("1|2|3", "1 column, not 3 (the values are separated by vertical bars, not by commas)"),
        ("1;2", "1 column, not 3 (the values are separated by semicolons, not by commas)"),
        ("0,03;0,5;-0,2", "4 columns, not 3 (the values are separated by semicolons, not by commas, and '0,03' has a"),
        ("0,03\t0,5\t-0,2", "4 columns, not 3 (the values are separated by tabs, not by commas, and '0,03' has a dec"),
        ("0,03 0,5 -0,2", "4 columns, not 3 (the values are separated by spaces, not by commas, and '0,03' has a de"),
        ("0,03,0,5,-0,2", "6 columns, not 3 (are these decimal commas?)"),
        ("1,2,3,", "4 columns, not 3 (there is a comma at the end)"),
        ("1,2,", "'' is not a number"),
        (",1,2", "'' is not a number"),
        ("0.0_3,2,3", "'0.0_3' is not a number"),
        ("1,1_000,3", "'1_000' is not a number"),
        ("\uff10.03,0.5,0", "'\uff10.03' is not a number"),
        ("\u0661,2,3", "'\u0661' is not a number"),
        ("1,2,\u22123", "'\u22123' is not a number"),
        ("\ufeff1,2,3", "'\\ufeff1' is not a number"),
        ("0x1p3,2,3", "'0x1p3' is not a number"),
        ("1,2,1e400", "1e400 is not finite"),
        ("1,2,-1e400", "-1e400 is not finite"),
        ("1e,2,3", "'1e' is not a number"),
        ("1d3,2,3", "'1d3' is not a number"),
        (".,2,3", "'.' is not a number"),
        ("+-1,2,3", "'+-1' is not a number"),
        ("1 2,2,3", "'1 2' is not a number"),
        ("(1),2,3", "'(1)' is not a number"),
        ("1+0j,2,3", "'1+0j' is not a number"),
        ("True,2,3", "'True' is not a number"),
        ('"1","2","3"', "'\"1\"' is not a number: remove the quotes"),
        ("1,2,3\0", "a NUL character"),
        ("r,phi,z", "'r' is not a number"),
    ],
)
def test_a_bad_line_is_named(tmp_path, second_line, fault):
    path = tmp_path / "evt.csv"
    path.write_text(f"1,2,3\n{second_line}\n4,5,6\n", encoding="utf-8")
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
    with pytest.raises(InputError, match=r"cannot read .*: Is a directory"):
        read_hits(tmp_path)


@pytest.mark.parametrize(
    "data",
    [
        b"0.5,-1e-3,2\n1,2,3",
        b"\xef\xbb\xbf0.5,-1e-3,2\n1,2,3\n",
        b"0.5,-1e-3,2\r\n1,2,3\r\n",
        b"0.5,-1e-3,2\r1,2,3\r",
        b"0.5,-1e-3,2\n1,2,3\n\n",
        b"0.5,-1e-3,2\r\n1,2,3\r\n\r\n \t\r\n",
        b" .5 ,\t-1e-3, 2.\n+1,2.0E0,3e+00\n",
    ],
)
def test_what_is_harmless_is_passed_over(tmp_path, data):
    (tmp_path / "evt.csv").write_bytes(data)
    np.testing.assert_array_equal(read_hits(tmp_path / "evt.csv"), np.float32([[0.5, -1e-3, 2], [1, 2, 3]]))


@pytest.mark.parametrize("data", [b"\xef\xbb\xbf", b"\n", b"\r\n\r\n", b"  "])
def test_a_file_without_a_hit_is_an_event_without_hits(tmp_path, data):
    (tmp_path / "evt.csv").write_bytes(data)
    assert read_hits(tmp_path / "evt.csv").shape == (0, 3)


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        ("1,2,3\n".encode("utf-16"), "evt.csv is UTF-16 text; save it as UTF-8"),
        ("1,2,3\n".encode("utf-16-be"), "evt.csv:1: a NUL character, as in UTF-16 text"),
        (gzip.compress(b"1,2,3\n", mtime=0), "evt.csv is compressed by gzip; unpack it with gunzip"),
        (b"1,2,3\n4,5,6\n7,\xb58,9\n", "evt.csv:3: byte 0xb5 is not text in UTF-8"),
        (b"\x80", "evt.csv:1: byte 0x80 is not text in UTF-8"),
        (b"1,2,3\n" + b"\0" * 20, "evt.csv:2: a NUL character"),
    ],
)
def test_what_is_no_text_is_told(tmp_path, data, fault):
    (tmp_path / "evt.csv").write_bytes(data)
    with pytest.raises(InputError) as caught:
        read_hits(tmp_path / "evt.csv")
    assert fault in str(caught.value) and "\n" not in str(caught.value)


def test_labels_survive_their_file(tmp_path):
    labels = np.array([3, -1, 0, 2**40], dtype=np.int64)
    assert labels_text(labels) == "3\n-1\n0\n1099511627776\n"
    (tmp_path / "l.csv").write_text(labels_text(labels))
    np.testing.assert_array_equal(read_labels(tmp_path / "l.csv"), labels)
    assert labels_text(labels[:0]) == ""
    (tmp_path / "l.csv").write_text("")
    assert read_labels(tmp_path / "l.csv").shape == (0,)


BIG = 2**53 + 1


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        (f"{BIG}\n{BIG - 1}\n", np.array([BIG, BIG - 1])),
        (f"{2**63 - 1}\n{-(2**63)}\n-1\n", np.array([2**63 - 1, -(2**63), -1])),
        (f"{2**63}\n{2**64 - 1}\n0\n", np.array([2**63, 2**64 - 1, 0], dtype=np.uint64)),
        ("1.0\n1e3\n3.000e+00\n-1.\n", np.array([1, 1000, 3, -1])),
        (f"{2**53 - 1}.0\n", np.array([2**53 - 1])),
        ("\ufeff 1 \r\n+2\r\n\r\n", np.array([1, 2])),
        ("\n", np.array([], dtype=np.int64)),
    ],
)
def test_labels_of_any_program_are_exact(tmp_path, text, labels):
    (tmp_path / "l.csv").write_text(text, encoding="utf-8")
    read = read_labels(tmp_path / "l.csv")
    assert read.dtype == labels.dtype and read.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("2.5", "'2.5' is not an integer"),
        ("0.99999999999999999999", "'0.99999999999999999999' is not an integer"),
        (f"{2**53}.0", "is written as a float, which is not exact from 2^53 on"),
        ("9.007199254740993e15", "is written as a float"),
        ("1e9999", "is written as a float"),
        (str(2**64), "does not fit into 64 bits"),
        (str(-(2**63) - 1), "does not fit into 64 bits"),
        ("9" * 5000, "is longer than any number"),
        (str(2**63), "is negative, in a column with numbers of 2^63 and more"),
        ("nan", "'nan' is not an integer"),
        ("", "a blank line"),
        ("1_0", "'1_0' is not an integer"),
        ("\u0661", "'\u0661' is not an integer"),
        ("0x10", "'0x10' is not an integer"),
        ("1,2", "'1,2' is not an integer"),
        ("label", "'label' is not an integer"),
    ],
)
def test_a_label_that_is_not_exact_is_refused_with_its_line(tmp_path, line, fault):
    path = tmp_path / "l.csv"
    path.write_text(f"-1\n{line}\n3\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_labels(path)
    at = 1 if "negative" in fault else 2
    assert str(caught.value).startswith(f"{path}:{at}: ") and fault in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_reference_events_read_as_numpy_reads_them(reference_data):
    events = find_events(reference_data / "exatrkx" / "events")
    assert len(events) == 16 and events[1].name == "evt_1" and events[-1].name == "evt_88"
    for event in events[:4]:
        np.testing.assert_array_equal(read_hits(event.path), np.loadtxt(event.path, delimiter=",", dtype=np.float32))
