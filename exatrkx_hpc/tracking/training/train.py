"""Train the stand-in networks on synthetic events: the same seed gives the same weights.

This holds for one instruction set, PyTorch release and event source; others round differently.
"""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from exatrkx_hpc.tracking.constants import (
    DEFAULT_NETWORKS,
    DEFAULT_SEED,
    DEFAULT_SETTINGS,
    DEFAULT_TRAINING,
    NETWORK_NAMES,
    Float32,
    Int64,
    NetworkSettings,
    PipelineSettings,
    TrainingSettings,
)
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges
from exatrkx_hpc.tracking.scoring.graphs import Graph, are_strangers, label_edges, true_edges
from exatrkx_hpc.tracking.simulation.synthetic import Source, TruthEvent, generate_event
from exatrkx_hpc.tracking.training.lessons import Lessons
from exatrkx_hpc.tracking.training.networks import Embed, Filter, Gnn

#: Called as (stage, done, total) after each step.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, kw_only=True)
class Networks:
    """The three trained networks, in evaluation mode."""

    embed: nn.Module
    filter: nn.Module
    gnn: nn.Module


def train(
    *,
    seed: int = DEFAULT_SEED,
    settings: TrainingSettings = DEFAULT_TRAINING,
    networks: NetworkSettings = DEFAULT_NETWORKS,
    pipeline: PipelineSettings = DEFAULT_SETTINGS,
    source: Source = generate_event,
    on_progress: Progress | None = None,
) -> Networks:
    """Return embed, filter and gnn, trained one after the other on events that `source` makes from `seed`.

    The networks are trained for the radius and the cuts of `pipeline`. `on_progress(stage, done, total)` is
    called after every step. Torch's global random state and its number of threads are restored. The training runs in
    one thread, so that the weights do not depend on the number of cores.
    """
    with _one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        embed, judge, gnn = Embed(networks), Filter(networks), Gnn(networks)
        rng, report = np.random.default_rng(seed), on_progress or (lambda stage, done, total: None)
        school = _School(
            rng=rng,
            lessons=Lessons(rng, settings=settings, source=source, report=partial(report, "events")),
            settings=settings,
            pipeline=pipeline,
            report=report,
        )
        school.teach_embed(embed)
        school.teach_filter(judge, embed)
        school.teach_gnn(gnn, judge, embed)
    return Networks(embed=embed.eval(), filter=judge.eval(), gnn=gnn.eval())


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def hash_state(modules: Networks) -> str:
    """Return the sha256 of all weights, as hexadecimal: equal for equal weights, however they are stored."""
    digest = hashlib.sha256()
    for name in NETWORK_NAMES:
        for key, value in sorted(getattr(modules, name).state_dict().items()):
            digest.update(f"{name}.{key} {tuple(value.shape)} {value.dtype}\n".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save(networks: Networks, repository: Path) -> None:
    """Write `repository/{embed,filter,gnn}/1/model.pt` as TorchScript, each file atomically.

    Raises OSError or RuntimeError when a file cannot be written.
    """
    for name in NETWORK_NAMES:
        path = repository / name / "1" / "model.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.part")
        try:
            with warnings.catch_warnings():
                # torch 2.9 and later deprecate TorchScript, but Triton's PyTorch backend reads it.
                warnings.simplefilter("ignore", DeprecationWarning)
                torch.jit.save(torch.jit.script(getattr(networks, name)), str(aside))
            _drop_source_places(aside)
            aside.replace(path)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def _drop_source_places(path: Path) -> None:
    """Remove from a TorchScript file the paths of its source on this machine, which are of no use elsewhere."""
    with zipfile.ZipFile(path) as file:
        kept = [(entry, file.read(entry)) for entry in file.infolist() if not entry.filename.endswith(".debug_pkl")]
    with zipfile.ZipFile(path, "w") as file:
        for entry, data in kept:
            file.writestr(zipfile.ZipInfo(entry.filename), data)


