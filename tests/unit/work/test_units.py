"""Units: what the hits look like is told, what cannot be told is not, and a conversion gives the service's units."""

from __future__ import annotations

import json
import warnings

import numpy as np
import pytest
from command import exatrkx_hpc

from exatrkx_hpc.farm import run_clients
from exatrkx_hpc.tracking.simulation import acts
from exatrkx_hpc.tracking.simulation.synthetic import generate_event
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.source import find_events
from exatrkx_hpc.work.map.endpoint import Endpoint
from exatrkx_hpc.work.results.shards import begin_sharding
from exatrkx_hpc.work.workloads.units import Sample, converted, doubt

MM = {"metres": 1000.0, "centimetres": 10.0, "millimetres": 1.0}
PI = {"radians": np.pi, "degrees": 180.0}


def made(seed: int, tracks: int = 60) -> np.ndarray:
    return generate_event(np.random.default_rng(seed), n_tracks=tracks).hits


def in_units(hits: np.ndarray, length: str | None, angle: str | None) -> np.ndarray:
    """Hits in the service's units, as another program has them."""
    wide = hits.astype(np.float64)
    if length:
        wide[:, 0] *= 3000.0 / MM[length]
        wide[:, 2] *= 400.0 / MM[length]
    if angle == "pi":
        wide[:, 1] = np.remainder(wide[:, 1], 2.0)
    elif angle:
        wide[:, 1] *= PI[angle]
    return wide.astype(np.float32)


@pytest.mark.parametrize("length", [None, *MM])
@pytest.mark.parametrize("angle", [None, "pi", *PI])
@pytest.mark.parametrize("tracks", [12, 200])
def test_other_units_are_told_and_converted(length, angle, tracks):
    for seed in range(10):
        hits = made(seed, tracks)
        others = in_units(hits, length, angle)
        found = doubt(others)
        if length is None and angle is None:
            assert found is None
            assert converted(None, None)(hits) is hits
            continue
        assert (found.length, found.angle) == (length, angle)
        back = converted(length, angle)(others)
        assert back.dtype == np.float32 and doubt(back) is None
        turned = np.abs(back - hits)
        turned[:, 1] = np.minimum(turned[:, 1], 2.0 - turned[:, 1])
        assert turned.max() < 2e-6 and np.abs(back[:, 1]).max() <= 1.0


def test_what_was_said_names_the_figures_and_the_flags():
    others = in_units(made(0), "metres", "radians")
    far, along = (np.quantile(np.abs(others[:, column]), 0.99) for column in (0, 2))
    told = str(doubt(others))
    assert told.startswith(f"z reaches {along:.4g} and r {far:.4g}: these look like metres, phi reaches 3.077: this ")
    assert "looks like radians, not r/3000 mm" in told
    assert "convert them with 'exatrkx-hpc events convert EVENTS NEW --scale metres --phi radians'" in told


@pytest.mark.parametrize("most", [1, 5, 40])
def test_few_hits_raise_no_false_alarm(most):
    rng = np.random.default_rng(most)
    for seed in range(40):
        hits = made(seed)
        assert doubt(hits[rng.choice(len(hits), rng.integers(1, most + 1))]) is None
    assert doubt(hits[:0]) is None


def test_what_cannot_be_told_is_not_told():
    hits = made(1, 200)
    pixels = hits[hits[:, 0] < 200.0 / 3000.0]
    assert doubt(pixels) is None and doubt(in_units(pixels, "metres", None)) is None
    forward = np.float32([[0.1, 0.5, 20.0], [0.02, -0.5, 11.0]])
    chamber = np.float32([[0.283, 0.5, 6.25], [0.83, -0.5, -6.25]])
    assert doubt(forward) is None and doubt(chamber) is None


def test_one_hit_far_away_changes_nothing():
    hits = made(2, 200)
    hits[7] = (0.9, 3.0, 2.0)
    assert doubt(hits) is None


def test_events_of_acts_are_in_the_services_units():
    pytest.importorskip("acts")
    source = acts.event_source("acts")
    assert doubt(source(np.random.default_rng(0), n_tracks=100).hits) is None


def test_the_reference_events(reference_data):
    right = {event.name: read_hits(event.path) for event in find_events(reference_data / "exatrkx" / "events_scaled")}
    for event in find_events(reference_data / "exatrkx" / "events"):
        hits = read_hits(event.path)
        assert doubt(hits).flags == "--scale metres" and doubt(right[event.name]) is None
        np.testing.assert_allclose(converted("metres", None)(hits), right[event.name], rtol=3e-6, atol=1e-7)


def test_a_sample_is_of_the_first_events_and_small():
    sample = Sample()
    for seed in range(30):
        sample.add(np.tile(made(seed, 5), (200, 1)))
    assert sample.full and sum(map(len, sample._hits)) < 60_000
    assert Sample().doubt() is None and Sample().strange() == ""


