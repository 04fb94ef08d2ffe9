"""Networks are tried on sample events: answers that no good network gives are told, whatever their shape."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.models.trial import Remark, Sample, simulated_samples, try_networks
from exatrkx_hpc.tracking.constants import PipelineSettings

pytestmark = pytest.mark.slow


torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

SHIPPED = asset("model_repos/exatrkx")
NETWORKS = {name: SHIPPED / name / "1" / "model.pt" for name in ("embed", "filter", "gnn")}
SAMPLES = simulated_samples()[:2]


def load(name: str) -> torch.jit.ScriptModule:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.load(str(NETWORKS[name]))


class Edge(torch.nn.Module):
    """A good edge network, whose answer a subclass spoils."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.network = load(name)


class Sigmoid(Edge):
    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(self.network(hits, edges))


class Flipped(Edge):
    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return -self.network(hits, edges)


class LogSigmoid(Edge):
    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.logsigmoid(self.network(hits, edges))


class Dropout(Edge):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.network(hits, edges))


class AlwaysDropout(Edge):
    """Drops in evaluation mode, too: the function, with its default."""

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(self.network(hits, edges), 0.5, True)


class SomeNaN(Edge):
    """Not a number for the few edges between hits that are close in r."""

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        apart = (hits[edges[0], 0] - hits[edges[1], 0]).abs()
        scores = self.network(hits, edges).reshape(-1)
        return torch.where(apart < 1e-4, torch.log(apart - 1.0), scores)


class Constant(Edge):
    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return torch.full([edges.size(1)], 2.5)


class Shifted(Edge):
    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.network(hits, edges) + 100.0


class Numbered(Edge):
    """Depends on where an edge stands in the list."""

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.network(hits, edges).reshape(-1) + 1e-2 * torch.arange(edges.size(1))


class Guessing(Edge):
    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return 4.0 * torch.sin(1e6 * (hits[edges[0]] + hits[edges[1]]).sum(1))


