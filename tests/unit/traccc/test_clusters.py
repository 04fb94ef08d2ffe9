"""Clustering: what touches belongs together, in any order, and equals the simulation's own."""

from __future__ import annotations

import numpy as np
import pytest
from cell_events import LONG_STRIPS, NOWHERE, PIXELS, cells_of, chosen, small_event

from exatrkx_hpc.traccc.clusters import Measurements, cluster_cells
from exatrkx_hpc.traccc.detector import UnknownModule, generic_detector
from exatrkx_hpc.tracking.tensors import BadTensor

DETECTOR = generic_detector()


def clustered(*rows) -> Measurements:
    return cluster_cells(cells_of(*rows), DETECTOR)


@pytest.mark.parametrize("step", [(0, 1), (1, -1), (1, 0), (1, 1), (0, -1), (-1, 1), (-1, 0), (-1, -1)])
def test_all_eight_neighbours_touch(step):
    found = clustered((PIXELS, 10, 20), (PIXELS, 10 + step[0], 20 + step[1]))
    assert found.cluster.tolist() == [0, 0]
    apart = clustered((PIXELS, 10, 20), (PIXELS, 10 + 2 * step[0], 20 + 2 * step[1]))
    assert sorted(apart.cluster.tolist()) == [0, 1]


def test_no_cell_touches_one_of_the_next_row_or_module():
    last = DETECTOR.bins[DETECTOR.numbers(np.array([PIXELS]))[0]] - 1
    beside = PIXELS + (1 << 8)
    rows = [(PIXELS, 0, last[1]), (PIXELS, 1, 0), (PIXELS, last[0], last[1]), (beside, 0, 0), (beside, 0, last[1])]
    assert sorted(clustered(*rows).cluster.tolist()) == [0, 1, 2, 3, 4]


def test_a_ring_and_a_long_diagonal_are_one_cluster_each():
    ring = [(PIXELS, a, b) for a in range(5) for b in range(5) if a in (0, 4) or b in (0, 4)]
    diagonal = [(PIXELS, 100 + n, 100 + n) for n in range(50)]
    middle = [(PIXELS, 2, 2)]
    found = clustered(*ring, *diagonal, *middle)
    assert len(found) == 3
    assert len(set(found.cluster[: len(ring)])) == len(set(found.cluster[len(ring) : -1])) == 1


def test_the_position_is_the_weighted_mean_of_the_centres():
    found = clustered((PIXELS, 168, 720, 1.0), (PIXELS, 169, 720, 3.0))
    assert found.local == pytest.approx(np.array([[0.05 * 1.25, 0.025]]))
    strip = clustered((LONG_STRIPS, 0, 0, 0.2))
    assert strip.local == pytest.approx(np.array([[-24.0 + 0.06, -54.0 + 5.4]]))
    without_charge = clustered((PIXELS, 168, 720, 0.0), (PIXELS, 169, 720, 0.0))
    assert without_charge.local == pytest.approx(np.array([[0.05, 0.025]]))


def test_the_variance_is_that_of_the_width_in_channels():
    widths = DETECTOR.resolution[DETECTOR.numbers(np.array([PIXELS]))[0]]
    for wide, long in ((1, 1), (2, 1), (3, 5), (9, 40)):
        found = clustered(*[(PIXELS, a, b) for a in range(wide) for b in range(long)])
        expected = [widths[0, min(wide, widths.shape[1]) - 1] ** 2, widths[1, min(long, widths.shape[1]) - 1] ** 2]
        assert found.variance == pytest.approx(np.array([expected]))


def test_no_cells_are_no_measurements():
    found = clustered()
    assert (found.geometry_ids.shape, found.local.shape, found.variance.shape, found.cluster.shape) == (
        (0,),
        (0, 2),
        (0, 2),
        (0,),
    )


def test_the_order_of_the_cells_changes_nothing():
    rng = np.random.default_rng(3)
    rows = {(PIXELS + (int(m) << 8), int(a), int(b)) for m, a, b in rng.integers((0, 0, 0), (4, 30, 30), (900, 3))}
    cells = cells_of(*((*row, float(rng.random())) for row in sorted(rows)))
    order = rng.permutation(len(cells))
    one, other = cluster_cells(cells, DETECTOR), cluster_cells(chosen(cells, order), DETECTOR)
    assert all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in ("geometry_ids", "local", "variance")
    )
    assert np.array_equal(one.cluster[order], other.cluster)
    assert len(one) > 20


BAD = [
    ([(PIXELS, 0, 0), (PIXELS, -1, 3)], r"channels \[-1, 3\] in row 1 do not exist: geometry id \d+ has 336 x 1440"),
    ([(PIXELS, 336, 0)], r"channels \[336, 0\] in row 0"),
    ([(PIXELS, 0, 2**62)], "do not exist"),
    ([(PIXELS, 1, 2), (PIXELS, 5, 5), (PIXELS, 1, 2)], r"rows 0 and 2 are the same cell: .*channels \[1, 2\]"),
    ([(PIXELS, 1, 2, float("nan"))], "value nan in row 0"),
    ([(PIXELS, 1, 2), (PIXELS, 1, 3, float("inf"))], "value inf in row 1"),
    ([(PIXELS, 1, 2, -0.5)], "value -0.5 in row 0"),
]


@pytest.mark.parametrize("rows, told", BAD)
def test_impossible_cells_are_refused(rows, told):
    with pytest.raises(BadTensor, match=told):
        clustered(*rows)


def test_an_unknown_module_is_named():
    with pytest.raises(UnknownModule, match=str(NOWHERE)):
        clustered((PIXELS, 0, 0), (NOWHERE, 0, 0))


@pytest.mark.slow
def test_clusters_are_the_simulations_own():
    pytest.importorskip("acts")
    event = small_event()
    found = cluster_cells(event.cells, DETECTOR)
    pairs = np.unique(np.stack([found.cluster, event.cells.measurement_ids]), axis=1)
    assert pairs.shape == (2, len(found)) and len(found) == len(event.truth.geometry_ids)
    own = pairs[:, np.argsort(pairs[1])][0]
    assert np.array_equal(found.geometry_ids[own], event.truth.geometry_ids)
    assert found.local[own] == pytest.approx(event.truth.local, abs=1e-5)


@pytest.mark.slow
def test_the_variances_are_right():
    """Distances to the true position, in standard deviations: their 68 % are within about one."""
    pytest.importorskip("acts")
    event = small_event(particles=60)
    found = cluster_cells(event.cells, DETECTOR)
    own = np.empty(len(found), dtype=np.int64)
    own[event.cells.measurement_ids] = found.cluster
    passages = event.truth.passages
    at = own[passages.measurement]
    pulls = (found.local[at] - passages.local) / np.sqrt(found.variance[at])
    assert np.quantile(np.abs(pulls), 0.683, axis=0) == pytest.approx([1.0, 1.0], abs=0.25)
