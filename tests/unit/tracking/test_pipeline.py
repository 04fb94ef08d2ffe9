"""The shipped weights find tracks, and no event is too small for them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from devices import CUDA, need_gpu

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, NETWORK_NAMES
from exatrkx_hpc.tracking.pipeline import Pipeline
from exatrkx_hpc.tracking.scoring.agreement import same_partition
from exatrkx_hpc.tracking.scoring.score import score_event, total
from exatrkx_hpc.tracking.simulation.synthetic import generate_event
from exatrkx_hpc.tracking.tensors import BadTensor

pytestmark = pytest.mark.slow


# Not the seed of the training, and not one that any figure in the documentation was chosen by.
UNSEEN = 31_415


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the pipeline runs where several share a machine; other tests get their threads back."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def repository():
    return asset("model_repos/exatrkx")


@pytest.fixture(scope="module", params=["cpu", CUDA])
def pipeline(request, repository):
    """The pipeline on the CPU, and on a GPU where there is one."""
    if request.param == "cuda":
        need_gpu()
    return Pipeline.load(repository, device=request.param)


def unseen(number: int, **options):
    return generate_event(np.random.default_rng([UNSEEN, number]), **options)


def test_the_shipped_weights_find_tracks_in_unseen_events(pipeline):
    events = [unseen(number) for number in range(10)]
    result = total(score_event(pipeline.find_tracks(event.hits), event) for event in events)
    assert result.particles > 500
    assert result.efficiency >= 0.93
    assert result.fake_rate <= 0.05
    assert result.duplicate_rate <= 0.05


def test_the_shipped_weights_are_small(repository):
    assert sum((repository / name / "1" / "model.pt").stat().st_size for name in NETWORK_NAMES) < 1_000_000


@pytest.mark.parametrize("n", [0, 1, 2, 3])
def test_the_smallest_events_get_a_label_for_each_hit(pipeline, n):
    labels = pipeline.find_tracks(unseen(0).hits[:n])
    assert labels.shape == (n,)
    assert labels.dtype == np.int64


def test_hits_of_no_common_track_are_tracks_of_their_own(pipeline):
    far = np.array([[0.1, -0.9, -5.0], [0.1, 0.5, 4.0]], dtype=np.float32)
    assert len(set(pipeline.find_tracks(far).tolist())) == 2


def test_two_hits_in_one_place_get_labels(pipeline):
    assert pipeline.find_tracks(np.repeat(unseen(0).hits[:1], 2, axis=0)).shape == (2,)


def test_when_the_filter_passes_no_edge_every_hit_is_alone(pipeline):
    strict = replace(pipeline, settings=replace(DEFAULT_SETTINGS, filter_cut=1.0))
    event = unseen(1, n_tracks=10)
    stages = strict.stages(event.hits)
    assert stages.candidates.shape[1] > 0
    assert stages.edges.shape == (2, 0)
    assert stages.gnn_logits.shape == (0,)
    assert len(set(stages.labels.tolist())) == len(event.hits)


def test_the_stages_fit_together(pipeline):
    event = unseen(2, n_tracks=30)
    stages = pipeline.stages(event.hits)
    n, candidates, edges = len(event.hits), stages.candidates.shape[1], stages.edges.shape[1]
    assert stages.embedding.shape == (n, 8)
    assert stages.filter_logits.shape == (candidates,)
    assert stages.gnn_logits.shape == (edges,)
    assert 0 < edges < candidates
    assert stages.labels.shape == (n,)
    assert np.array_equal(pipeline.find_tracks(event.hits), stages.labels)


def test_the_order_of_the_hits_does_not_change_the_tracks(pipeline):
    event = unseen(3, n_tracks=20)
    order = np.random.default_rng(0).permutation(len(event.hits))
    labels, shuffled = pipeline.find_tracks(event.hits), pipeline.find_tracks(event.hits[order])
    assert same_partition(labels[order], shuffled)


def test_tensors_give_tensors_and_arrays_give_arrays(pipeline):
    hits = unseen(4, n_tracks=10).hits
    stages, tensors = pipeline.stages(hits), pipeline.stages(torch.from_numpy(hits))
    for name, array in vars(stages).items():
        assert type(array) is np.ndarray
        assert isinstance(getattr(tensors, name), torch.Tensor)
        # A GPU adds up in any order, so that two runs differ by what rounding does.
        assert np.allclose(getattr(tensors, name).numpy(), array, rtol=0, atol=0 if pipeline.device == "cpu" else 1e-3)


@pytest.mark.filterwarnings("error")
def test_hits_in_any_memory_layout_give_the_same_tracks(pipeline):
    hits = unseen(4, n_tracks=10).hits
    labels = pipeline.find_tracks(hits)
    read_only = hits.copy()
    read_only.flags.writeable = False
    every_other = np.repeat(hits, 2, axis=0)[::2]
    for other in (np.asfortranarray(hits), read_only, every_other):
        assert np.array_equal(pipeline.find_tracks(other), labels)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_same_tracks_as_a_plain_composition_on_the_reference_events(repository, reference_data):
    pipeline = Pipeline.load(repository)
    plain = [torch.jit.load(str(repository / name / "1" / "model.pt")) for name in NETWORK_NAMES]
    whole = replace(pipeline, **dict(zip(NETWORK_NAMES, plain, strict=True)))
    rng = np.random.default_rng(8)
    for path in sorted((reference_data / "exatrkx" / "events_scaled").glob("*.csv")):
        hits = np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)
        labels = pipeline.find_tracks(hits)
        assert same_partition(labels, whole.find_tracks(hits)), path.name
        order = rng.permutation(len(hits))
        assert same_partition(labels[order], pipeline.find_tracks(hits[order])), path.name


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ((2, 1), np.nan, "hits has a NaN or an infinity in row 2"),
        ((1, 0), -0.5, "hits has r / 3000 mm = -0.5 in row 1"),
        ((0, 2), 3e5, "hits has z / 400 mm = 300000 in row 0"),
    ],
)
def test_hits_that_cannot_be_are_named(pipeline, place, value, says):
    hits = unseen(0).hits[:5].copy()
    hits[place] = value
    with pytest.raises(BadTensor) as error:
        pipeline.find_tracks(hits)
    assert says in str(error.value)


def test_hits_of_another_type_are_refused(pipeline):
    with pytest.raises(BadTensor, match="hits is float64; expected float32"):
        pipeline.find_tracks(unseen(0).hits[:5].astype(np.float64))


def test_what_a_conversion_would_lose_is_refused(pipeline):
    hits = np.full((4, 3), 0.25, dtype=np.float32)
    masked = np.ma.array(hits, mask=hits < 0)
    assert len(pipeline.find_tracks(masked)) == 4
    masked[2, 1] = np.ma.masked
    for given, says in (
        (masked, "hits has 1 masked values; leave those hits out"),
        (torch.from_numpy(hits).to_sparse(), r"hits is a sparse tensor; use hits\.to_dense"),
        (torch.from_numpy(hits).to(torch.bfloat16), "BFloat16"),
        (torch.from_numpy(hits).to(torch.complex64), "hits is complex64; expected float32"),
        (hits.astype("M8[s]"), r"hits is datetime64\[s\]; expected float32"),
        (hits.astype(object), "hits is object; expected float32"),
        (hits.astype(">f4"), "hits is >f4; expected float32"),
        (hits.tolist(), "hits is float64; expected float32"),
        ([[1.0, 2.0], [3.0]], "hits is not an array"),
        (None, "hits is object; expected float32"),
    ):
        with pytest.raises(BadTensor, match=says) as caught:
            pipeline.find_tracks(given)
        assert "\n" not in str(caught.value)
    tensor = torch.from_numpy(hits).requires_grad_()
    assert len(pipeline.find_tracks(tensor)) == 4


def test_a_network_that_answers_something_else_is_named(pipeline):
    def flat(hits, *edges):
        return hits[:, 0]

    def nan(hits):
        return pipeline.embed(hits) * float("nan")

    hits = unseen(0).hits[:50]
    for broken, says in (
        ({"embed": flat}, r"the embedding has shape \[50\]; expected \[50, D\]"),
        ({"embed": nan}, "the embedding has a NaN"),
        ({"filter": flat}, r"filter gave shape \[50\]; expected one logit for \d+ edges"),
        ({"gnn": flat}, r"gnn gave shape \[50\]; expected one logit for \d+ edges"),
    ):
        with pytest.raises(BadTensor, match=says):
            replace(pipeline, **broken).find_tracks(hits)


@pytest.mark.parametrize("shape", [(4, 2), (4,), (2, 3, 1)])
def test_hits_of_another_shape_are_refused(pipeline, shape):
    with pytest.raises(ValueError, match=r"\[N, 3\]"):
        pipeline.find_tracks(np.zeros(shape, dtype=np.float32))


def test_a_missing_and_a_broken_file_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"embed/1/model\.pt"):
        Pipeline.load(tmp_path)
    for name in NETWORK_NAMES:
        (tmp_path / name / "1").mkdir(parents=True)
        (tmp_path / name / "1" / "model.pt").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"embed/1/model\.pt"):
        Pipeline.load(tmp_path)