def load(repository: Path) -> Networks:
    """Return the networks of `repository/{embed,filter,gnn}/1/model.pt` on the CPU; the inverse of `save`.

    Raises ValueError or RuntimeError when a file is missing or is not TorchScript.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        files = {name: str(repository / name / "1" / "model.pt") for name in NETWORK_NAMES}
        return Networks(**{name: torch.jit.load(file, map_location="cpu").eval() for name, file in files.items()})


@dataclass(frozen=True, kw_only=True)
class _School:
    """Common data of the three trainings; all random choices come from `rng`, which `lessons` also uses."""

    rng: np.random.Generator
    lessons: Lessons
    settings: TrainingSettings
    pipeline: PipelineSettings
    report: Progress

    def teach_embed(self, embed: nn.Module) -> None:
        steps = self.settings.embed_steps
        losses = (self.embedding_loss(embed, self.lessons.event()) for _ in range(steps))
        self.descend("embed", embed, losses, steps=steps, rate=self.settings.embed_rate)

    def teach_filter(self, judge: nn.Module, embed: nn.Module) -> None:
        steps, positive = self.settings.filter_steps, self.settings.filter_positive
        losses = (_edge_loss(judge, self.candidates(embed, self.lessons.event()), positive) for _ in range(steps))
        self.descend("filter", judge, losses, steps=steps, rate=self.settings.filter_rate)

    def teach_gnn(self, gnn: nn.Module, judge: nn.Module, embed: nn.Module) -> None:
        steps, positive, n = self.settings.gnn_steps, self.settings.gnn_positive, self.settings.graph_events
        graphs = []
        for number in range(n):
            graphs.append(self.filtered(judge, embed, self.lessons.event()))
            self.report("graphs", number + 1, n)
        rounds = np.concatenate([self.rng.permutation(n) for _ in range(-(-steps // n))])[:steps]
        losses = (_edge_loss(gnn, graphs[number], positive) for number in rounds)
        self.descend("gnn", gnn, losses, steps=steps, rate=self.settings.gnn_rate)

    def descend(self, stage: str, module: nn.Module, losses: Iterable[Tensor], *, steps: int, rate: float) -> None:
        """Take one optimiser step per loss; the learning rate rises, then falls to almost 0."""
        optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=rate, total_steps=steps, pct_start=0.15)
        for step, loss in enumerate(losses):
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            schedule.step()
            self.report(stage, step + 1, steps)

    def embedding_loss(self, embed: nn.Module, event: TruthEvent) -> Tensor:
        """Pull neighbours along a track together; push close hits of different particles out of the radius."""
        radius = self.pipeline.radius
        place = embed(torch.from_numpy(event.hits))
        near = _distance(place, true_edges(event))
        anchors = self.rng.permutation(len(event.hits))[: self.settings.anchors]
        close = self.close_pairs(place, anchors)
        far = _distance(place, close[:, are_strangers(event, close)])
        pull = functional.relu(near - self.settings.pull_to * radius).square().sum() / max(len(near), 1)
        push = functional.relu(self.settings.push_to * radius - far).square().sum() / max(2 * len(anchors), 1)
        return self.settings.pull_weight * pull + push

    def close_pairs(self, place: Tensor, anchors: Int64) -> Int64:
        """Return the pairs `[2, P]` of an anchor and a hit close to it, or `max_pairs` of them drawn at random."""
        with torch.no_grad():
            start = torch.from_numpy(anchors)
            near = torch.cdist(place.index_select(0, start), place) < self.settings.push_to * self.pipeline.radius
            pairs: Int64 = near.nonzero().numpy().T
        if pairs.shape[1] > self.settings.max_pairs:
            pairs = pairs[:, self.rng.integers(pairs.shape[1], size=self.settings.max_pairs)]
        return np.stack([anchors[pairs[0]], pairs[1]])

    def candidates(self, embed: nn.Module, event: TruthEvent) -> Graph:
        """Return the candidate edges of an event, as the filter sees them."""
        with torch.no_grad():
            place: Float32 = embed(torch.from_numpy(event.hits)).numpy()
        limits = self.pipeline
        edges = fixed_radius_edges(place, radius=limits.radius, max_neighbours=limits.max_neighbours)
        return label_edges(event, edges, reach=self.settings.reach)

    def filtered(self, judge: nn.Module, embed: nn.Module, event: TruthEvent) -> Graph:
        """Return the edges of an event that the filter lets through, as the graph network sees them."""
        graph = self.candidates(embed, event)
        with torch.no_grad():
            logits = judge(torch.from_numpy(graph.hits), torch.from_numpy(graph.edges)).numpy()
        edges = apply_filter(graph.edges, logits, cut=self.pipeline.filter_cut)
        return label_edges(event, edges, reach=self.settings.reach)


def _distance(place: Tensor, pairs: Int64) -> Tensor:
    a, b = torch.from_numpy(np.ascontiguousarray(pairs))
    step = place.index_select(0, a) - place.index_select(0, b)
    # The gradient of the root is infinite at 0, so two hits in one place would spoil every weight.
    return (step.square().sum(dim=1) + 1e-12).sqrt()


def _edge_loss(module: nn.Module, graph: Graph, positive: float) -> Tensor:
    """Return the mean cross entropy over the edges that matter; true edges have the weight `positive`."""
    weight = torch.from_numpy(graph.weight)
    loss = functional.binary_cross_entropy_with_logits(
        module(torch.from_numpy(graph.hits), torch.from_numpy(graph.edges)).reshape(-1),
        torch.from_numpy(graph.wanted),
        weight=weight,
        pos_weight=torch.tensor(positive),
        reduction="sum",
    )
    return loss / weight.sum().clamp(min=1.0)
