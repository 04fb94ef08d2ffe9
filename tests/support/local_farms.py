"""A farm on this machine with a fake Triton that misbehaves on request."""

from __future__ import annotations

from pathlib import Path

from addresses import own_address
from paths import FAKES

from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm

FAKE_TRITON = FAKES / "fake_tritonserver"


def local_farm(run_root: Path, **flags: object) -> Farm:
    repository = run_root / "models"
    (repository / "echo" / "1").mkdir(parents=True, exist_ok=True)
    (repository / "echo" / "config.pbtxt").write_text('name: "echo" backend: "identity"')
    values = {
        "site": "local",
        "run_root": str(run_root).replace("$", "$$"),
        "cluster.local_address": own_address(last=1),
        "server.triton": str(FAKE_TRITON),
        "server.model_repository": str(repository).replace("$", "$$"),
        "server.drain": 0,
        "server.exit_timeout": 2,
        "job.nodes": 1,
        "monitor.trial": False,  # the fake speaks no gRPC
    }
    values.update({name.replace("__", "."): value for name, value in flags.items()})
    return resolve(flags=values).farm
