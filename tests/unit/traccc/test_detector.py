"""The twin's detector: it is that of ACTS, its files say so, and an ID that it does not know is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cell_events import LONG_STRIPS, NOWHERE, PIXELS

from exatrkx_hpc.traccc.detector import (
    DIGITIZATION_FILE,
    MODULES_FILE,
    UnknownModule,
    generic_detector,
    read_detector,
)


def test_pitches_and_first_edges_are_those_of_the_digitization():
    detector = generic_detector()
    pixels, strips = detector.numbers(np.array([PIXELS, LONG_STRIPS]))
    assert detector.pitch[pixels] == pytest.approx([0.05, 0.05])
    assert detector.pitch[strips] == pytest.approx([0.12, 10.8])
    assert detector.low[pixels].tolist() == [-8.4, -36.0]
    assert detector.bins[strips].tolist() == [400, 10]
    assert (np.diff(detector.ids) > 0).all()
    assert (detector.resolution > 0).all()


def test_an_unknown_id_is_named_with_its_row():
    with pytest.raises(UnknownModule, match=f"geometry id {NOWHERE} in row 1 is not a module"):
        generic_detector().numbers(np.array([PIXELS, NOWHERE, -1]))
    for wrong in (-1, 0, 2**63 - 1):
        with pytest.raises(UnknownModule, match=f"geometry id {wrong} in row 0"):
            generic_detector().numbers(np.array([wrong]))
    assert generic_detector().numbers(np.empty(0, dtype=np.int64)).shape == (0,)


def test_an_entry_for_a_layer_or_a_module_overrides_that_of_its_volume(tmp_path: Path):
    content = json.loads(DIGITIZATION_FILE.read_text())
    pixels = next(entry for entry in content["entries"] if entry["volume"] == 8)
    for more, bins in (({"layer": 2, "sensitive": 2}, 100), ({"layer": 2}, 200)):
        other = json.loads(json.dumps(pixels)) | more
        other["value"]["geometric"]["segmentation"]["binningdata"][0]["bins"] = bins
        content["entries"].insert(0, other)
    (tmp_path / "digitization.json").write_text(json.dumps(content))
    detector = read_detector(MODULES_FILE, tmp_path / "digitization.json")
    ids = np.array([PIXELS, PIXELS + (1 << 8), PIXELS + (2 << 36)])
    assert detector.bins[detector.numbers(ids), 0].tolist() == [200, 100, 336]


def test_a_file_that_describes_no_detector_is_refused(tmp_path: Path):
    (tmp_path / "other.json").write_text('{"entries": [{"volume": 8, "value": {}}]}')
    with pytest.raises(ValueError, match=r"other\.json do not describe a detector"):
        read_detector(MODULES_FILE, tmp_path / "other.json")
    content = json.loads(DIGITIZATION_FILE.read_text())
    content["entries"] = [entry for entry in content["entries"] if entry["volume"] != 17]
    (tmp_path / "short.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"module {LONG_STRIPS} has no digitization"):
        read_detector(MODULES_FILE, tmp_path / "short.json")


@pytest.mark.slow
def test_the_modules_are_those_of_acts():
    pytest.importorskip("acts")
    from exatrkx_hpc.traccc.pyacts import Acts

    detector = generic_detector()
    surfaces = Acts(detector).geometry.geoIdSurfaceMap()
    sensitive = sorted(name.value for name in surfaces if name.sensitive)
    assert np.array_equal(detector.ids, sensitive)
