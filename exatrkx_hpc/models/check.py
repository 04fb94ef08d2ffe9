"""Check a model repository before a server starts: find faults that Triton refuses or that give wrong results."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tritonclient.grpc.model_config_pb2 import ModelInstanceGroup

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.base.files import LFS_REMEDY, is_lfs_pointer, odd_characters
from exatrkx_hpc.models.code import runs_onnx, stage_of
from exatrkx_hpc.models.ensemble import ensemble_faults
from exatrkx_hpc.models.pack_env import packed_packages
from exatrkx_hpc.models.pipeline import feature_faults, fused_faults, is_fused, onnx_networks, score_faults
from exatrkx_hpc.models.repository import (
    CONFIG,
    ENVIRONMENT,
    WEIGHTS,
    Model,
    Places,
    model_folders,
    on_host,
    read_model,
)
from exatrkx_hpc.tracking.parameters import networks_folder

#: Prefix that EXECUTION_ENV_PATH may have; Triton replaces it with the model's folder.
_MODEL_FOLDER = "$$TRITON_MODEL_DIRECTORY"
_PLAIN_FOLDER = "use a folder without spaces, quotes and other special characters of the shell"


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One fault of a repository: the model, the fault and the remedy."""

    model: str
    what: str
    remedy: str


def check(
    repository: Path, *, places: Places = None, environment: Path | None = None, packages: bool = True
) -> tuple[Finding, ...]:
    """Return every fault of a model repository, sorted by model name; empty for a valid repository.

    `places` are the folders of this machine that the server's container mounts. They map the paths in a configuration
    to this machine; paths inside the image are not checked. `environment` replaces the Python environments in the
    configurations. Without `packages`, the packages in an environment are not compared with those that the models
    need, because a build may leave models out or change their backend. Nothing is loaded or started. Raises ModelError
    when `repository` is not a folder or holds no model.
    """
    findings: list[Finding] = []
    models: dict[str, Model] = {}
    unreadable: set[str] = set()
    for folder in model_folders(repository):
        try:
            models[folder.name] = read_model(folder)
        except ModelError as error:
            what, _, remedy = str(error).rpartition("; ")
            findings.append(Finding(model=folder.name, what=what, remedy=remedy))
            unreadable.add(folder.name)
    for model in models.values():
        findings += _own_faults(model)
        if model.backend == "python":
            stated = environment or _environment(model)
            findings += [
                Finding(model=model.name, what=w, remedy=r)
                for w, r in _environment_faults(model, stated, places, packages=packages)
            ]
        if model.is_ensemble:
            findings += _ensemble_findings(model, models, unreadable)
        if is_fused(model):
            findings += [Finding(model=model.name, what=w, remedy=r) for w, r in fused_faults(model, models, places)]
    findings += [Finding(model=name, what=what, remedy=remedy) for name, what, remedy in score_faults(models)]
    findings += [Finding(model=name, what=w, remedy=r) for name, w, r in feature_faults(repository, models)]
    return tuple(sorted(findings, key=lambda finding: finding.model))


def _ensemble_findings(model: Model, models: Mapping[str, Model], unreadable: set[str]) -> list[Finding]:
    configs = {name: other.config for name, other in models.items()}
    return [
        Finding(model=model.name, what=what, remedy=remedy)
        for what, remedy in ensemble_faults(model.name, configs, unreadable=unreadable)
    ]


