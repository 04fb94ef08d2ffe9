"""Specialise a model repository for a device: a copy with other backends, instances and environment."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from exatrkx_hpc.base.errors import ConfigError, ModelError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.code import gpu_code, network_code, runs_onnx
from exatrkx_hpc.models.contract import Contract, set_contract
from exatrkx_hpc.models.pipeline import is_fused
from exatrkx_hpc.models.replace import replaced
from exatrkx_hpc.models.repository import (
    CONFIG,
    ENVIRONMENT,
    THREADS,
    WEIGHTS,
    Model,
    Places,
    on_host,
    read_config,
    read_models,
    write_config,
)

Device = Literal["cpu", "gpu"]

#: Marks a folder that was built here and may be replaced. Triton ignores files in a repository.
MARK = ".exatrkx-hpc-build.json"


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Settings of a build.

    `instances` is the number of instances of each model (per GPU, for a network on a GPU). `gpus` is the number of
    GPUs of a server; stages that run on the CPU get `instances` instances for each GPU. `threads` is the number of
    CPU threads per instance of a network. `environment` is the Python environment of the Python backend's models, a
    venv folder or a packed archive; None is the server's own `python3`. `fused` says whether the fused model is
    included; it needs PyTorch in that environment and, on a GPU, CuPy. `names` are additional names of the fused
    model; it is served under them even without `fused`. `only` are the models of the build, empty for all. `contract`
    is that of traccc's twin.
    """

    device: Device
    instances: int = 1
    gpus: int = 1
    threads: int = 1
    environment: Path | None = None
    fused: bool = True
    names: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    contract: Contract = "current"


@dataclass(frozen=True, kw_only=True)
class BuiltRepository:
    """A specialised repository: its path, its settings and its models."""

    path: Path
    settings: BuildSettings
    models: tuple[str, ...]


def build(
    source: Path,
    out: Path,
    *,
    device: Device,
    instances: int = 1,
    gpus: int = 1,
    threads: int = 1,
    environment: Path | None = None,
    fused: bool = True,
    names: Sequence[str] = (),
    only: Sequence[str] = (),
    contract: Contract = "current",
    places: Places = None,
) -> BuiltRepository:
    """Write a copy of the repository `source` to `out`, specialised by the settings; see BuildSettings.

    A model that cannot load ends the server. So set `fused` to False if the models' Python environment lacks PyTorch
    or, on a GPU, CuPy; on a GPU the ensemble needs neither. `names` are additional names of the fused model, such as
    `exatrkxcpu` and `exatrkxgpu` of the public C++ backends. `places` are the folders of this machine that the
    server's container mounts, as for `check`; with them, an absolute path of the environment is a path in the
    container. `out` is replaced as a whole, and only if it was built here or is empty. Raises ConfigError for an
    invalid setting, ModelError when the source has a fault or `out` is something else, OutputError when `out` cannot
    be written.
    """
    settings = _valid(
        BuildSettings(
            device=device,
            instances=instances,
            gpus=gpus,
            threads=threads,
            environment=_environment(environment, places) if environment is not None else None,
            fused=fused,
            names=_names(names),
            only=tuple(dict.fromkeys(only)),
            contract=contract,
        )
    )
    _refuse_faults(source, environment=settings.environment, places=places)
    _refuse_foreign(source, out)
    with replaced(out) as fresh:
        shutil.copytree(source, fresh, ignore=shutil.ignore_patterns("__pycache__", MARK))
        _serve_as(fresh, settings.names)
        models = _chosen(read_models(fresh), settings)
        for model in models:
            _specialise(model, settings)
        _mark(fresh, source, settings)
    return BuiltRepository(path=out, settings=settings, models=tuple(model.name for model in models))


def _chosen(models: tuple[Model, ...], settings: BuildSettings) -> tuple[Model, ...]:
    """Return the models of the build, and remove the folders of the others."""
    known = [model.name for model in models]
    if unknown := [name for name in settings.only if name not in known]:
        raise ConfigError(f"the repository has no model {unknown[0]!r}; its models are {', '.join(known)}")
    left_out = [model for model in models if _is_left_out(model, settings)]
    for model in left_out:
        shutil.rmtree(model.folder)
    return tuple(model for model in models if model not in left_out)


def _is_left_out(model: Model, settings: BuildSettings) -> bool:
    if settings.only and model.name not in (*settings.only, *settings.names):
        return True
    return is_fused(model) and not settings.fused and model.name not in settings.names


def _names(names: Sequence[str]) -> tuple[str, ...]:
    """Return the additional names of the fused model, each once; raise ConfigError for an invalid model name."""
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name, re.ASCII):
            raise ConfigError(f"--as {name!r} is not a valid model name; use letters, digits, '_', '.' and '-'")
    return tuple(dict.fromkeys(names))


def _serve_as(repository: Path, names: tuple[str, ...]) -> None:
    """Copy the fused model's folder to each additional name; the copies use the same networks."""
    if not names:
        return
    models = read_models(repository)
    fused = next((model for model in models if is_fused(model)), None)
    if fused is None:
        raise ModelError(f"the repository has no fused model to serve as {names[0]}; omit --as")
    for name in names:
        if (repository / name).exists():
            raise ConfigError(f"--as {name!r}: the repository already has a model of this name; choose another name")
        shutil.copytree(fused.folder, repository / name)
        config = read_config(repository / name / CONFIG)
        config.name = name
        write_config(repository / name / CONFIG, config)


