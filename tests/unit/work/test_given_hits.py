"""Hits as people give them: the right numbers, or one line that says what would have been lost."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pytest
from runs import checked_hits

from exatrkx_hpc.base.errors import InputError

HITS = np.float32([[0.125, 0.5, -0.25], [0.25, -0.5, 1.0]])


class Table:
    """As pandas and others show themselves: named columns, and an array on demand."""

    def __init__(self, columns: list[str], values: np.ndarray) -> None:
        self.columns, self._values = columns, values

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self._values


class Broken:
    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        raise RuntimeError("the file of this array\nis gone")


@pytest.mark.parametrize(
    "given",
    [
        HITS,
        HITS.tolist(),
        tuple(map(tuple, HITS.tolist())),
        list(HITS),
        HITS.astype(np.float64),
        HITS.astype(np.float16),
        HITS.astype(np.longdouble),
        HITS.astype(">f4"),
        HITS.astype(">f8"),
        np.asfortranarray(HITS),
        HITS[::-1][::-1],
        HITS.view(np.matrix) if hasattr(np, "matrix") else HITS,
        np.ma.array(HITS),
        np.ma.array(HITS, mask=False),
        np.ma.array(HITS, mask=np.zeros((2, 3), dtype=bool)),
        [np.ma.array(row) for row in HITS],
        Table(["r", "phi", "z"], HITS),
        Table(["R", "Phi", "Z"], HITS),
        Table(["x", "y", "w"], HITS),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_means_the_same_is_the_same(given):
    found = checked_hits(given)
    assert type(found) is np.ndarray and found.dtype == np.float32 and found.flags.c_contiguous
    assert found.dtype.isnative and np.array_equal(found, HITS)


MASK = np.zeros((2, 3), dtype=bool)
MASK[1, 2] = True


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (np.ma.array(HITS, mask=MASK), "hits have 1 masked values, the first in row 1; leave those rows out"),
        (np.ma.array(HITS, mask=True), "hits have 6 masked values, the first in row 0"),
        ([np.ma.array(HITS[0]), np.ma.array(HITS[1], mask=MASK[1])], "hits have 1 masked values, the first in row 1"),
        ([[1.0, 2.0, np.ma.masked]], "cannot be turned into"),
        (np.ma.masked, "masked"),
        (HITS.astype("M8[s]"), r"hits are datetime64\[s\], dates"),
        (HITS.astype("m8[s]"), r"hits are timedelta64\[s\], time spans"),
        (HITS.astype(np.complex64), r"hits are complex64, complex numbers: take \.real"),
        ([[1j, 2, 3]], "hits are complex128"),
        (HITS.astype(object), "hits are object, Python objects"),
        ([[1.0, 2.0, None]], "hits are object"),
        ([[Decimal(1), Decimal(2), Decimal(3)]], "hits are object"),
        (HITS.astype("U9"), "hits are <U9, text"),
        (HITS.astype("S9"), r"hits are \|S9, bytes"),
        ([["1", "2", "3"]], "hits are <U1, text"),
        (HITS > 0, "hits are bool, truth values"),
        (np.zeros(2, dtype=[("r", "f4"), ("phi", "f4"), ("z", "f4")]), "records: numpy.lib.recfunctions"),
        (np.zeros(2, dtype=[("r", "f4"), ("phi", "f4"), ("z", "f4")]).view(np.recarray), "records: "),
        (np.zeros((2, 3), dtype="V4"), "records: "),
        (Table(["z", "r", "phi"], HITS), r"columns of hits are z, r, phi; give them in the order \['r', 'phi', 'z'\]"),
        (Broken(), "hits cannot be turned into float32 .*: the file of this array is gone"),
        (None, "hits are a single NoneType"),
        ("0.1,0.2,0.3", "hits are a single str"),
        ({"r": [1], "phi": [2], "z": [3]}, "workload exatrkx has no input 'phi'"),
        ((row for row in HITS), "hits are a single generator"),
        ([[1, 2, 3], [1, 2]], "cannot be turned into"),
        ([[1, 2, 10**400]], "hits are object"),
        (HITS.T, r"hits have the shape \[3, 2\], not \[N,3\]"),
        (HITS[None], r"hits have the shape \[1, 2, 3\]"),
        (HITS.ravel(), r"hits have the shape \[6\]"),
        (7.0, r"hits have the shape \[\]"),
        ([], r"hits have the shape \[0\]"),
        (HITS.astype(np.float64) * 1e39, "row 0 of hits is not finite in single precision"),
    ],
)
def test_what_would_lose_something_is_one_line(given, says):
    with pytest.raises(InputError, match=says) as caught:
        checked_hits(given)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_sparse_matrices_are_told(tmp_path):
    sparse = pytest.importorskip("scipy.sparse")
    for given in (sparse.csr_matrix(HITS), sparse.coo_array(HITS)):
        with pytest.raises(InputError, match=r"hits are sparse \(co?[os]r?_\w+\): use hits\.toarray\(\)"):
            checked_hits(given)


def test_tensors_of_torch():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(HITS.copy())
    for given in (
        tensor,
        tensor.clone().requires_grad_(),
        torch.nn.Parameter(tensor),
        tensor.double(),
        tensor.to(torch.bfloat16),
        tensor.T.contiguous().T,
        [tensor[0], tensor[1]],
    ):
        assert np.array_equal(checked_hits(given), HITS)
    for given, says in (
        (tensor.to_sparse(), r"hits are a sparse tensor: use hits\.to_dense\(\)"),
        (tensor.to(torch.complex64), "hits are complex64"),
        (tensor > 0, "hits are bool"),
        (tensor.to("meta"), "cannot be turned into"),
        ([tensor[0].clone().requires_grad_(), tensor[1]], "cannot be turned into"),
    ):
        with pytest.raises(InputError, match=says) as caught:
            checked_hits(given)
        assert "\n" not in str(caught.value)