class Fixed(Edge):
    """What a trace with one size leaves."""

    def forward(self, hits: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return self.network(hits, edges).reshape(7)


class Place(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = load("embed")


class Point(Place):
    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return torch.ones([hits.size(0), 8])


class Near(Place):
    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return 0.01 * self.network(hits)


class Far(Place):
    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return 1e5 * self.network(hits)


class Centred(Place):
    """A norm over the hits of the event, as a batch norm without running statistics."""

    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        places = self.network(hits)
        return places - places.mean(0)


class Random(Place):
    def forward(self, hits: torch.Tensor) -> torch.Tensor:
        return 5.0 * torch.randn([hits.size(0), 8])


def tried(
    folder: Path,
    settings: PipelineSettings = PipelineSettings(),  # noqa: B008 - a frozen value
    *,
    stated: bool = False,
    samples: tuple[Sample, ...] = SAMPLES,
    training: bool = False,
    **modules: torch.nn.Module,
) -> tuple[Remark, ...]:
    """Return the remarks on the shipped networks with some of them replaced."""
    files = dict(NETWORKS)
    for name, module in modules.items():
        files[name] = folder / f"{name}.pt"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.jit.save(torch.jit.script(module.train(training)), str(files[name]))
    return try_networks(files, settings, samples, scores_stated=stated)


PROBABILITIES = PipelineSettings(scores="probabilities")
REFUSED: dict[str, tuple[str, Callable[[], torch.nn.Module], str]] = {
    "probabilities of the filter": ("filter", lambda: Sigmoid("filter"), "seems to give probabilities: all"),
    "probabilities of the gnn": ("gnn", lambda: Sigmoid("gnn"), "seems to give probabilities: all"),
    "flipped filter": ("filter", lambda: Flipped("filter"), "is its sign flipped"),
    "flipped gnn": ("gnn", lambda: Flipped("gnn"), "is its sign flipped"),
    "some NaN": ("filter", lambda: SomeNaN("filter"), "gives a NaN or an infinity for"),
    "constant": ("gnn", lambda: Constant("gnn"), "gives 2.5 for every edge"),
    "all above": ("filter", lambda: Shifted("filter"), "lets every edge pass the cut 0.21"),
    "none above": ("gnn", lambda: LogSigmoid("gnn"), "lets no edge pass the cut 0.75"),
    "dropout always": ("gnn", lambda: AlwaysDropout("gnn"), "differently each time"),
    "point": ("embed", Point, "maps every hit to the same point"),
    "near": ("embed", Near, "100% of all pairs of hits within the radius 1.6"),
    "far": ("embed", Far, "puts no two hits within the radius 1.6"),
    "random": ("embed", Random, "differently each time"),
}


def test_good_networks_are_not_remarked_on(tmp_path: Path) -> None:
    assert tried(tmp_path) == ()
    both = {"filter": Sigmoid("filter"), "gnn": Sigmoid("gnn")}
    assert tried(tmp_path, PROBABILITIES, stated=True, **both) == ()


@pytest.mark.parametrize("case", REFUSED)
def test_answers_that_no_good_network_gives_are_refused(tmp_path: Path, case: str) -> None:
    model, make, says = REFUSED[case]
    remarks = [one for one in tried(tmp_path, **{model: make()}) if one.model == model and one.refused]
    assert any(says in one.what for one in remarks), remarks


@pytest.mark.parametrize(
    ("model", "make", "says"),
    [
        ("embed", Centred, "maps a hit depending on which other hits are in the event"),
        ("filter", lambda: LogSigmoid("filter"), "seems to give logarithms of probabilities"),
        ("filter", lambda: Guessing("filter"), "hardly better than chance"),
        ("gnn", lambda: Numbered("gnn"), "depends on the order of hits or edges"),
    ],
    ids=["batch", "logarithms", "guessing", "order"],
)
def test_what_is_odd_and_may_be_right_is_told(
    tmp_path: Path, model: str, make: Callable[[], torch.nn.Module], says: str
) -> None:
    remarks = [one for one in tried(tmp_path, **{model: make()}) if one.model == model]
    assert [says in one.what and not one.refused for one in remarks] == [True], remarks


def test_a_network_saved_in_training_mode_is_refused(tmp_path: Path) -> None:
    (remark,) = tried(tmp_path, gnn=Dropout("gnn"), training=True)
    assert remark.refused and "was saved in training mode" in remark.what
    assert tried(tmp_path, gnn=Dropout("gnn")) == ()


def test_who_says_what_the_scores_are_is_believed(tmp_path: Path) -> None:
    (remark,) = tried(tmp_path, PipelineSettings(filter_cut=0.6), stated=True, filter=Sigmoid("filter"))
    assert not remark.refused and "seems to give probabilities" in remark.what
    (remark,) = tried(tmp_path, PROBABILITIES, stated=True, filter=Sigmoid("filter"))
    assert (remark.model, remark.refused) == ("gnn", True) and "does not give probabilities" in remark.what


def test_a_cut_that_nothing_passes_is_told(tmp_path: Path) -> None:
    (remark,) = tried(tmp_path, PipelineSettings(gnn_cut=1 - 1e-12))
    assert remark.refused and "lets no edge pass the cut" in remark.what


def test_what_was_traced_for_one_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"gnn: .*gnn\.pt fails on a sample event .* was it traced for another size"):
        tried(tmp_path, gnn=Fixed("gnn"))


def test_events_without_truth_and_small_ones_do(tmp_path: Path) -> None:
    own = (Sample(hits=SAMPLES[0].hits), Sample(hits=SAMPLES[1].hits[:1]), Sample(hits=np.empty((0, 3), np.float32)))
    assert tried(tmp_path, samples=own) == ()
    (remark,) = [one for one in tried(tmp_path, samples=own, gnn=Sigmoid("gnn")) if one.refused]
    assert "seems to give probabilities" in remark.what
