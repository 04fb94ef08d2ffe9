"""Training data: whole small events and wedges of dense ones, rotated at every use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from exatrkx_hpc.tracking.constants import TrainingSettings
from exatrkx_hpc.tracking.simulation.synthetic import Source, TruthEvent, generate_event


class Lessons:
    """A stock of events with about the same number of hits, but very different density, from which training draws.

    All random choices come from `rng`, so its state determines the events. The stock is made at the start, because
    simulating an event costs more than a training step. `report(done, total)` is called after each event of the stock.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        settings: TrainingSettings,
        source: Source,
        report: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        self._rng, self._dense_share = rng, settings.dense_share
        self._small: list[TruthEvent] = []
        self._wedges: list[TruthEvent] = []
        total = settings.small_events + settings.dense_events
        for number in range(settings.small_events):
            maker = generate_event if rng.random() < settings.helix_share else source
            self._small.append(maker(rng, n_tracks=_draw(rng, settings.tracks)))
            report(number + 1, total)
        for number in range(settings.dense_events):
            event = source(rng, n_tracks=_draw(rng, settings.dense_tracks))
            self._wedges += cut_wedges(event, settings.dense_parts, start=rng.uniform(-1.0, 1.0))
            report(settings.small_events + number + 1, total)

    def event(self) -> TruthEvent:
        """Return a random event of the stock, rotated and possibly mirrored, so that events seldom repeat."""
        stock = self._wedges if self._rng.random() < self._dense_share else self._small
        event = stock[int(self._rng.integers(len(stock)))]
        mirror_phi, mirror_z = self._rng.choice([-1.0, 1.0], 2)
        return turned(event, by=self._rng.uniform(-1.0, 1.0), mirror_phi=mirror_phi, mirror_z=mirror_z)


def cut_wedges(event: TruthEvent, parts: int, *, start: float) -> list[TruthEvent]:
    """Return `parts` events, each the hits in an equal share of the full angle; `start` is phi / pi of the first cut.

    A particle that crosses a cut becomes two particles, one in each wedge; both keep its pT and eta.
    """
    part = np.floor(np.mod(event.hits[:, 1] - start, 2.0) * 0.5 * parts).astype(np.int64)
    return [
        TruthEvent(
            hits=event.hits[part == number],
            particle=event.particle[part == number],
            pt=event.pt[part == number],
            eta=event.eta[part == number],
        )
        for number in range(parts)
    ]


def turned(event: TruthEvent, *, by: float, mirror_phi: float, mirror_z: float) -> TruthEvent:
    """Return the event rotated by `by` half turns; a mirror of -1 changes the sign of phi or z first.

    The mirrored event is as likely as the event itself: a mirror in phi swaps the charges, and the detector is
    the same on both sides.
    """
    sides = np.array([1.0, mirror_phi, mirror_z], dtype=np.float32)
    hits = event.hits * sides
    hits[:, 1] = np.mod(hits[:, 1] + np.float32(by + 1.0), np.float32(2.0)) - np.float32(1.0)
    return replace(event, hits=hits, eta=event.eta * np.float32(mirror_z))


def _draw(rng: np.random.Generator, limits: tuple[int, int]) -> int:
    return int(rng.integers(limits[0], limits[1] + 1))
