"""Units of hits: check for r/3000 mm, phi/pi, z/400 mm, and identify other units.

A model takes other units without a word and finds other tracks in them. What can be told is told from the extent of
the hits: no tracker reaches 3 m in r and 1.2 m in z, but one of 1 m and 3 m does, read as if metres were r/3000 mm.
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

#: Millimetres of a unit: of r and z in the service's units, and of the others for both.
_SERVICE_MM: Final = (3000.0, 400.0)
_MM: Final = MappingProxyType({"metres": 1000.0, "centimetres": 10.0, "millimetres": 1.0})
_TURN: Final = MappingProxyType({"radians": 2 * np.pi, "degrees": 360.0, "pi": 2.0})

#: What a tracker may measure, in mm: the radius of its innermost hits, its outer radius, half its length. The
#: silicon trackers of ATLAS, CMS, their upgrades, TrackML and the Open Data Detector begin at 25 to 39 mm and reach
#: 1.0 to 1.2 m and 2.7 to 3.0 m; a chamber of gas outside of them, in the service's units, stays without a word.
_INNERMOST: Final = (15.0, 400.0)
_OUTERMOST: Final = (50.0, 1350.0)
_LONGEST: Final = 3600.0

#: Hits that are looked at, of so many events.
HITS: Final = 20_000
EVENTS: Final = 10


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """What the units of hits look like, where they are not the service's: `said` why, and as what they would fit."""

    said: str
    length: Length | None = None
    angle: Angle | None = None

    @property
    def flags(self) -> str:
        """What `events convert` would have to be told."""
        words = [f"--scale {self.length}"] if self.length else []
        return " ".join([*words, *([f"--phi {self.angle}"] if self.angle else [])])

    def __str__(self) -> str:
        return (
            f"{self.said}, not r/3000 mm, phi/pi, z/400 mm; convert them with "
            f"'exatrkx-hpc events convert EVENTS NEW {self.flags}'"
        )


@dataclass
class Sample:
    """The hits of the first events, until there are `HITS` of them or `EVENTS` events."""

    _hits: list[Float32] = field(default_factory=list)
    _number: int = 0

    @property
    def full(self) -> bool:
        """Whether it has enough."""
        return len(self._hits) >= EVENTS or self._number >= HITS

    def add(self, hits: Float32) -> None:
        """Take the hits `[N, 3]` of an event, if it has not enough; of a large one some."""
        if len(hits) and not self.full:
            some = hits[:: max(1, len(hits) // HITS)]
            self._hits.append(some)
            self._number += len(some)

    def doubt(self) -> Doubt | None:
        """Return what the units look like; None for those of the service, or when it cannot be told."""
        return doubt(np.concatenate(self._hits)) if self._hits else None

    def strange(self) -> str:
        """Say what no tracker has, read in the service's units; nothing of what one may have."""
        if not self._hits:
            return ""
        far, along = _reach(np.concatenate(self._hits))
        far_mm, along_mm = far * _SERVICE_MM[0], along * _SERVICE_MM[1]
        if _OUTERMOST[0] / 2 <= far_mm <= _OUTERMOST[1] and along_mm <= _LONGEST:
            return ""
        return f"z reaches {along:.4g} ({along_mm:.4g} mm) and r {far:.4g} ({far_mm:.4g} mm), which fits no tracker"


class HitSample:
    """A `Sample` of events of ExaTrkX, for `Workload.sampler`."""

    def __init__(self) -> None:
        """Have seen nothing yet."""
        self._sample = Sample()

    @property
    def full(self) -> bool:
        """Whether it has enough."""
        return self._sample.full

    def add(self, inputs: Tensors) -> None:
        """Take the hits of an event."""
        self._sample.add(inputs["hits"])

    def doubt(self) -> str:
        """Return what the units look like, and what to do; nothing for the service's, or when it cannot be told."""
        found = self._sample.doubt()
        return str(found) if found else ""


def doubt(hits: Float32) -> Doubt | None:
    """Return what the units of hits `[N, 3]` look like; None for the service's, or when it cannot be told."""
    if not len(hits):
        return None
    # One hit in a hundred may be anywhere: noise, a wrong one, a particle from far outside.
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
    """Return how far most hits reach in r, and in z on either side."""
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
    """Return what turns hits `[N, 3]` (r, phi, z in this order) of these units into r/3000 mm, phi/pi, z/400 mm.

    None leaves r and z, or phi, as they are; an angle beyond a half turn comes back into -1 to 1.
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
