"""Provenance of the shipped weights, and whether a training here should reproduce them."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

import torch

from exatrkx_hpc.tracking.constants import DEFAULT_SEED


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Everything that determines the values of trained weights, besides the code.

    `torch` is a release without its local part after "+". `pyacts` is a release; it is empty if the events come from
    the numpy generator. `instructions` is PyTorch's name for the capability of the CPU.
    """

    seed: int
    torch: str
    instructions: str
    pyacts: str

    @classmethod
    def here(cls, *, seed: int, acts: bool) -> Provenance:
        """Return the provenance of a training on this machine; `acts` says whether ACTS makes the events."""
        return cls(
            seed=seed,
            torch=torch.__version__.partition("+")[0],
            instructions=torch.backends.cpu.get_cpu_capability(),
            pyacts=importlib.metadata.version("pyacts") if acts else "",
        )

    def differences(self, other: Provenance) -> list[str]:
        """Return the differences from `other`, such as "seed 1 instead of 2"; empty if equal weights are expected."""
        return [
            f"{name} {getattr(self, name) or 'not used'} instead of {getattr(other, name) or 'none'}"
            for name in self.__dataclass_fields__
            if getattr(self, name) != getattr(other, name)
        ]


#: The weights in the shipped model repository.
SHIPPED = Provenance(seed=DEFAULT_SEED, torch="2.13.0", instructions="AVX512", pyacts="48.1.0")
SHIPPED_SHA256 = "d9e609daa195ebbc31bee43175af916d882456d41ffa784f4aea02ce3545045b"


def compare(sha256: str, made: Provenance, *, quick: bool) -> str:
    """Return one line that says whether weights with this hash are the shipped ones, and if not, why."""
    if sha256 == SHIPPED_SHA256:
        return "these are the shipped weights"
    reasons = (["--quick"] if quick else []) + made.differences(SHIPPED)
    if reasons:
        return f"not the shipped weights, as expected: {', '.join(reasons)}"
    return "not the shipped weights, and nothing known explains it: was the code of the training changed?"
