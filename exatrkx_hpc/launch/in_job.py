"""Commands of this program that a job runs on its first node, with the configuration of its submission."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from exatrkx_hpc.base.process import own_command
from exatrkx_hpc.config.resolve import as_environment
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.plan import settings_of
from exatrkx_hpc.launch.words import Var, Word


def own_words(
    farm: Farm,
    words: Sequence[Word],
    *,
    sources: Mapping[str, str] | None = None,
    variables: Mapping[str, str] | None = None,
) -> tuple[Word, ...]:
    """Return the command `exatrkx-hpc WORDS` for a job of `farm`.

    The command passes the job's values as environment variables, so it needs no farm.toml. `variables` override them.
    """
    keys = [one.key for one in settings_of(farm, sources)]
    values = {**as_environment(farm, keys), **(variables or {})}
    return ("env", *(f"{name}={value}" for name, value in values.items()), *own_command(), *words)


def monitor_words(farm: Farm, *, sources: Mapping[str, str] | None = None) -> tuple[Word, ...]:
    """Return the command that runs the endpoint of its own job."""
    return own_words(farm, ("monitor", Var("SLURM_JOB_ID")), sources=sources)
