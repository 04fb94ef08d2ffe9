from __future__ import annotations

import io

import numpy as np
import pytest

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.source import find_events, read_event

HITS = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)


def npy(array, **options) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


def npz(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, **arrays)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.npy", npy(HITS)),
        ("a.npy", npy(np.asfortranarray(HITS))),
        ("a.npy", npy(HITS.astype(">f8"))),
        ("a.npz", npz(hits=HITS)),
        ("a.npz", npz(anything=HITS)),
        ("a.npz", npz(hits=HITS, particle=np.zeros(7))),
    ],
)
def test_hits_of_either_precision_and_order_are_read_bit_by_bit(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    (event,) = find_events(tmp_path)
    read = read_event(event.path)
    assert event.name == "a" and read.size == len(data) and read.tensors["hits"].dtype == np.float32
    assert (
        read.tensors["hits"].flags.c_contiguous
        and read.tensors["hits"].flags.aligned
        and np.array_equal(read.tensors["hits"], HITS)
    )


def test_an_event_of_no_hits(tmp_path):
    (tmp_path / "a.npy").write_bytes(npy(HITS[:0]))
    assert read_event(tmp_path / "a.npy").tensors["hits"].shape == (0, 3)


BAD = HITS.astype(np.float64)
BAD[4, 2] = 1e39


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("a.npy", b"", "is empty, 0 bytes; write it again"),
        ("a.npy", b"1,2,3\n", "is not a complete numpy file"),
        ("a.npy", npy(HITS)[:40], "is not a complete numpy file"),
        ("a.npy", npy(HITS)[:-1], "is truncated: "),
        ("a.npy", npy(HITS) + b"x", "is truncated: "),
        ("a.npy", npy(np.empty((3, 3), dtype=object), allow_pickle=True), "holds Python objects, which are never"),
        ("a.npy", npy(HITS[0]), r"holds float32 \[3\]; an event is one array"),
        ("a.npy", npy(HITS[:, :2]), r"holds float32 \[7, 2\]"),
        ("a.npy", npy(HITS.astype(np.int64)), r"holds int64 \[7, 3\]"),
        ("a.npy", npy(HITS.astype(np.float16)), r"holds float16 \[7, 3\]"),
        ("a.npy", npy(BAD), "hit 4 has 1e.39, which is not finite in single precision"),
        ("a.npy", npy(np.where(HITS[2, 1] == HITS, np.nan, HITS)), "hit 2 has nan"),
        ("a.npy", npy(HITS).replace(b"{'descr'", b"['descr'"), "is not a complete numpy file"),
        ("a.npy", npy(HITS).replace(b"False,", b"(((((("), "is not a complete numpy file"),
        ("a.npy", npy(HITS).replace(b"'<f4'", b"'<c8'"), r"holds complex64 \[7, 3\]"),
        ("a.npy", npy(HITS).replace(b"'<f4'", b"b'f4'"), "is not a complete numpy file|holds"),
        ("a.npy", npy(HITS).replace(b"(7, 3), }", b"(-7, 3),}"), "is truncated: "),
        ("a.npy", npy(HITS.astype("M8[s]")), r"holds datetime64\[s\] \[7, 3\]"),
        ("a.npy", npy(HITS > 0), r"holds bool \[7, 3\]"),
        ("a.npy", npy(HITS.astype("U9")), r"holds <U9 \[7, 3\]"),
        ("a.npz", b"PK", r"cannot be read as an \.npz file \(BadZipFile: "),
        ("a.npz", npz(hits=HITS)[:-30], r"cannot be read as an \.npz file"),
        ("a.npz", npz(hits=HITS)[:90] + b"\0\0\0\0" + npz(hits=HITS)[94:], r"cannot be read as an \.npz file"),
        ("a.npz", npz(a=HITS, b=HITS), r"has no array hits among several \(it has: a, b\)"),
        ("a.npz", npz(), r"has no array hits among several \(it has: none\)"),
        ("a.npz", npz(hits=HITS[0]), r"a\.npz/hits\.npy holds float32 \[3\]"),
    ],
)
def test_what_is_no_event_is_refused_in_one_line(tmp_path, name, data, fault):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=fault) as caught:
        read_event(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_header_that_promises_too_much_costs_no_memory(tmp_path):
    data = npy(HITS).replace(b"(7, 3), }", b"(7" + b"0" * 9 + b", 3)}", 1)
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(InputError, match=r"is truncated|not a complete"):
        read_event(tmp_path / "a.npy")


def test_an_archive_that_claims_to_unpack_to_more_than_any_event(tmp_path):
    data = npz(hits=np.zeros((50_000, 3), dtype=np.float32))
    size = (600_000 + 128).to_bytes(4, "little")
    directory = data.rindex(b"PK\x01\x02")
    assert data[directory + 24 : directory + 28] == size
    (tmp_path / "a.npz").write_bytes(data[: directory + 24] + (3 << 30).to_bytes(4, "little") + data[directory + 28 :])
    with pytest.raises(InputError, match=r"a\.npz unpacks to more than 1024 MB"):
        read_event(tmp_path / "a.npz")
