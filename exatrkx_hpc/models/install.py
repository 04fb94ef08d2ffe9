"""Install a site's own networks and constants into a model repository: all of them, or none."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.base.errors import ConfigError, ModelError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.models.build import MARK
from exatrkx_hpc.models.check import check
from exatrkx_hpc.models.code import network_code, runs_onnx, stage_of
from exatrkx_hpc.models.dims import feed_hits, set_dims, set_features
from exatrkx_hpc.models.pipeline import CONSTANTS, SCORED, pipeline_settings
from exatrkx_hpc.models.replace import replaced
from exatrkx_hpc.models.repository import CONFIG, THREADS, WEIGHTS, Model, Places, read_model, read_models, write_config
from exatrkx_hpc.models.settings import check_settings, write_settings
from exatrkx_hpc.models.signature import Signature, check_network
from exatrkx_hpc.models.trial import Sample, simulated_samples, try_networks
from exatrkx_hpc.tracking.constants import NETWORK_NAMES
from exatrkx_hpc.tracking.features import Features, parse_features, read_features
from exatrkx_hpc.tracking.onnx_network import ONNX_WEIGHT
from exatrkx_hpc.tracking.parameters import SCORES

#: Records the source of a repository's weights. Triton ignores files in a repository.
RECORD = ".exatrkx-hpc-weights.json"
#: A parameter of Triton's PyTorch backend.
_FUSER = "ENABLE_TENSOR_FUSER"
#: The input that takes each network's output: (model, tensor).
_TAKERS = {"embed": ("frnn", "INPUT0"), "filter": ("applyfilter", "FILTER_SCORES"), "gnn": ("wcc", "INPUT1")}


#: The constants that determine how each network's output is judged.
_COMPARED = {
    "embed": ("radius", "max_neighbours"),
    "filter": ("filter_cut", "scores", "edge_order"),
    "gnn": ("gnn_cut", "scores", "edge_order"),
}


@dataclass(frozen=True, kw_only=True)
class Installed:
    """Result of `install`: the repository, the signature of each new network, the constants it set, and warnings."""

    path: Path
    networks: tuple[Signature, ...]
    constants: Mapping[str, float | str]
    warnings: tuple[str, ...]


def install(
    out: Path,
    *,
    source: Path,
    weights: Mapping[str, Path],
    constants: Mapping[str, float | str],
    samples: Sequence[Sample] | None = None,
    features: Path | None = None,
    places: Places = None,
) -> Installed:
    """Put `weights` (embed, filter, gnn) and `constants` (as in PipelineSettings) into the repository `out`.

    A new `out` is created from `source`; then `weights` must have all three networks or none. Each file is first
    checked on a sample, then all networks run on `samples`, by default simulated events. A network is refused if its
    output cannot be right: all values equal, all on one side of the cut, or probabilities where logits are expected.
    `features` is a file that defines the columns of a hit. `places` are as for `check`.

    The repository is replaced as a whole at the end; if anything is refused or fails, it stays unchanged. Version 1 of
    each model is replaced, so that the three networks always belong together; the previous files are not kept.
    Afterwards `build` no longer treats the folder as one that it built.

    Raises ConfigError for an invalid constant, or when there is nothing to install; ModelError when a file or the
    repository cannot be used; OutputError when `out` cannot be written; MissingComponent without PyTorch.
    """
    check_settings(constants)
    out = out.resolve()  # the folder that a link points to is replaced, not the link
    if not weights and not constants and features is None:
        raise ConfigError("nothing to install; set --embed, --filter and --gnn, or a constant")
    base = _base(out, source, weights)
    hit = _features(base, features)
    networks = tuple(check_network(name, weights[name], hit) for name in NETWORK_NAMES if name in weights)
    with replaced(out) as fresh:
        shutil.copytree(base, fresh, ignore=shutil.ignore_patterns("__pycache__", MARK))
        for network in networks:
            _put(fresh, network)
        if features is not None:
            set_features(fresh, features, hit)
        if constants:
            write_settings(fresh, constants)
        if constants.get("edge_order") == "radius":
            feed_hits(fresh, len(hit))
        _record(fresh, networks)
        _refuse_faults(fresh, out, places)
        tried = _tried(fresh, networks, constants, samples or simulated_samples(hit), hit)
        warnings = (*_warnings(networks), *tried, *_mixture(fresh))
    return Installed(path=out, networks=networks, constants=dict(constants), warnings=warnings)


def _base(out: Path, source: Path, weights: Mapping[str, Path]) -> Path:
    """Return the repository to start from: `out` itself, or `source` if `out` is new."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        read_models(out)
        return out
    missing = [f"--{name}" for name in NETWORK_NAMES if name not in weights]
    if weights and missing:
        raise ConfigError(
            f"{out} is new, and networks of different trainings do not work together; also set {' and '.join(missing)}"
        )
    if out.is_relative_to(source.resolve()):
        raise ModelError(f"{out} is inside {source}; choose another folder")
    return source