def _own_faults(model: Model) -> Iterator[Finding]:
    """Yield the faults of a model's own folder."""

    def finding(what: str, remedy: str) -> Finding:
        return Finding(model=model.name, what=what, remedy=remedy)

    stated = model.config.name
    if stated and stated != model.name:
        yield finding(f"the name in {CONFIG} is {stated!r}, but the folder is {model.name!r}", "make them the same")
    if not model.is_ensemble and not model.backend:
        yield finding(f"{CONFIG} names no backend", "add a line such as backend: 'python'")
    served = model.served()
    if not served:
        yield finding("no version folder to serve", f"create {model.folder / '1'}")
    for version in served:
        for name in model.files_needed():
            path = model.folder / str(version) / name
            if not path.is_file():
                yield finding(f"{version}/{name} is missing", f"put it at {path}{_how_to_get(name)}")
            elif path.stat().st_size == 0:
                yield finding(f"{version}/{name} is empty", f"copy it again to {path}{_how_to_get(name)}")
    for path in sorted(model.folder.rglob("*")):
        if path.is_file() and is_lfs_pointer(path):
            yield finding(f"{path.relative_to(model.folder)} is a Git LFS pointer, not the file itself", LFS_REMEDY)
    if model.backend == "python" and (odd := odd_characters(model.folder)):
        yield finding(
            f"its folder name contains {odd!r}, which Triton's Python backend does not support", _PLAIN_FOLDER
        )


def _how_to_get(name: str) -> str:
    return " (exatrkx-hpc models train makes the weights)" if name.endswith(".pt") else ""


def _environment(model: Model) -> Path | None:
    stated = model.parameters.get(ENVIRONMENT)
    return Path(stated.replace(_MODEL_FOLDER, str(model.folder))) if stated is not None else None


def _environment_faults(
    model: Model, stated: Path | None, places: Places, *, packages: bool
) -> Iterator[tuple[str, str]]:
    path = on_host(stated, places) if stated is not None else None
    if path is None:
        return
    remedy = (
        "create it, or build with --environment FOLDER; if it is a path in the farm's container, set server.image and "
        "server.mounts in farm.toml"
        if places is None
        else f"create it, or correct server.mounts, which maps {stated} of the container to it"
    )
    if is_lfs_pointer(path):
        yield f"the Python environment {path} is a Git LFS pointer, not the file itself", LFS_REMEDY
    elif not path.exists():
        yield f"the Python environment {path} does not exist", remedy
    elif path.is_dir() and not (path / "bin" / "activate").is_file():
        yield f"the Python environment {path} has no bin/activate", remedy
    elif packages and (packed := packed_packages(path)):
        yield from _package_faults(model, path, packed)


def _package_faults(model: Model, path: Path, packages: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the packages that a packed environment lacks for a model, or has in a version that is too new."""
    if stage_of(model) == "TracccStage" and "pyacts" not in packages:
        yield f"the Python environment {path} has no pyacts", "pack it with --package pyacts"
    onnx, on_gpu = runs_onnx(model), any(g.kind == ModelInstanceGroup.KIND_GPU for g in model.config.instance_group)
    if onnx or (is_fused(model) and onnx_networks(networks_folder(model.folder, model.parameters))):
        yield from _onnxruntime_faults(model, path, packages, on_gpu=on_gpu)
    if is_fused(model) or (WEIGHTS in model.parameters and not onnx):
        if "torch" not in packages:
            yield f"the Python environment {path} has no torch", f"pack it with --package torch{_without(model)}"
        if on_gpu and not any(name.startswith("cupy") for name in packages):
            yield (
                f"the Python environment {path} has no CuPy",
                f"pack it with --package cupy-cuda12x, or 13x as its torch has{_without(model)}",
            )
    elif int(packages.get("numpy", "0").partition(".")[0]) >= 2 and model.parameters.get("numpy2") != "allow":
        yield (
            f"the Python environment {path} has numpy {packages['numpy']}, with which Triton 2.51 reads zeros and "
            "returns 0 bytes",
            "pack one with numpy<2, or set the parameter numpy2 to 'allow' if this server supports numpy 2",
        )


def _onnxruntime_faults(
    model: Model, path: Path, packages: Mapping[str, str], *, on_gpu: bool
) -> Iterator[tuple[str, str]]:
    wanted = "onnxruntime-gpu" if on_gpu else "onnxruntime"
    # The GPU build also runs on a CPU.
    if not {wanted, "onnxruntime-gpu"} & set(packages):
        yield f"the Python environment {path} has no {wanted}", f"pack it with --package {wanted}{_without(model)}"


def _without(model: Model) -> str:
    return ", or build with --no-fused" if is_fused(model) else ""
