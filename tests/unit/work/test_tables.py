"""Tensors as CSV and back, and what is said of a table that is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exatrkx_hpc.base.errors import InputError, ModelError
from exatrkx_hpc.work.results.tables import numpy_type, read_tensor, tensor_text


def read(tmp_path: Path, text: str, datatype: str, shape: tuple[int, ...]) -> np.ndarray:
    path = tmp_path / "x.csv"
    path.write_text(text, encoding="utf-8")
    return read_tensor(path, datatype=datatype, shape=shape)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("FP16", [0.1, 65504, -1e-7]),
        ("FP32", [0.1, 3.4028235e38, -1e-45]),
        ("FP64", [0.1, 1e308, -5e-324]),
        ("INT8", [-128, 127, 0]),
        ("INT64", [-(2**63), 2**63 - 1, 0]),
        ("UINT64", [2**64 - 1, 0, 1]),
        ("UINT8", [255, 0, 1]),
        ("BOOL", [True, False, True]),
        ("BYTES", [b"plain", b'quoted, "so"', "µ".encode()]),
        ("BYTES", [b"", b" ", b"x"]),
    ],
)
def test_every_type_comes_back_as_it_was(tmp_path: Path, datatype: str, values: list[object]) -> None:
    tensor = np.array(values, dtype=numpy_type(datatype)).reshape(3, 1)
    again = read(tmp_path, tensor_text(tensor, datatype=datatype), datatype, (-1, 1))
    assert again.dtype == tensor.dtype and again.shape == tensor.shape
    assert again.tolist() == tensor.tolist()


@pytest.mark.parametrize(
    ("shape", "declared"),
    [((4, 3), (-1, 3)), ((2, 5), (2, -1)), ((4,), (-1,)), ((3, 2, 2), (-1, 2, 2)), ((3, 4, 2), (-1, -1, 2)),
     ((0, 3), (-1, 3)), ((2, 0), (2, -1)), ((0,), (-1,))],
)  # fmt: skip
def test_every_shape_comes_back_as_it_was(tmp_path: Path, shape: tuple[int, ...], declared: tuple[int, ...]) -> None:
    tensor = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    again = read(tmp_path, tensor_text(tensor, datatype="FP32"), "FP32", declared)
    np.testing.assert_array_equal(again, tensor)


def test_whole_numbers_may_be_written_as_numpy_writes_them(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "edges.csv", [[3, 5], [1, 2]], delimiter=",")
    assert "e+00" in (tmp_path / "edges.csv").read_text()
    tensor = read_tensor(tmp_path / "edges.csv", datatype="INT64", shape=(2, -1))
    assert tensor.dtype == np.int64 and tensor.tolist() == [[3, 5], [1, 2]]


def test_whole_numbers_of_64_bits_are_exact(tmp_path: Path) -> None:
    assert read(tmp_path, f"\ufeff{2**53 + 1}\n{-(2**63)}\n", "INT64", (-1,)).tolist() == [2**53 + 1, -(2**63)]
    assert read(tmp_path, f"{2**64 - 1}\n", "UINT64", (-1,)).tolist() == [2**64 - 1]


def test_nan_and_infinity_may_be_sent_to_see_what_a_model_does(tmp_path: Path) -> None:
    assert np.isnan(read(tmp_path, "nan,inf\n", "FP32", (-1, 2))[0, 0])


@pytest.mark.parametrize(
    ("text", "datatype", "shape", "says"),
    [
        ("1,2\n", "FP32", (-1, 3), "x.csv: 2 columns; the model expects 3, for [-1, 3]"),
        ("1,2,3\n", "FP32", (-1, -1, 2), "3 columns; the model expects a multiple of 2"),
        ("1,2\n3,4\n5,6\n", "INT64", (2, -1), "3 lines; the model expects 2, for [2, -1]"),
        ("1,2\n3\n", "FP32", (-1, 2), "x.csv:2: 1 columns, but 2 in the first line"),
        ("1,2\n3,x\n", "FP32", (-1, 2), "x.csv:2: 'x' is not a valid FP32"),
        ("1.5\n", "INT64", (-1,), "x.csv:1: '1.5' is not a valid INT64"),
        ("300\n", "UINT8", (-1,), "'300' is not a valid UINT8"),
        ("1e39\n", "FP32", (-1,), "'1e39' is not a valid FP32"),
        ("9007199254740993.0\n", "INT64", (-1,), "is not a valid INT64"),
        ("0.0_3\n", "FP32", (-1,), "x.csv:1: '0.0_3' is not a valid FP32"),
        ("1,2\n\uff11,2\n", "FP32", (-1, 2), "x.csv:2: '\uff11' is not a valid FP32"),
        ("1_0\n", "INT64", (-1,), "x.csv:1: '1_0' is not a valid INT64"),
        ("0.99999999999999999999\n", "INT64", (-1,), "is not a valid INT64"),
        ("18446744073709551616\n", "UINT64", (-1,), "is not a valid UINT64"),
        ("-1\n", "UINT64", (-1,), "is not a valid UINT64"),
        ("maybe\n", "BOOL", (-1,), "'maybe' is not a valid BOOL"),
        ("", "FP32", (1, 3), "x.csv is empty; the model expects [1, 3]"),
        ("1,2\n", "FP32", (-1, -1, -1), "several axes of free size"),
    ],
)
def test_a_table_that_does_not_fit(tmp_path: Path, text: str, datatype: str, shape: tuple[int, ...], says: str) -> None:
    with pytest.raises(InputError) as caught:
        read(tmp_path, text, datatype, shape)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_or_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*No such file"):
        read_tensor(tmp_path / "nowhere.csv", datatype="FP32", shape=(-1,))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="is not UTF-8 text"):
        read_tensor(tmp_path / "b.csv", datatype="FP32", shape=(-1,))


def test_a_type_that_nobody_knows() -> None:
    with pytest.raises(ModelError, match="FP8 is a data type"):
        numpy_type("FP8")
