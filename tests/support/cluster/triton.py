"""The program `tritonserver` of the nodes: the embedded Triton of the extra `local`, installed as on a site."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path

from exatrkx_hpc.base.errors import MissingComponent
from exatrkx_hpc.launch.embedded.triton import EmbeddedTriton, embedded_triton


def install(base: Path) -> None:
    """Write `bin/tritonserver` under `base`; without the extra, write none, as on a site without Triton."""
    folder = base / "bin"
    folder.mkdir()
    try:
        triton = embedded_triton(base / "triton")
    except MissingComponent:
        return
    _open_to_all(triton.backend_directory / "python" / "triton_python_backend_stub")
    program = folder / "tritonserver"
    program.write_text(_script(triton))
    program.chmod(0o755)


def _open_to_all(stub: Path) -> None:
    """Let every user run the stub, the process of a Python model.

    After a failed start, Triton 2.51 leaves the stub with mode 0100, so that only its owner may run it.
    """
    shipped = stub.resolve()
    stub.unlink()
    shutil.copyfile(shipped, stub)
    stub.chmod(0o755)


def _script(triton: EmbeddedTriton) -> str:
    # Take only the part that Triton adds to each variable: the rest belongs to this process.
    added = {name: value.split(os.pathsep)[0] for name, value in sorted(triton.environment.items())}
    # The stub is a copy and does not find the wheel's libraries beside it.
    libraries = [added.get("LD_LIBRARY_PATH", ""), str(triton.server.parents[3] / "nvidia_pytriton.libs")]
    added["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, libraries))
    lines = [f'export {name}={shlex.quote(value)}"${{{name}:+:${name}}}"' for name, value in added.items()]
    server, *options = (
        str(triton.server),
        f"--backend-directory={triton.backend_directory}",
        f"--cache-directory={triton.cache_directory}",
        "--allow-gpu-metrics=false",
    )
    words = " ".join(map(shlex.quote, [server, *options]))
    return "\n".join(["#!/usr/bin/env bash", *lines, f'exec {words} "$@"', ""])
