"""`events generate --kind cells`: files that a run reads, with their truth; what does not apply to cells is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.cli import event_commands
from exatrkx_hpc.traccc.simulation.files import read_truth, truth_of
from exatrkx_hpc.work.events.source import Reader, find_events
from exatrkx_hpc.work.workloads.traccc import WORKLOAD


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.csv")}


@pytest.mark.slow
def test_a_run_reads_what_is_generated_and_the_truth_has_its_measurements(tmp_path: Path) -> None:
    pytest.importorskip("acts")
    words = ["events", "generate", "--kind", "cells", "--pile-up", "0", "--seed", "3", "-q", "--json"]
    done = exatrkx_hpc(*words, "--events", "2", "--displaced", "0.5", "--out", "events", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["events"] == 2
    reader = Reader(WORKLOAD)
    events = find_events(tmp_path / "events", workload=WORKLOAD)
    assert [event.name for event in events] == ["evt_000000-cells", "evt_000001-cells"]
    for event in events:
        positions, truth = reader.read(event).tensors["positions"], read_truth(truth_of(event.path))
        assert len(positions) > 300
        assert np.array_equal(truth.geometry_ids[positions[:, 1]], positions[:, 0])
        assert truth.particles.displaced.any() and (truth.particles.vertex == 0).all()
    one = exatrkx_hpc(*words, "--events", "1", "--displaced", "0.5", "--out", "one", cwd=tmp_path)
    assert one.returncode == 0
    again = content(tmp_path / "one")
    assert again and again.items() <= content(tmp_path / "events").items(), "the same seed gives the same first events"
    held = exatrkx_hpc(*words, "--out", "one", cwd=tmp_path)
    assert "one holds 1 events already" in held.stderr


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--kind", "cells", "--tracks", "3"), "--tracks and --format apply to hits only; use --pile-up"),
        (("--kind", "cells", "--format", "npz"), "--tracks and --format apply to hits only"),
        (("--pile-up", "3"), "--pile-up and --displaced apply to --kind cells only; use --tracks for hits"),
        (("--displaced", "0.1"), "--pile-up and --displaced apply to --kind cells only"),
    ],
)
def test_an_option_of_the_other_kind_is_refused(tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    done = exatrkx_hpc("events", "generate", "--out", "events", *words, cwd=tmp_path)
    assert says in complaint(done, 2)
    assert not (tmp_path / "events").exists()


def test_a_machine_without_pyacts_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_commands.acts, "is_installed", lambda: False)
    with pytest.raises(MissingComponent, match=r"events of cells need pyacts, .*; pip install 'exatrkx-hpc\[acts\]'"):
        event_commands.require_pyacts("events of cells")
