"""A scan inside a job: the command that the job runs beside its servers, on its first node."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import InputError, MissingComponent
from exatrkx_hpc.config.resolve import ENVIRONMENT_PREFIX
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.launch.in_job import own_words
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.words import Var, Word
from exatrkx_hpc.measure import perf_analyzer

#: The scan has its own endpoint on free ports, so that it cannot collide with another job of the node.
_OWN_ENDPOINT: Final = {
    f"{ENVIRONMENT_PREFIX}BALANCER_GRPC_PORT": "0",
    f"{ENVIRONMENT_PREFIX}BALANCER_HTTP_PORT": "0",
    f"{ENVIRONMENT_PREFIX}MONITOR_PROMETHEUS": "false",
}


def bench_command(farm: Farm, events: Path, *, sources: Mapping[str, str] | None = None) -> tuple[Word, ...]:
    """Return the command that measures the servers of its own job and writes `bench/` into the run directory.

    The command passes the job's values as environment variables, so it needs no farm.toml. The scan varies only the
    concurrency. Raises InputError without events, MissingComponent without perf_analyzer or matplotlib.
    """
    if not events.exists():
        raise InputError(f"{events} does not exist; choose a folder of events, or a *.json, with --events")
    perf_analyzer.find(FarmDir.of(farm).perf_analyzer, farm.bench.perf_analyzer)
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingComponent("the figures of the job need matplotlib; pip install 'exatrkx-hpc[plots]'")
    return own_words(
        farm,
        (
            *("bench", "--job", Var("SLURM_JOB_ID")),
            *("--events", str(events.absolute()), "--out", (Var("run_dir"), "/bench"), "--wait", "3600"),
        ),
        sources=sources,
        variables=_OWN_ENDPOINT,
    )