def _environment(stated: Path, places: Places) -> Path:
    """Return the absolute path of the environment; raise ModelError if it is missing, unless it is in the image."""
    host = on_host(stated, places) if stated.is_absolute() else stated
    if host is not None and not host.exists():
        raise ModelError(f"environment {host.absolute()} does not exist; create it, or omit --environment")
    return stated.absolute()


def _valid(settings: BuildSettings) -> BuildSettings:
    """Return the settings; raise ConfigError for an invalid one."""
    if settings.device not in ("cpu", "gpu"):
        raise ConfigError(f"device is {settings.device!r}; use 'cpu' or 'gpu'")
    for name in ("instances", "gpus", "threads"):
        if (value := getattr(settings, name)) < 1:
            raise ConfigError(f"{name} is {value}; use 1 or more")
    return settings


def _refuse_faults(source: Path, *, environment: Path | None, places: Places) -> None:
    findings = check(source, environment=environment, places=places, packages=False)
    if findings:
        first, more = findings[0], len(findings) - 1
        rest = f" (and {more} more: exatrkx-hpc models check {source})" if more else ""
        raise ModelError(f"{source}: {first.model}: {first.what}; {first.remedy}{rest}")


def _refuse_foreign(source: Path, out: Path) -> None:
    if out.resolve().is_relative_to(source.resolve()) or source.resolve().is_relative_to(out.resolve()):
        raise ModelError(f"{out} is inside {source}, or contains it; choose another folder")
    empty = out.is_dir() and not any(out.iterdir())
    if (out.exists() or out.is_symlink()) and not empty and not (out / MARK).is_file():
        raise ModelError(f"{out} exists and was not built by exatrkx-hpc; choose another folder, or remove it")


def _specialise(model: Model, settings: BuildSettings) -> None:
    if model.is_ensemble:
        return  # Its steps have the instances; Triton refuses an instance_group in an ensemble.
    config = model.config
    network, onnx, fused = model.backend == "pytorch", runs_onnx(model), is_fused(model)
    if settings.device == "gpu" and WEIGHTS in model.parameters and not onnx:
        raise ModelError(f"{model.name} is already built for the CPU; build for the GPU from the shipped repository")
    if settings.device == "cpu" and (place := gpu_code(model)):
        raise ModelError(
            f"{model.name} needs a GPU: {place}; build with --device gpu, or change it to run on the CPU, too"
        )
    own_gpu = needs_gpu(model)
    if settings.device == "cpu" and own_gpu:
        raise ModelError(
            f"{model.name} needs a GPU: its backend {model.backend!r} has instances of KIND_GPU; build with --device "
            "gpu, or choose another model with --model"
        )
    set_contract(model, settings.contract)
    if network and settings.device == "cpu":
        _run_in_python(model, settings)
    if fused or onnx:
        config.parameters[THREADS].string_value = str(settings.threads)
    on_gpu = (network or onnx or fused or own_gpu) and settings.device == "gpu"
    kind = ModelInstanceGroup.KIND_GPU if on_gpu else ModelInstanceGroup.KIND_CPU
    # Triton starts `count` instances per GPU for KIND_GPU, and `count` instances per server for KIND_CPU.
    count = settings.instances * (1 if on_gpu or settings.device == "cpu" else settings.gpus)
    del config.instance_group[:]
    config.instance_group.add(count=count, kind=kind)
    if settings.environment is not None and model.backend == "python":
        config.parameters[ENVIRONMENT].string_value = str(settings.environment)
    write_config(model.folder / CONFIG, config)


def needs_gpu(model: Model) -> bool:
    """Return whether a backend that is neither PyTorch nor Python runs the model on a GPU, such as that of traccc."""
    groups = model.config.instance_group
    own = model.backend not in {"python", "pytorch"} and not model.is_ensemble
    return own and any(group.kind == ModelInstanceGroup.KIND_GPU for group in groups)


def _run_in_python(model: Model, settings: BuildSettings) -> None:
    """Convert a model of the PyTorch backend to the Python backend, with the same weights."""
    config = model.config
    (weights,) = model.files_needed()
    config.parameters[WEIGHTS].string_value = weights
    config.parameters[THREADS].string_value = str(settings.threads)
    config.backend = "python"
    config.ClearField("platform")
    config.ClearField("default_model_filename")
    config.ClearField("model_warmup")  # TorchScriptStage warms up by itself
    for version in model.versions():
        write_whole(model.folder / str(version) / "model.py", network_code("TorchScriptStage"))


def _mark(folder: Path, source: Path, settings: BuildSettings) -> None:
    facts = {
        "source": str(source),
        "device": settings.device,
        "instances": settings.instances,
        "gpus": settings.gpus,
        "threads": settings.threads,
        "environment": str(settings.environment) if settings.environment else None,
        "fused": settings.fused,
        "as": list(settings.names),
        "only": list(settings.only),
        "contract": settings.contract,
    }
    write_whole(folder / MARK, json.dumps(facts, indent=2) + "\n")