@pytest.fixture
def metres(tmp_path):
    """A folder of events in metres, the first of them broken."""
    folder = tmp_path / "events"
    folder.mkdir()
    (folder / "evt_0.csv").write_text("1;2;3\n")
    for seed in range(1, 4):
        np.savetxt(folder / f"evt_{seed}.csv", in_units(made(seed), "metres", None), fmt="%.9g", delimiter=",")
    return folder


def test_a_run_tells_it_notes_it_and_goes_on(settings, metres):
    told = []
    report = run_clients(settings(events=metres), tell=told.append)
    (line,) = [line for line in map(str, told) if "look like" in line]
    assert line.startswith("warning: z reaches ") and "look like metres" in line and "--scale metres" in line
    assert report.done == 3 and report.units in line and "metres" in report.units
    out = settings().out
    assert json.loads((out / "report.json").read_text())["units"] == report.units
    assert "look like metres" in (out / "report.html").read_text()
    # A later run with nothing to do says it, too; one over right events does not.
    assert run_clients(settings(events=metres)).units == report.units
    for event in find_events(metres)[1:]:
        np.savetxt(event.path, made(5), fmt="%.9g", delimiter=",")
    again = run_clients(settings(events=metres, accept_changes=True), tell=told.append)
    assert again.units == "" and len([line for line in map(str, told) if "look like" in line]) == 1
    assert "look like" not in (out / "report.html").read_text()


def test_a_run_in_shards_tells_it_too(settings, metres):
    told = []
    settings().out.mkdir()
    begin_sharding(settings().out, 2)
    report = run_clients(settings(events=metres), tell=told.append)
    assert "look like metres" in report.units and any("look like metres" in line for line in map(str, told))
    assert "look like metres" in (settings().out / "report.html").read_text()


@pytest.mark.filterwarnings("ignore:z reaches")
def test_the_ledger_of_a_map_has_it_too(server, tmp_path):
    hits = in_units(made(0), "metres", None)
    with Endpoint(server) as endpoint:
        list(endpoint.map({"a": hits}, ledger=tmp_path / "found"))
        list(endpoint.map({"a": made(0)}, ledger=tmp_path / "right"))
    assert "look like metres" in json.loads((tmp_path / "found" / "report.json").read_text())["units"]


def test_an_endpoint_warns_once(server):
    hits = in_units(made(0), "metres", None)
    with Endpoint(server) as endpoint:
        with pytest.warns(UserWarning, match="these look like metres, not r/3000 mm"):
            endpoint.find_tracks(hits)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            endpoint.find_tracks(hits)
            list(endpoint.map([hits, hits]))
    with Endpoint(server) as endpoint, pytest.warns(UserWarning, match="these look like metres") as caught:
        list(endpoint.map({"a": hits, "b": hits}))
    assert len(caught) == 1
    with Endpoint(server) as endpoint:
        assert len(endpoint.find_tracks(made(0))) == len(made(0))


def test_the_command_converts_and_warns(tmp_path, metres):
    (metres / "evt_0.csv").unlink()
    same = exatrkx_hpc("events", "convert", "events", "same", "--to", "npy", cwd=tmp_path)
    assert same.returncode == 0 and "warning: z reaches" in same.stderr and "--scale metres" in same.stderr
    done = exatrkx_hpc("events", "convert", "events", "new", "--scale", "metres", cwd=tmp_path)
    assert done.returncode == 0 and "warning" not in done.stderr, done.stderr
    for seed in range(1, 4):
        np.testing.assert_allclose(read_hits(tmp_path / "new" / f"evt_{seed}.csv"), made(seed), rtol=3e-6, atol=1e-7)
    for source, target in (("same", "b.json"), ("b.json", "c")):
        scale = ["--scale", "metres"] if target == "c" else []
        assert exatrkx_hpc("events", "convert", source, target, *scale, cwd=tmp_path).returncode == 0
    np.testing.assert_allclose(read_hits(tmp_path / "c" / "evt_000000.csv"), made(1), rtol=3e-6, atol=1e-7)
    twice = exatrkx_hpc("events", "convert", "new", "twice", "--scale", "metres", cwd=tmp_path)
    assert "warning: now z reaches" in twice.stderr and "were the events in metres?" in twice.stderr
    small = exatrkx_hpc("events", "convert", "new", "small", "--scale", "millimetres", cwd=tmp_path)
    assert "which fits no tracker; were the events in millimetres?" in small.stderr
    wrong = exatrkx_hpc("events", "convert", "events", "x", "--scale", "feet", cwd=tmp_path)
    assert wrong.returncode == 2 and not (tmp_path / "x").exists()
