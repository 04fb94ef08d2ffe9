"""Events of cells as files: they come back as they were."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from cell_events import PIXELS, cells_of, small_event

from exatrkx_hpc.traccc.scoring.matching import match_tracks
from exatrkx_hpc.traccc.simulation.files import cells_as_csv, read_truth, truth_as_npz
from exatrkx_hpc.traccc.tracks import no_tracks


def test_cells_have_the_public_clients_columns():
    assert cells_as_csv(cells_of((PIXELS, 3, 4, 0.1))).decode() == (
        f"geometry_id,measurement_id,channel0,channel1,timestamp,value\n{PIXELS},0,3,4,0,0.100000001\n"
    )
    assert cells_as_csv(cells_of()).count(b"\n") == 1


@pytest.mark.slow
def test_an_event_comes_back_as_it_was(tmp_path):
    pytest.importorskip("acts")
    event = small_event()
    lines = cells_as_csv(event.cells).decode().splitlines()[1:]
    assert np.array_equal(np.loadtxt(lines, delimiter=",", usecols=range(4), dtype=np.int64), event.cells.positions)
    back = np.loadtxt(lines, delimiter=",", usecols=(4, 5), dtype=np.float32)
    assert np.array_equal(back, event.cells.properties)
    (tmp_path / "truth.npz").write_bytes(truth_as_npz(event.truth))
    truth = read_truth(tmp_path / "truth.npz")
    for part in ("passages", "particles"):
        one, other = getattr(truth, part), getattr(event.truth, part)
        assert all(np.array_equal(getattr(one, field.name), getattr(other, field.name)) for field in fields(one))
    assert np.array_equal(truth.local, event.truth.local)
    assert match_tracks(no_tracks(), truth).hits.sum() > 0


def test_another_file_is_no_truth(tmp_path):
    np.savez(tmp_path / "other.npz", hits=np.zeros(3))
    (tmp_path / "broken.npz").write_bytes(b"PK\3\4 nothing")
    for name in ("other.npz", "broken.npz"):
        with pytest.raises(ValueError, match=f"{name} is not the truth of an event of cells"):
            read_truth(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_truth(tmp_path / "missing.npz")
