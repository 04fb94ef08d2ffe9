"""The features of a hit in a repository: columns with names, scales and ranges, as data.

The file `features.json` of the repository, which Triton ignores, has a list of columns such as
`{"name": "r", "scale": 3000, "unit": "mm", "least": 0, "most": 10}`. A column holds a quantity divided by its scale,
between `least` and `most`. Without the file a hit is (r / 3000 mm, phi / pi, z / 400 mm).
"""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from exatrkx_hpc.tracking.arrays import AnyArray
from exatrkx_hpc.tracking.constants import PHI_SCALE, R_SCALE_MM, Z_SCALE_MM, Float32

#: The file's name, in the folder of the models.
FEATURES_FILE = "features.json"


@dataclass(frozen=True, kw_only=True)
class Feature:
    """One column of the hits: the quantity `name` in `unit`, divided by `scale`; its values are `least` to `most`."""

    name: str
    least: float
    most: float
    scale: float = 1.0
    unit: str = ""

    def __str__(self) -> str:
        scale = "pi" if math.isclose(self.scale, math.pi) else f"{self.scale:g}"
        return f"{self.name} / {' '.join(filter(None, (scale, self.unit)))}" if self.scale != 1.0 else self.name


@dataclass(frozen=True, kw_only=True)
class Features:
    """The columns of a hit, in their order."""

    columns: tuple[Feature, ...]

    def __len__(self) -> int:
        return len(self.columns)

    @functools.cached_property
    def lowest(self) -> Float32:
        """The lowest valid value of each column, float32 `[F]`."""
        return np.array([column.least for column in self.columns], dtype=np.float32)

    @functools.cached_property
    def highest(self) -> Float32:
        """The highest valid value of each column, float32 `[F]`."""
        return np.array([column.most for column in self.columns], dtype=np.float32)


#: The range of valid hits: r up to 30 m, phi within one turn (plus float32 rounding), z up to 40 m on both sides. No
#: detector is larger, but hits given in millimetres or radians by mistake are.
DEFAULT_FEATURES = Features(
    columns=(
        Feature(name="r", scale=R_SCALE_MM, unit="mm", least=0.0, most=10.0),
        Feature(name="phi", scale=PHI_SCALE, least=-1.001, most=1.001),
        Feature(name="z", scale=Z_SCALE_MM, unit="mm", least=-100.0, most=100.0),
    )
)


def read_features(repository: Path) -> Features:
    """Return the features of a model repository, or the default ones if it has no features file.

    Raises ValueError, which names the file and the fault.
    """
    path = repository / FEATURES_FILE
    return parse_features(path) if path.is_file() else DEFAULT_FEATURES


def parse_features(path: Path) -> Features:
    """Return the features of a file; raises ValueError as `read_features` does."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ValueError(
            f"{path} contains no list of columns; add one entry per column, each with name, least and most"
        )
    columns = tuple(_column(path, number, entry) for number, entry in enumerate(entries))
    names = [column.name for column in columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"{path} has {', '.join(sorted(twice))} twice; name each column once")
    return Features(columns=columns)


def _column(path: Path, number: int, entry: object) -> Feature:
    known = {field.name for field in fields(Feature)}
    if not isinstance(entry, dict) or not {"name", "least", "most"} <= entry.keys() <= known:
        raise ValueError(
            f"{path}: column {number} needs name, least and most, and may have scale and unit; it is {entry!r}"
        )
    words = [entry["name"], entry.get("unit", "")]
    numbers = [entry["least"], entry["most"], entry.get("scale", 1.0)]
    if not all(isinstance(word, str) for word in words) or not entry["name"]:
        raise ValueError(f"{path}: column {number} has a name or a unit that is not text: {entry!r}")
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and math.isfinite(one) for one in numbers):
        raise ValueError(f"{path}: column {entry['name']} has a value that is not a number: {entry!r}")
    least, most, scale = map(float, numbers)
    if least >= most or scale == 0.0:
        raise ValueError(f"{path}: column {entry['name']} needs least below most and a scale other than 0: {entry!r}")
    if entry["name"] == "r" and scale < 0.0:
        raise ValueError(f"{path}: column r needs a scale above 0, because a radius is never negative: {entry!r}")
    return Feature(name=words[0], unit=words[1], least=least, most=most, scale=scale)


def radii_of(hits: AnyArray, features: Features) -> AnyArray:
    """Return a value per hit of `[N, F]` that orders hits by distance from the beam, `[N]`: r, or x^2 + y^2.

    Arrays are of NumPy, torch or CuPy. Raises ValueError for features with neither r nor x and y.
    """
    require_radii(features)
    place = {column.name: (number, column.scale) for number, column in enumerate(features.columns)}
    if "r" in place:
        return hits[:, place["r"][0]]
    x, y = (hits[:, place[name][0]] * place[name][1] for name in ("x", "y"))
    return x * x + y * y  # the square gives the same order


def require_radii(features: Features) -> None:
    """Raise ValueError for features without a radius: they have neither r nor x and y."""
    names = {column.name for column in features.columns}
    if "r" not in names and not {"x", "y"} <= names:
        raise ValueError("edges by radius need a feature r, or x and y")


def features_of(hits: Float32, features: Features) -> tuple[Float32, tuple[str, ...]]:
    """Convert `hits` float32 `[N, 3]` (default features) to these features `[N, F]`; also return the unknown names.

    Known are r, x, y, z in mm, phi, theta in radian, and eta, each divided by its scale. Unknown features get random
    values in their range, the same each time.
    """
    r, phi, z = (column * scale for column, scale in zip(hits.T, (R_SCALE_MM, PHI_SCALE, Z_SCALE_MM), strict=True))
    theta = np.arctan2(r, z)
    known = {
        "r": r,
        "phi": phi,
        "z": z,
        "x": r * np.cos(phi),
        "y": r * np.sin(phi),
        "theta": theta,
        "eta": -np.log(np.tan(np.clip(theta, 1e-6, math.pi - 1e-6) / 2)),
    }
    rng = np.random.default_rng(0)
    columns = [
        known[one.name] / one.scale if one.name in known else rng.uniform(one.least, one.most, len(hits))
        for one in features.columns
    ]
    unknown = tuple(one.name for one in features.columns if one.name not in known)
    return np.stack(columns, axis=1).astype(np.float32), unknown