def _put(repository: Path, network: Signature) -> None:
    """Copy the file into the repository, and set the shape of its output in the configurations."""
    model = read_model(repository / network.model)
    if model.versions() != (1,):
        found = ", ".join(map(str, model.versions())) or "none"
        raise ModelError(
            f"{network.model} has the versions {found}, but only version 1 can be replaced; remove the others"
        )
    wanted = [name for name in model.files_needed() if name == model.parameters.get(WEIGHTS) or name.endswith(".pt")]
    if len(wanted) != 1:
        raise ModelError(f"{network.model} of this repository does not run a network file; start from the shipped one")
    if runs_onnx(model) and not network.onnx:
        raise ModelError(
            f"{network.model} of this repository runs an ONNX file, and {network.file} is TorchScript; install into a "
            "new repository"
        )
    target = model.folder / "1" / (ONNX_WEIGHT if network.onnx else wanted[0])
    (model.folder / "1" / wanted[0]).unlink(missing_ok=True)
    if network.onnx:
        _run_onnx(model)
    shutil.copyfile(network.file, target)
    target.chmod(0o644)
    taker, tensor = _TAKERS[network.model]
    set_dims(repository / network.model / CONFIG, "OUTPUT__0", network.dims)
    if (repository / taker).is_dir():
        set_dims(repository / taker / CONFIG, tensor, network.dims)


def _run_onnx(model: Model) -> None:
    """Configure the model for OnnxStage in the Python backend; its kind of device stays the same."""
    config = model.config
    for field in ("platform", "default_model_filename", "model_warmup"):
        config.ClearField(field)  # OnnxStage runs its own sample
    config.backend = "python"
    config.parameters.pop(_FUSER, None)
    config.parameters[WEIGHTS].string_value = ONNX_WEIGHT
    config.parameters[THREADS].string_value = model.parameters.get(THREADS, "1")
    write_config(model.folder / CONFIG, config)
    write_whole(model.folder / "1" / "model.py", network_code("OnnxStage"))


def _features(base: Path, file: Path | None) -> Features:
    """Return the features of this file or, without a file, of the repository `base`."""
    try:
        return parse_features(file) if file is not None else read_features(base)
    except ValueError as error:
        raise ModelError(f"{error}; docs/guides/acorn.md has an example") from error


def _record(repository: Path, networks: tuple[Signature, ...]) -> None:
    """Record the source of the new weights; keep the entries of the other networks."""
    path = repository / RECORD
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    known |= {one.model: {"file": str(one.file.absolute()), "sha256": one.sha256} for one in networks}
    write_whole(path, json.dumps(known, indent=2) + "\n")


def _refuse_faults(fresh: Path, out: Path, places: Places) -> None:
    findings = check(fresh, places=places)
    if findings:
        first = findings[0]
        raise ModelError(
            f"{out} would not work: {first.model}: {first.what}; {first.remedy}".replace(f"{fresh}", f"{out}")
        )


def _tried(
    repository: Path,
    networks: Sequence[Signature],
    constants: Mapping[str, float | str],
    samples: Sequence[Sample],
    features: Features,
) -> Iterator[str]:
    """Run the repository's networks on samples; raise ModelError for an unusable network, yield other remarks.

    Only what this call installs is refused: a network, or a constant that determines how its output is judged.
    """
    files = _network_files(repository)
    if files is None or not (networks or _can_try()):
        return
    settings, given = pipeline_settings(repository), {network.model: network.file for network in networks}
    stated = "scores" in constants or any(SCORES in read_model(repository / name).parameters for name in SCORED)
    remarks = try_networks(files, settings, samples, scores_stated=stated, features=features)
    for remark in remarks:
        ours = stage_of(read_model(repository / _TAKERS[remark.model][0]))
        concerned = remark.model in given or any(name in constants for name in _COMPARED[remark.model])
        line = f"{remark.model}: {given.get(remark.model, 'its network')} {remark.what}"
        if remark.refused and ours and concerned:
            raise ModelError(line)
        yield line


def _network_files(repository: Path) -> dict[str, Path] | None:
    """Return the file of each network; None if the repository lacks a stage of the pipeline or a network file."""
    if not all((repository / name).is_dir() for name in (*NETWORK_NAMES, *(stage for stage, _ in CONSTANTS.values()))):
        return None
    files = {}
    for name in NETWORK_NAMES:
        model = read_model(repository / name)
        found = [model.folder / "1" / file for file in model.files_needed() if file.endswith((".pt", ONNX_WEIGHT))]
        if not found:
            return None
        files[name] = found[0]
    return files


def _can_try() -> bool:
    return all(importlib.util.find_spec(package) is not None for package in ("torch", "scipy"))


def _mixture(repository: Path) -> Iterator[str]:
    """Yield a warning when some networks of a repository are the shipped stand-ins and others are not."""
    files = _network_files(repository) or {}
    shipped = asset("model_repos/exatrkx")
    stand_ins = [
        name for name, file in files.items() if file.read_bytes() == (shipped / name / "1" / "model.pt").read_bytes()
    ]
    others = [name for name in files if name not in stand_ins]
    if stand_ins and others:
        verb = "are" if len(stand_ins) > 1 else "is one"
        yield (
            f"{' and '.join(stand_ins)} {verb} of the shipped stand-ins, not trained with "
            f"{' and '.join(others)}; install {' and '.join(f'--{name}' for name in stand_ins)} of the same training"
        )


def _warnings(networks: tuple[Signature, ...]) -> Iterator[str]:
    yield from (note for network in networks for note in network.notes)
    dims = {network.model: network.dims for network in networks}
    if dims.get("filter") == (-1,) and dims.get("gnn") == (-1, 1):
        yield "filter gives [E] and gnn [E, 1], the other way round than usual: are --filter and --gnn swapped?"
    known: dict[str, str] = {}
    for network in networks:
        if (twin := known.setdefault(network.sha256, network.model)) != network.model:
            yield f"{twin} and {network.model} are the same file"
