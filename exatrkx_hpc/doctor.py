"""Is everything here that a farm needs? Each thing is looked for, found or not, with what to do if not."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.config import Farm
from exatrkx_hpc.errors import ExatrkxError
from exatrkx_hpc.fleet.nginx import find_nginx
from exatrkx_hpc.launch.batch import render_job
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.slurm import Slurm
from exatrkx_hpc.launch.triton import embedded_triton
from exatrkx_hpc.models.check import check
from exatrkx_hpc.ports import port_trouble
from exatrkx_hpc.process import find_program

_ENGINE_PROGRAMS = {"shifter": "shifter", "podman-hpc": "podman-hpc", "podman": "podman", "apptainer": "apptainer"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that the farm needs: its name, whether it is there, what was found, what to do if it is not."""

    what: str
    ok: bool
    found: str
    remedy: str = ""


def examine(farm: Farm, plan: Callable[[], FarmPlan]) -> Iterator[Finding]:
    """Yield a finding for each thing that `farm` needs, in the order in which a farm meets them."""
    yield _run_root(Path(farm.run_root))
    yield _models(Path(farm.server.model_repository), farm)
    if farm.cluster.scheduler == "slurm":
        yield from _slurm(plan)
    elif farm.server.engine == "none" and farm.server.triton == "tritonserver":
        yield _asked("tritonserver", lambda: str(embedded_triton(Path(farm.run_root, "triton"), lay_out=False).server))
    yield from _engine(farm)
    yield _asked("nginx", find_nginx)
    yield from _endpoint_ports(farm)
    if farm.monitor.prometheus:
        remedy = "install the package 'prometheus', or set monitor.prometheus to false"
        yield _asked("prometheus", lambda: find_program("prometheus", remedy=remedy))


def _asked(what: str, question: Callable[[], str]) -> Finding:
    """Turn an answer, or the error whose message already says what to do, into a finding."""
    try:
        return Finding(what=what, ok=True, found=question())
    except ExatrkxError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding(what=what, ok=False, found=found, remedy=remedy)


def _run_root(run_root: Path) -> Finding:
    existing = next(path for path in (run_root, *run_root.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        remedy = "name a folder that you may write to, on a file system that the nodes share"
        return Finding(what="run root", ok=False, found=f"{existing}: {error.strerror}", remedy=f"{remedy} (run_root)")
    free = shutil.disk_usage(existing).free / 2**30
    note = "" if run_root.exists() else ", made by the first deploy"
    return Finding(what="run root", ok=True, found=f"{run_root}{note}, {free:.0f} GiB free")


def _models(repository: Path, farm: Farm) -> Finding:
    if not repository.is_dir() and farm.cluster.scheduler == "local":
        return Finding(what="models", ok=True, found=f"{repository} is made by the first deploy")
    if not repository.is_dir():
        remedy = f"exatrkx-hpc models build --device {farm.server.device} --out {repository}"
        return Finding(what="models", ok=False, found=f"{repository} does not exist", remedy=remedy)
    try:
        faults = check(repository)
    except ExatrkxError as error:
        return Finding(what="models", ok=False, found=str(error), remedy="build the repository again")
    if faults:
        first = faults[0]
        return Finding(what="models", ok=False, found=f"{first.model}: {first.what}", remedy=first.remedy)
    return Finding(what="models", ok=True, found=str(repository))


def _slurm(plan: Callable[[], FarmPlan]) -> Iterator[Finding]:
    remedy = "run this where Slurm's commands are, such as a login node"
    missing = False
    for name in ("sbatch", "squeue", "scancel", "sacct"):
        finding = _asked(name, lambda name=name: find_program(name, remedy=remedy))  # type: ignore[misc]
        missing |= not finding.ok
        yield finding
    if not missing:
        yield _asked("job", lambda: _test_only(render_job(plan())))


def _test_only(script: str) -> str:
    """Ask Slurm whether it would take the job, without submitting it; its words, or LaunchError."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "farm.sbatch")
        path.write_text(script)
        return Slurm().test(path)


def _engine(farm: Farm) -> Iterator[Finding]:
    program = _ENGINE_PROGRAMS.get(farm.server.engine)
    if program is None:
        return
    remedy = f"load its module, or choose another server.engine than {farm.server.engine!r}"
    yield _asked("engine", lambda: find_program(program, remedy=remedy))


def _endpoint_ports(farm: Farm) -> Iterator[Finding]:
    ports = {"grpc_port": farm.balancer.grpc_port, "http_port": farm.balancer.http_port}
    for name, port in ports.items():
        trouble = port_trouble(farm.balancer.host, port) if port else None
        found = f"{farm.balancer.host}:{port or 'any free port'}" + (f": {trouble}" if trouble else "")
        remedy = f"choose another with balancer.{name}, or 0 for any free one" if trouble else ""
        yield Finding(what=f"endpoint {name}", ok=trouble is None, found=found, remedy=remedy)
