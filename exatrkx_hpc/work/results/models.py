"""The models that made results: the version and the configuration of every model of a route."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

_DIGITS: Final = 12


@dataclass(frozen=True, kw_only=True)
class Served:
    """The `version` of each requested model, comma-separated, and the state of every model of the route, by name.

    A state is `version VERSION, configuration DIGEST`. Both are empty where the server does not tell them.
    """

    version: str = ""
    models: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The digest of all models of the route, 12 hexadecimal digits; empty if they are unknown."""
        return digest_of(dict(self.models)) if self.models else ""


def changes(former: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return how two states of a route differ, one line; empty if they are equal or one is unknown."""
    if not former or not now:
        return ""
    names = dict.fromkeys((*former, *now))
    return "; ".join(
        f"{name} was {former.get(name, 'absent')} and is {now.get(name, 'absent')}"
        for name in names
        if former.get(name) != now.get(name)
    )


def digest_of(value: object) -> str:
    """Return a digest of JSON values, 12 hexadecimal digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:_DIGITS]
