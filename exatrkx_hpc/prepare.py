"""Prepare everything that a farm's job needs before it is submitted: folders, plan, models, image, script."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import LaunchError, ModelError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.news import News, Tell, untold
from exatrkx_hpc.base.process import find_program
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.config.values import EARLY_SIGNAL, limit_seconds, signal_lead
from exatrkx_hpc.launch.embedded.triton import embedded_triton
from exatrkx_hpc.launch.engines.common import ask
from exatrkx_hpc.launch.engines.table import engine_of
from exatrkx_hpc.launch.events import ModelsBuilding, ModelsWithoutPackages, PackagesFetching, TimeShort
from exatrkx_hpc.launch.images import pull_image, refuse_missing_image
from exatrkx_hpc.launch.payload import write_payload
from exatrkx_hpc.launch.plan import (
    FarmPlan,
    Tool,
    container_places,
    container_spec,
    engine_faults,
    make_plan,
    python_folder,
)
from exatrkx_hpc.launch.render import render_job
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.run_dirs import of_this_machine
from exatrkx_hpc.launch.schedulers import abilities_of, uses_own_triton
from exatrkx_hpc.launch.secrets import farm_server_key
from exatrkx_hpc.launch.slurm.environment import unused_variables
from exatrkx_hpc.launch.slurm.interactive import allocation
from exatrkx_hpc.launch.slurm.scheduler import REMEDY
from exatrkx_hpc.models.image_env import QUESTION, make_environment, needed, read_answer


def plan(farm: Farm, *, lay_out: bool = True, sources: Mapping[str, str] | None = None) -> FarmPlan:
    """Return the plan of the job of `farm`; `lay_out` also installs the embedded Triton's files.

    `sources` maps each key to the source of its value.
    """
    tool = _embedded_tool(farm, lay_out=lay_out) if uses_own_triton(farm) else None
    return make_plan(farm, tool=tool, sources=sources)


def _embedded_tool(farm: Farm, *, lay_out: bool) -> Tool:
    triton = embedded_triton(FarmDir.of(farm).triton, lay_out=lay_out)
    return Tool(
        triton=str(triton.server),
        arguments=(f"--backend-directory={triton.backend_directory}", f"--cache-directory={triton.cache_directory}"),
        environment=tuple(triton.environment.items()),
    )


def set_up(farm: Farm, tell: Tell, *, trust_run_root: bool, packages: Sequence[str] = (), fused: bool = True) -> None:
    """Create, pull and build everything that a job of `farm` needs; safe to repeat. Raises the errors of the steps.

    `packages` are additional packages for the models' Python. `fused` builds the fused model, too; on a GPU, that
    model needs PyTorch and CuPy in the models' Python.
    """
    require_shared(farm, trust_run_root=trust_run_root)
    make_run_root(farm)
    pull_image(farm, tell)
    make_python_environment(farm, tell, packages=packages, fused=fused)
    build_models(farm, tell, fused=fused)
    require_models(farm, tell)
    write_payload(Path(python_folder(farm)))


def refuse_faults(farm: Farm) -> None:
    """Raise LaunchError for settings that the engine cannot fulfil, or for a missing image."""
    faults = engine_faults(farm)
    if faults:
        more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
        raise LaunchError(f"engine {farm.server.engine}: {faults[0]}{more}")
    refuse_missing_image(farm)


def require_site(farm: Farm, *, interactive: bool, trust_run_root: bool) -> None:
    """Check that a job of `farm` can run on other machines, before anything is written.

    Raises MissingComponent without the Slurm command that starts the job, LaunchError for a run root that only this
    machine sees (unless `trust_run_root`), ModelError for a missing or invalid model repository.
    """
    if not abilities_of(farm).other_machines:
        return
    find_program(_starter(interactive=interactive), remedy=REMEDY)
    require_shared(farm, trust_run_root=trust_run_root)
    require_models(farm, untold)


def require_shared(farm: Farm, *, trust_run_root: bool) -> None:
    """Raise LaunchError if the nodes need the run root but only this machine sees it, unless `trust_run_root`."""
    asked = abilities_of(farm).other_machines and not trust_run_root
    if asked and (why := of_this_machine(Path(farm.run_root))):
        raise LaunchError(
            f"run_root {farm.run_root} {why}; choose a folder on a shared file system, or use --trust-run-root "
            "if the nodes see it"
        )


def short_time(limit: str, signal: str, *, key: str, end: float) -> TimeShort | None:
    """Return a warning if the time limit leaves no time to work, else None.

    `key` is the key of the limit in farm.toml, `signal` the signal that Slurm sends before the limit, and `end` the
    seconds that the job takes to end after the signal.
    """
    seconds, lead = limit_seconds(limit), signal_lead(signal)
    if lead is None or seconds > lead + EARLY_SIGNAL:
        return None
    earliest = lead + EARLY_SIGNAL
    return TimeShort(
        key=key,
        limit=limit,
        signal=signal,
        seconds=seconds,
        earliest=earliest,
        latest=lead,
        least=earliest + end,
    )


def _starter(*, interactive: bool) -> str:
    """Return the Slurm command that starts a farm from this shell."""
    if not interactive:
        return "sbatch"
    return "srun" if allocation(os.environ) is not None else "salloc"


def cautions(farm: Farm, *, interactive: bool) -> Iterator[News]:
    """Yield the warnings for a job on other machines, before it is submitted."""
    if not abilities_of(farm).other_machines:
        return
    if (unused := unused_variables(os.environ, _starter(interactive=interactive))) is not None:
        yield unused
    end = farm.server.drain + farm.server.exit_timeout
    if (short := short_time(farm.job.time, farm.job.signal, key="job.time", end=end)) is not None:
        yield short


def make_run_root(farm: Farm) -> None:
    """Create the folders below the run root; raises LaunchError when that fails."""
    run_root = FarmDir.of(farm)
    try:
        run_root.scripts.mkdir(parents=True, exist_ok=True)
        run_root.python.mkdir(exist_ok=True)
        farm_server_key(run_root)
    except OSError as error:
        raise LaunchError(
            f"run_root {run_root} cannot be made ({error.strerror}); choose a folder that you may write to"
        ) from error


def require_models(farm: Farm, tell: Tell) -> None:
    """Raise ModelError unless the model repository exists and is valid.

    Without Slurm, build a missing repository from the shipped models; on a site, a person builds it once.
    """
    repository = Path(farm.server.model_repository)
    if abilities_of(farm).builds_models:
        build_models(farm, tell)
    if not repository.is_dir() and farm.server.python_environment:
        raise ModelError(
            f"model repository {repository} does not exist; create it and its packages with 'exatrkx-hpc setup'"
        )
    if not repository.is_dir():
        model = "".join(f"--model {name} " for name in shipped_models(farm)[1])
        raise ModelError(
            f"model repository {repository} does not exist; make it with 'exatrkx-hpc models build {model}"
            f"--device {farm.server.device} --instances {farm.server.instances}{_gpus_option(farm)} --out {repository}'"
        )
    from exatrkx_hpc.models.check import check

    if findings := check(repository, places=container_places(farm)):
        first = findings[0]
        raise ModelError(
            f"model repository {repository} would not work: {first.model}: {first.what}; {first.remedy} "
            f"('exatrkx-hpc models check {repository}' lists {len(findings)} error(s))"
        )


def write_script(farm: Farm, what: FarmPlan) -> Path:
    """Write the job's script and the Python code of its models; return the script's path.

    Raises LaunchError when the run root cannot be written.
    """
    # Two deploys may happen in one second.
    name = f"{farm.name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}.sbatch"
    path = FarmDir.of(farm).scripts / name
    try:
        write_payload(Path(python_folder(farm)))
        write_whole(path, render_job(what), mode=0o700)
    except OSError as error:
        raise LaunchError(
            f"cannot write to run_root {farm.run_root}: {error.strerror}; check permissions and free space"
        ) from error
    return path


def build_models(farm: Farm, tell: Tell, *, fused: bool = True) -> None:
    """Build the model repository from the shipped models if it is missing; `fused` includes the fused model."""
    server = farm.server
    repository = Path(server.model_repository)
    if not repository.is_dir():
        building = ModelsBuilding(
            repository=str(repository), device=server.device, instances=server.instances, fused=fused
        )
        tell(building)
        environment = Path(server.python_environment) if server.python_environment else None
        from exatrkx_hpc.models.build import build

        source, models = shipped_models(farm)
        build(
            source,
            repository,
            only=models,
            device=server.device,
            instances=server.instances,
            gpus=gpus_of_server(farm),
            environment=environment if environment is not None and environment.exists() else None,
            fused=fused,
        )


def shipped_models(farm: Farm) -> tuple[Path, tuple[str, ...]]:
    """Return the shipped repository of the clients' workload, and the models of it that a farm serves; empty for all.

    A workload of a user has no shipped models; then they are those of ExaTrkX.
    """
    from exatrkx_hpc.work.workloads.table import workload_of

    clients = farm.clients
    workload = workload_of(clients.model, default=clients.workload, folder=clients.workloads)
    if (asset("model_repos/traccc") / workload.model).is_dir():
        return asset("model_repos/traccc"), (workload.model,)
    return asset("model_repos/exatrkx"), ()


def gpus_of_server(farm: Farm) -> int:
    """Return the number of GPUs of a server of `farm`, at least 1."""
    return farm.server.gpus_per_server or farm.job.gpus_per_node or 1


def _gpus_option(farm: Farm) -> str:
    return f" --gpus {gpus_of_server(farm)}" if farm.server.device == "gpu" and gpus_of_server(farm) > 1 else ""


def make_python_environment(farm: Farm, tell: Tell, *, packages: Sequence[str] = (), fused: bool = True) -> None:
    """Fetch the models' packages for the Python of the image, unless they exist or server.python_environment is empty.

    Reports an existing repository whose Python models do not use them. Raises ModelError when fetching fails.
    """
    server = farm.server
    if not server.python_environment:
        return
    place = Path(server.python_environment)
    if not place.exists():
        spec = container_spec(farm, Tool(triton=server.triton))
        done = ask(engine_of(farm).question(spec, ("python3", "-c", QUESTION)))
        python = read_answer(done.stdout) if done.returncode == 0 else None
        if python is None:
            raise ModelError(
                f"python3 of {server.image or 'this machine'} does not report its version: {done.complaint}; create "
                f"{place} with 'exatrkx-hpc models pack-env', or empty server.python_environment if the image needs "
                "none"
            )
        wanted = (*needed(server.device, fused=fused), *packages)
        tell(PackagesFetching(packages=wanted, python=python.version, environment=str(place)))
        make_environment(place, python, wanted)
    _tell_other_python(Path(server.model_repository), place, tell)


def _tell_other_python(repository: Path, place: Path, tell: Tell) -> None:
    if not repository.is_dir():
        return
    from exatrkx_hpc.models.repository import ENVIRONMENT, read_models

    others = [m.name for m in read_models(repository) if m.backend == "python" and ENVIRONMENT not in m.parameters]
    if others:
        tell(ModelsWithoutPackages(models=tuple(others), repository=str(repository), environment=str(place)))
