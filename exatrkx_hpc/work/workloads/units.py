"""Units of hits: check for r/3000 mm, phi/pi, z/400 mm, and identify other units.

A model accepts other units without an error and finds wrong tracks. The check uses the extent of the hits. For example,
a tracker of 1 m in r and 3 m in z, given in metres, reads as 3 m and 1.2 m in the service's units; no tracker has that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.work.workloads.base import Tensors

Float32 = NDArray[np.float32]

Length = Literal["metres", "centimetres", "millimetres"]
Angle = Literal["radians", "degrees", "pi"]

#: Millimetres per unit: for r and z in the service's units, and for both in other units.
_SERVICE_MM: Final = (3000.0, 400.0)
_MM: Final = MappingProxyType({"metres": 1000.0, "centimetres": 10.0, "millimetres": 1.0})
_TURN: Final = MappingProxyType({"radians": 2 * np.pi, "degrees": 360.0, "pi": 2.0})

#: Plausible sizes of a tracker, in mm: radius of the innermost hits, outer radius, half length. The silicon trackers
#: of ATLAS, CMS, their upgrades, TrackML and the Open Data Detector begin at 25 to 39 mm and reach 1.0 to 1.2 m in
#: r and 2.7 to 3.0 m in z. A gas detector outside of them, in the service's units, causes no warning.
_INNERMOST: Final = (15.0, 400.0)
_OUTERMOST: Final = (50.0, 1350.0)
_LONGEST: Final = 3600.0

#: The sample is complete after this many hits or events.
HITS: Final = 20_000
EVENTS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Hits that seem to have other units: `said` is the reason, `length` and `angle` are the units that would fit."""

    said: str
    length: Length | None = None
    angle: Angle | None = None

    @property
    def flags(self) -> str:
        """The options of `events convert` for these units."""
        words = [f"--scale {self.length}"] if self.length else []
        return " ".join([*words, *([f"--phi {self.angle}"] if self.angle else [])])

    def __str__(self) -> str:
        return (
            f"{self.said}, not r/3000 mm, phi/pi, z/400 mm; convert them with "
            f"'exatrkx-hpc events convert EVENTS NEW {self.flags}'"
        )


@dataclass
class Sample:
    """Hits of the first events, until there are `HITS` hits or `EVENTS` events."""

    _hits: list[Float32] = field(default_factory=list)
    _number: int = 0

    @property
    def full(self) -> bool:
        """Whether the sample is complete."""
        return len(self._hits) >= EVENTS or self._number >= HITS

    def add(self, hits: Float32) -> None:
        """Add the hits `[N, 3]` of an event unless the sample is complete; of a large event, add only some hits."""
        if len(hits) and not self.full:
            some = hits[:: max(1, len(hits) // HITS)]
            self._hits.append(some)
            self._number += len(some)

    def doubt(self) -> Doubt | None:
        """Return the doubt about the units; None for the service's units and for units that cannot be identified."""
        return doubt(np.concatenate(self._hits)) if self._hits else None

    def strange(self) -> str:
        """Return the extent of the hits in the service's units if it fits no tracker, else an empty text."""
        if not self._hits:
            return ""
        far, along = _reach(np.concatenate(self._hits))
        far_mm, along_mm = far * _SERVICE_MM[0], along * _SERVICE_MM[1]
        if _OUTERMOST[0] / 2 <= far_mm <= _OUTERMOST[1] and along_mm <= _LONGEST:
            return ""
        return f"z reaches {along:.4g} ({along_mm:.4g} mm) and r {far:.4g} ({far_mm:.4g} mm), which fits no tracker"


class HitSample:
    """A `Sample` of ExaTrkX events, for `Workload.sampler`."""

    def __init__(self) -> None:
        """Begin with an empty sample."""
        self._sample = Sample()

    @property
    def full(self) -> bool:
        """Whether the sample is complete."""
        return self._sample.full

    def add(self, inputs: Tensors) -> None:
        """Add the hits of an event."""
        self._sample.add(inputs["hits"])

    def doubt(self) -> str:
        """Return the doubt about the units and the remedy; empty without a doubt."""
        found = self._sample.doubt()
        return str(found) if found else ""


def doubt(hits: Float32) -> Doubt | None:
    """Return the doubt about the units of hits `[N, 3]`; None for the service's and for unidentified units."""
    if not len(hits):
        return None
    # Quantiles, because one hit in a hundred may be anywhere: noise, a wrong hit, a particle from far outside.
    far, along = _reach(hits)
    length = _length(float(np.quantile(hits[:, 0], 0.01)), far, along)
    angle = _angle(hits[:, 1])
    said = []
    if length:
        said.append(f"z reaches {along:.4g} and r {far:.4g}: these look like {length}")
    if angle:
        as_what = "phi/pi from 0 to 2" if angle == "pi" else angle
        said.append(f"phi reaches {float(np.quantile(np.abs(hits[:, 1]), 0.99)):.4g}: this looks like {as_what}")
    return Doubt(said=", ".join(said), length=length, angle=angle) if said else None


def _reach(hits: Float32) -> tuple[float, float]:
    """Return the 99% quantiles of |r| and |z|."""
    far, along = (float(np.quantile(np.abs(hits[:, column]), 0.99)) for column in (0, 2))
    return far, along


def _length(near: float, far: float, along: float) -> Length | None:
    if far * _SERVICE_MM[0] <= _OUTERMOST[1]:
        return None
    fits: dict[Length, float] = {}
    names: tuple[Length, ...] = ("metres", "centimetres", "millimetres")
    for name in names:
        size = _MM[name]
        inside = _INNERMOST[0] <= near * size <= _INNERMOST[1] and along * size <= _LONGEST
        if inside and _OUTERMOST[0] <= far * size <= _OUTERMOST[1]:
            fits[name] = abs(np.log(near * size / 30.0))
    return min(fits, key=lambda name: fits[name], default=None)


def _angle(phi: Float32) -> Angle | None:
    low, high = float(np.quantile(phi, 0.01)), float(np.quantile(phi, 0.99))
    largest = max(-low, high)
    if largest <= 1.02:
        return None
    if largest > 6.4:
        return "degrees" if largest <= 361.0 else None
    return "pi" if low >= 0.0 and high <= 2.01 else "radians"


def converted(length: Length | None, angle: Angle | None) -> Callable[[Float32], Float32]:
    """Return a function that converts hits `[N, 3]` (r, phi, z) from these units to r/3000 mm, phi/pi, z/400 mm.

    None leaves r and z, or phi, unchanged. Angles beyond half a turn are wrapped into -1 to 1.
    """

    def convert(hits: Float32) -> Float32:
        wide = hits.astype(np.float64)
        if length:
            wide[:, (0, 2)] *= np.divide(_MM[length], _SERVICE_MM)
        if angle:
            phi = wide[:, 1] * (2.0 / _TURN[angle])
            wide[:, 1] = np.where(np.abs(phi) > 1.0, np.remainder(phi + 1.0, 2.0) - 1.0, phi)
        with np.errstate(over="ignore"):
            return wide.astype(np.float32)

    return convert if length or angle else lambda hits: hits
