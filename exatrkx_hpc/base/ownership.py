"""Who answers at an endpoint: the farm, the job and the balancer, as its header of each answer says."""

from __future__ import annotations

import hashlib
import re
import secrets
from dataclasses import dataclass
from typing import Final

#: Header of each answer of a balancer: whose the balancer is, `FARM/JOB/INSTANCE`. A retry inside the balancer or a
#: stranger's balancer behind it may repeat the header; the first value counts.
ENDPOINT_HEADER: Final = "exatrkx-endpoint"

_FORM: Final = re.compile(r"([A-Za-z0-9._-]+)/([A-Za-z0-9._-]+)/([A-Za-z0-9]+)", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class EndpointId:
    """The balancer of a job; two farms never share `farm`, and each start of a balancer has its own `instance`."""

    farm: str
    job: str
    instance: str

    def __str__(self) -> str:
        """Return `FARM/JOB/INSTANCE`, the value of ENDPOINT_HEADER."""
        return f"{self.farm}/{self.job}/{self.instance}"

    def same_job(self, other: EndpointId | None) -> bool:
        """Return whether both are balancers of one job; a job's new balancer is as good as the one before it."""
        return other is not None and (self.farm, self.job) == (other.farm, other.job)


def parse_endpoint_id(text: str) -> EndpointId | None:
    """Return the balancer that a value of ENDPOINT_HEADER names; None for any other text."""
    found = _FORM.fullmatch(text.partition(",")[0].strip())
    return EndpointId(farm=found[1], job=found[2], instance=found[3]) if found else None


def farm_id(name: str, run_root: str) -> str:
    """Return the name of a farm that no other farm has: two users may call theirs the same, in two run roots."""
    return f"{name}-{hashlib.sha256(run_root.encode()).hexdigest()[:8]}"


def new_instance() -> str:
    """Return a random ID for a balancer that starts."""
    return secrets.token_hex(6)
