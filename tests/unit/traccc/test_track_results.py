"""`score` of a folder of fitted tracks: rates, pulls, what has no partner, and folders that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc
from hand_tracks import HITS, tracks, truth

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.traccc.scoring.score import score_tracks
from exatrkx_hpc.traccc.simulation.files import truth_as_npz
from exatrkx_hpc.track_scores import score_track_results
from exatrkx_hpc.work.results.parts import part_bytes, part_file
from exatrkx_hpc.work.workloads.traccc import WORKLOAD

#: A particle's track, another one without its last measurements, and a fake of two particles.
FOUND = tracks(list(range(HITS)), list(range(HITS, 2 * HITS - 2)), [2, 3, 18, 19], offset=(0.01, 0.0, 0.0, 0.0, 0.0))
NAMES = ("evt_0-cells", "evt_1-cells")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder with the truth of two events and a run's results of both."""
    (tmp_path / "events" / "truth").mkdir(parents=True)
    (tmp_path / "results" / "tracks").mkdir(parents=True)
    for name in NAMES:
        (tmp_path / "events" / "truth" / f"{name}.npz").write_bytes(truth_as_npz(truth()))
        (tmp_path / "results" / "tracks" / f"{name}.npz").write_bytes(WORKLOAD.encode(vars(FOUND)))
    return tmp_path


def test_the_score_is_that_of_all_events(run: Path) -> None:
    found = score_track_results(run / "results", run / "events")
    one = score_tracks(FOUND, truth())
    assert (found.events, found.score.particles, found.score.found) == (2, 2 * one.particles, 2 * one.found)
    assert (one.particles, one.found) == (3, 2)
    value, low, high = found.rates()["fake_rate"]
    assert value == pytest.approx(1 / 3) and low < value < high
    assert found.score.resolutions["loc0"] == pytest.approx(0.0, abs=1e-6), "a shift has no width"
    assert found.to_dict()["fitted"] == len(found.score.pulls) == 4
    assert score_track_results(run / "results" / "tracks", run / "events", min_hits=9).score.particles == 0


def test_parts_score_as_files_do(run: Path) -> None:
    pytest.importorskip("pyarrow")
    files = score_track_results(run / "results", run / "events")
    (run / "parts").mkdir()
    results = [(name, vars(FOUND)) for name in NAMES]
    (run / "parts" / part_file(WORKLOAD, NAMES[0])).write_bytes(part_bytes(WORKLOAD, results))
    assert score_track_results(run / "parts", run / "events").to_dict() == files.to_dict()


def test_what_has_no_partner_is_named(run: Path) -> None:
    (run / "results" / "tracks" / f"{NAMES[0]}.npz").rename(run / "results" / "tracks" / "other.npz")
    found = score_track_results(run / "results", run / "events")
    assert (found.events, found.without_truth, found.without_results) == (1, ("other",), NAMES[:1])
    (run / "results" / "tracks" / f"{NAMES[1]}.npz").unlink()
    with pytest.raises(InputError, match=r"no event of .*events has tracks in .*results; choose folders of the same"):
        score_track_results(run / "results", run / "events")


def test_folders_and_files_that_cannot_be_used(run: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist; choose the folder that 'exatrkx-hpc run-clients'"):
        score_track_results(run / "nowhere", run / "events")
    with pytest.raises(InputError, match=r"has no truth/\*.npz; set --truth to the folder that 'exatrkx-hpc events"):
        score_track_results(run / "results", run / "results")
    np.savez(run / "results" / "tracks" / f"{NAMES[0]}.npz", labels=np.zeros(3))
    with pytest.raises(InputError, match=r"cells.npz has no array parameters; it is not a result of traccc"):
        score_track_results(run / "results", run / "events")
    (run / "results" / "tracks" / f"{NAMES[0]}.npz").unlink()
    (run / "events" / "truth" / f"{NAMES[1]}.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"evt_1-cells cannot be scored: .*is not the truth of an event of cells"):
        score_track_results(run / "results", run / "events")


def test_the_command_prints_rates_and_fits(run: Path) -> None:
    done = exatrkx_hpc("score", "results", "--truth", "events", cwd=run)
    assert done.returncode == 0, done.stderr
    assert "6 particles above 1 GeV with 7 measurements or more" in done.stdout
    assert "4 fits" in done.stdout and "pull width" in done.stdout
    as_json = json.loads(exatrkx_hpc("score", "results", "--truth", "events", "--json", cwd=run).stdout)
    assert as_json["efficiency"]["value"] == pytest.approx(2 / 3)
    assert set(as_json["pull_widths"]) == {"loc0", "loc1", "phi", "theta", "qop"}
    refused = exatrkx_hpc("score", "results", "--truth", "events", "--min-track-hits", "4", cwd=run)
    assert "--min-track-hits apply to labels only; omit them for tracks" in complaint(refused, 2)
