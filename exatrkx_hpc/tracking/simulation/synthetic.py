"""Truth-labelled synthetic events: generate them from a seed, write them as text, read them back."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from io import StringIO
from pathlib import Path
from typing import Protocol

import numpy as np

from exatrkx_hpc.tracking.constants import PHI_SCALE, R_SCALE_MM, Z_SCALE_MM, Float32, Int64, Names
from exatrkx_hpc.tracking.simulation.detector import (
    DEFAULT_GEOMETRY,
    Float64,
    Geometry,
    draw_noise,
    draw_tracks,
    propagate,
)

#: About 2,000 hits, the event size for which the shipped networks are trained.
DEFAULT_TRACKS = 180
DEFAULT_NOISE = 0.10
TRUTH_HEADER = "particle,pt,eta"
TRUTH_FOLDER = "truth"


@dataclass(frozen=True, kw_only=True)
class TruthEvent:
    """One event with its truth, in any order: row i of every array belongs to hit i.

    `hits` float32 `[N, 3]` (r / 3000 mm, phi / pi, z / 400 mm); `particle` int64 `[N]`, or uint64 if a number
    needs it, 0 for noise; `pt` float32 `[N]` in GeV and `eta` float32 `[N]` of the hit's particle, 0 for noise.
    """

    hits: Float32
    particle: Names
    pt: Float32
    eta: Float32


class Source(Protocol):
    """A function that makes an event of `n_tracks` particles from `rng`: `generate_event`, `acts.simulate_event`."""

    def __call__(self, rng: np.random.Generator, *, n_tracks: int) -> TruthEvent:
        """Return one event; the same state of `rng` gives the same event."""


def generate_event(
    rng: np.random.Generator,
    *,
    n_tracks: int = DEFAULT_TRACKS,
    noise_fraction: float = DEFAULT_NOISE,
    geometry: Geometry = DEFAULT_GEOMETRY,
) -> TruthEvent:
    """Return one event of `n_tracks` particles; `noise_fraction` is the mean share of noise among its hits.

    The same state of `rng` gives the same event. Particles leave hits only on their way out, so the radius
    orders the hits of a track. Raises ValueError for a number out of range.
    """
    if n_tracks < 0 or not 0.0 <= noise_fraction < 1.0:
        raise ValueError(f"n_tracks is {n_tracks} and noise_fraction {noise_fraction}: give >= 0 and [0, 1)")
    tracks = draw_tracks(rng, n_tracks, geometry=geometry)
    owner, place = propagate(rng, tracks, geometry=geometry)
    n_noise = int(rng.poisson(max(len(owner), 1) * noise_fraction / (1.0 - noise_fraction)))
    place = np.concatenate([place, draw_noise(rng, n_noise, geometry=geometry)])
    particle = np.concatenate([owner + 1, np.zeros(n_noise, dtype=np.int64)])
    return shuffled_event(rng, particle, place, pt=tracks.pt, eta=tracks.eta)


def shuffled_event(
    rng: np.random.Generator, particle: Int64, place: Float64, *, pt: Float64, eta: Float64
) -> TruthEvent:
    """Return the hits at `place` `[N, 3]` (r mm, phi rad, z mm) as an event, in random order.

    `particle` `[N]` numbers the particles from 1, noise is 0; `pt` and `eta` `[T]` belong to particles 1 to T.
    """
    order = rng.permutation(len(particle))
    particle, (r, phi, z) = particle[order], place[order].T
    phi = np.remainder(phi + np.pi, 2 * np.pi) - np.pi
    hits = np.stack([r / R_SCALE_MM, phi / PHI_SCALE, z / Z_SCALE_MM], axis=1)
    return TruthEvent(
        hits=hits.astype(np.float32),
        particle=particle,
        # Noise is particle 0 and takes the last entry.
        pt=np.append(pt, 0.0)[particle - 1].astype(np.float32),
        eta=np.append(eta, 0.0)[particle - 1].astype(np.float32),
    )


def hits_text(event: TruthEvent) -> str:
    """Return the hits as the service's CSV: one hit per line, three columns, no header, full float32 precision."""
    return _table(event.hits, "%.9g")


def truth_text(event: TruthEvent) -> str:
    """Return the truth as CSV with the header `particle,pt,eta`, one hit per line in the order of the hits."""
    rows = zip(event.particle.tolist(), event.pt.tolist(), event.eta.tolist(), strict=True)
    return TRUTH_HEADER + "\n" + "".join(f"{particle},{pt:.9g},{eta:.9g}\n" for particle, pt, eta in rows)


def parse_event(hits: str, truth: str) -> TruthEvent:
    """Return the event of a hits text and a truth text; the inverse of `hits_text` and `truth_text`.

    Raises ValueError when a text is not such a table, or when the numbers of hits differ.
    """
    return with_truth(_parse(hits).astype(np.float32), truth)


