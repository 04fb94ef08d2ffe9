"""Training: one seed, one set of weights; files that load; a loss that teaches something."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from command import exatrkx_hpc

torch = pytest.importorskip("torch")

from exatrkx_hpc.tracking.constants import QUICK_TRAINING, NetworkSettings, PipelineSettings, TrainingSettings  # noqa: E402
from exatrkx_hpc.tracking.frnn import fixed_radius_edges  # noqa: E402
from exatrkx_hpc.tracking.pipeline import Pipeline  # noqa: E402
from exatrkx_hpc.tracking.scoring.graphs import label_edges, true_edges  # noqa: E402
from exatrkx_hpc.tracking.simulation.acts import is_installed, simulate_event  # noqa: E402
from exatrkx_hpc.tracking.simulation.synthetic import generate_event  # noqa: E402
from exatrkx_hpc.tracking.training.networks import Embed  # noqa: E402
from exatrkx_hpc.tracking.training.train import hash_state, load, save, train  # noqa: E402

pytestmark = pytest.mark.slow


SMALL = NetworkSettings(embed_width=32, embed_layers=2, filter_width=16, gnn_width=8, gnn_iterations=2)
SHORT = TrainingSettings(
    small_events=4,
    tracks=(8, 12),
    dense_events=1,
    dense_tracks=(16, 24),
    embed_steps=4,
    filter_steps=3,
    graph_events=2,
    gnn_steps=5,
)


def tiny(seed: int, on_progress=None, **options):
    return train(seed=seed, settings=SHORT, networks=SMALL, on_progress=on_progress, **options)


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


def test_the_weights_do_not_depend_on_the_number_of_threads_which_stays_as_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        first = hash_state(tiny(1))
        assert torch.get_num_threads() == 2
        torch.set_num_threads(1)
        assert hash_state(tiny(1)) == first
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(not is_installed(), reason="pyacts is not installed")
def test_the_source_of_the_events_makes_a_difference_and_its_seed_names_the_weights_too():
    first = hash_state(tiny(1, source=simulate_event))
    assert first == hash_state(tiny(1, source=simulate_event))
    assert first != hash_state(tiny(1))


def test_every_step_is_reported():
    calls = []
    tiny(1, on_progress=lambda *call: calls.append(call))
    expected = [("events", 5), ("embed", 4), ("filter", 3), ("graphs", 2), ("gnn", 5)]
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
    assert hash_state(load(tmp_path)) == hash_state(trained)


def test_a_weight_that_changes_changes_the_hash():
    trained = tiny(4)
    before = hash_state(trained)
    with torch.no_grad():
        next(trained.gnn.parameters())[0, 0] += 1e-6
    assert hash_state(trained) != before


def test_training_spreads_strangers_and_keeps_neighbours_together():
    settings = replace(SHORT, small_events=120, tracks=(30, 40), dense_share=0.0, embed_steps=120)
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


def test_a_quick_training_learns_to_tell_true_edges_from_false_ones():
    """Seconds teach both edge networks to rank the edges of an unseen event; a few steps do not."""
    event = generate_event(np.random.default_rng(5), n_tracks=30)

    def ranking(networks):
        """Return for each edge network the chance that a true edge gets a larger logit than a false one."""
        pipeline = Pipeline(embed=networks.embed, filter=networks.filter, gnn=networks.gnn)
        graph = label_edges(event, pipeline.stages(event.hits).candidates, reach=2)
        true, false = graph.wanted == 1, (graph.wanted == 0) & (graph.weight > 0)
        with torch.inference_mode():
            hits, edges = torch.from_numpy(graph.hits), torch.from_numpy(graph.edges)
            logits = [module(hits, edges).reshape(-1).numpy() for module in (networks.filter, networks.gnn)]
        return [float((one[true][:, None] > one[false][None, :]).mean()) for one in logits]

    assert min(ranking(train(seed=1, settings=QUICK_TRAINING, networks=SMALL))) > 0.85
    assert max(ranking(tiny(1))) < 0.8


def test_the_command_says_that_quick_weights_are_not_the_shipped_ones(tmp_path):
    words = ("models", "train", "--quick", "--events", "helices", "--seed", 3, "--out", "models")
    done = exatrkx_hpc(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    weights, verdict = done.stdout.splitlines()
    assert weights == f"weights written to models, sha256 of their values {hash_state(load(tmp_path / 'models'))}"
    assert verdict.startswith("not the shipped weights, as expected: --quick, seed 3 instead of 20260")
    assert "pyacts not used instead of 48.1.0" in verdict


def test_a_file_that_cannot_be_written_is_an_error_and_leaves_no_part(tmp_path):
    (tmp_path / "embed" / "1" / "model.pt").mkdir(parents=True)
    with pytest.raises(OSError):
        save(tiny(1), tmp_path)
    assert not list(tmp_path.rglob("*.part"))
