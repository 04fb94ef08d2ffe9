"""Training: one seed, one set of weights; files that load; a loss that teaches something."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exatrkx_hpc.tracking.constants import NetworkSettings, PipelineSettings, TrainingSettings  # noqa: E402
from exatrkx_hpc.tracking.frnn import fixed_radius_edges  # noqa: E402
from exatrkx_hpc.tracking.graphs import label_edges, true_edges  # noqa: E402
from exatrkx_hpc.tracking.networks import Embed  # noqa: E402
from exatrkx_hpc.tracking.pipeline import Pipeline  # noqa: E402
from exatrkx_hpc.tracking.synthetic import generate_event  # noqa: E402
from exatrkx_hpc.tracking.training import hash_state, save, train  # noqa: E402

SMALL = NetworkSettings(embed_width=32, embed_layers=2, filter_width=16, gnn_width=8, gnn_iterations=2)
SHORT = TrainingSettings(min_tracks=8, max_tracks=12, embed_steps=4, filter_steps=3, graph_events=2, gnn_steps=5)


def tiny(seed: int, on_progress=None):
    return train(seed=seed, settings=SHORT, networks=SMALL, on_progress=on_progress)


def test_a_seed_names_the_weights():
    first = hash_state(tiny(1))
    assert first == hash_state(tiny(1))
    assert first != hash_state(tiny(2))


def test_the_weights_do_not_depend_on_what_was_drawn_before_and_leave_no_trace():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = hash_state(tiny(1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert hash_state(tiny(1)) == first


def test_every_step_is_reported():
    calls = []
    tiny(1, on_progress=lambda *call: calls.append(call))
    expected = [("embed", 4), ("filter", 3), ("graphs", 2), ("gnn", 5)]
    assert calls == [(stage, n, total) for stage, total in expected for n in range(1, total + 1)]


def test_saved_weights_find_the_same_tracks_and_the_hash_does_not_depend_on_the_file(tmp_path):
    trained = tiny(3)
    save(trained, tmp_path)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "embed/1/model.pt",
        "filter/1/model.pt",
        "gnn/1/model.pt",
    ]
    loaded = Pipeline.load(tmp_path)
    hits = generate_event(np.random.default_rng(0), n_tracks=5).hits
    direct = Pipeline(embed=trained.embed, filter=trained.filter, gnn=trained.gnn).stages(hits)
    assert np.allclose(loaded.stages(hits).embedding, direct.embedding, atol=1e-6)
    assert hash_state(loaded) == hash_state(trained)


def test_a_weight_that_changes_changes_the_hash():
    trained = tiny(4)
    before = hash_state(trained)
    with torch.no_grad():
        next(trained.gnn.parameters())[0, 0] += 1e-6
    assert hash_state(trained) != before


def test_training_spreads_strangers_and_keeps_neighbours_together():
    settings = TrainingSettings(
        min_tracks=30, max_tracks=40, embed_steps=120, filter_steps=1, graph_events=1, gnn_steps=1
    )
    trained = train(seed=1, settings=settings, networks=SMALL)
    torch.manual_seed(1)
    event = generate_event(np.random.default_rng(99), n_tracks=35)

    def recall_and_purity(embed):
        limits = PipelineSettings()
        with torch.no_grad():
            place = embed(torch.from_numpy(event.hits)).numpy()
        edges = fixed_radius_edges(place, radius=limits.radius, max_neighbours=limits.max_neighbours)
        wanted = label_edges(event, edges, reach=1).wanted
        return wanted.sum() / true_edges(event).shape[1], wanted.mean()

    _, before = recall_and_purity(Embed(SMALL))
    recall, after = recall_and_purity(trained.embed)
    assert recall > 0.9
    assert after > 4 * before


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_no_part(tmp_path):
    (tmp_path / "embed" / "1" / "model.pt").mkdir(parents=True)
    with pytest.raises(OSError):
        save(tiny(1), tmp_path)
    assert not list(tmp_path.rglob("*.part"))