def with_truth(hits: Float32, truth: str) -> TruthEvent:
    """Return the event of hits `[N, 3]` and the text of their truth; particle numbers are exact to 64 bits.

    Raises ValueError when the truth is not such a table (with the number of an invalid line), or when it has another
    number of hits.
    """
    header, *lines = truth.removeprefix("\ufeff").rstrip().split("\n")
    if header.strip() != TRUTH_HEADER:
        raise ValueError(f"the truth starts with {header[:40]!r}, not with the header {TRUTH_HEADER!r}")
    if len(hits) != len(lines):
        raise ValueError(f"{len(hits)} hits but {len(lines)} rows of truth; the files are not of one event")
    rows = [_truth_row(line, place) for place, line in enumerate(lines, start=2)]
    return TruthEvent(
        hits=hits,
        particle=_names([particle for particle, _, _ in rows]),
        pt=np.array([pt for _, pt, _ in rows], dtype=np.float32),
        eta=np.array([eta for _, _, eta in rows], dtype=np.float32),
    )


def _truth_row(line: str, place: int) -> tuple[int, float, float]:
    values = [value.strip() for value in line.split(",")]
    if len(values) != 3:
        raise ValueError(f"line {place} of the truth has {len(values)} columns instead of 3")
    particle, pt, eta = values
    try:
        if "_" in line or not line.isascii():  # which float() and int() would accept
            raise ValueError(f"{line[:40]!r} holds more than numbers")
        return _particle(particle), float(pt), float(eta)
    except (ValueError, ArithmeticError) as error:
        raise ValueError(f"line {place} of the truth: {error}") from error


def _particle(text: str) -> int:
    """Return a particle's exact number; a text in float notation is accepted only below 2^53, where it is exact."""
    if re.fullmatch("[+-]?[0-9]{1,400}", text):
        return int(text)
    number = float(text)
    if abs(number) >= 2**53:
        raise ValueError(f"the particle {text[:40]!r} is written as a float, which is not exact from 2^53 on")
    if not number.is_integer() or Decimal(text) != int(number):
        raise ValueError(f"the particle {text[:40]!r} is not an integer; noise is particle 0")
    return int(number)


def _names(numbers: list[int]) -> Names:
    try:
        return np.array(numbers, dtype=np.int64)
    except OverflowError:
        pass
    try:
        if min(numbers) >= 0:
            return np.array(numbers, dtype=np.uint64)
    except OverflowError:
        pass
    worst = next(number for number in numbers if not -(2**63) <= number < 2**63)
    raise ValueError(
        f"line {numbers.index(worst) + 2} of the truth: the particle {worst} does not fit into 64 bits"
        + (", beside negative ones" if worst < 2**64 else "")
    )


def read_event(path: Path) -> TruthEvent:
    """Return the event at `FOLDER/NAME.csv` with its truth from `FOLDER/truth/NAME.csv`.

    Raises OSError when a file cannot be read, ValueError when it cannot be parsed.
    """
    return parse_event(path.read_text(encoding="utf-8-sig"), truth_of(path).read_text(encoding="utf-8-sig"))


def truth_of(path: Path) -> Path:
    """Return the path of the truth of the event at `path`."""
    return path.parent / TRUTH_FOLDER / path.name


def write_events(
    folder: Path,
    *,
    events: int,
    tracks: int = DEFAULT_TRACKS,
    seed: int = 0,
    source: Source = generate_event,
    write: Callable[[str, np.ndarray], None] | None = None,  # type: ignore[type-arg]
    on_progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Write `folder/evt_000000.csv` … and the truth in `folder/truth/`, each file atomically.

    If `write(name, hits)` is given, it writes the hits instead, in its own format.

    The same `source`, `tracks` and `seed` give the same files; with a larger `events`, the first files stay the same.
    `on_progress(stage, done, total)` is called after each event. Raises OSError, ValueError.
    """
    (folder / TRUTH_FOLDER).mkdir(parents=True, exist_ok=True)
    for number in range(events):
        event = source(np.random.default_rng([seed, number]), n_tracks=tracks)
        name = f"evt_{number:06d}"
        # Write the truth first, so that every existing event has its truth.
        _write_whole(folder / TRUTH_FOLDER / f"{name}.csv", truth_text(event))
        if write is None:
            _write_whole(folder / f"{name}.csv", hits_text(event))
        else:
            write(name, event.hits)
        if on_progress:
            on_progress("events", number + 1, events)


def _table(rows: np.ndarray, form: str | list[str]) -> str:  # type: ignore[type-arg]
    out = StringIO()
    np.savetxt(out, rows, fmt=form, delimiter=",")
    return out.getvalue()


def _parse(text: str) -> np.ndarray:  # type: ignore[type-arg]
    if not text.strip():
        return np.empty((0, 3))
    table = np.loadtxt(StringIO(text), delimiter=",", ndmin=2)
    if table.shape[1] != 3:
        raise ValueError(f"{table.shape[1]} columns instead of 3")
    return table


def _write_whole(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(text)
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
