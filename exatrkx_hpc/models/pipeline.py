"""The pipeline of a repository: the weights and constants that its stages, fused models and direct inference share.

The weights are those of `embed`, `filter` and `gnn`. The constants are parameters of `frnn`, `applyfilter` and `wcc`,
and are repeated as parameters of a fused model. A Python model is a fused model if it has the parameter `networks`,
the folder of the three networks.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from exatrkx_hpc.base.errors import MissingComponent, ModelError
from exatrkx_hpc.base.files import LFS_REMEDY, is_lfs_pointer
from exatrkx_hpc.models.ensemble import Fault
from exatrkx_hpc.models.repository import WEIGHTS, Model, Places, on_host, read_model
from exatrkx_hpc.tracking.constants import NETWORK_NAMES, Float32, Int64, PipelineSettings, Scores
from exatrkx_hpc.tracking.devices import reason
from exatrkx_hpc.tracking.features import FEATURES_FILE, read_features, require_radii
from exatrkx_hpc.tracking.memory import keep_freed_memory
from exatrkx_hpc.tracking.onnx_network import ONNX_WEIGHT, network_file
from exatrkx_hpc.tracking.parameters import SCORES, networks_folder, scores_of, settings_of

if TYPE_CHECKING:
    from exatrkx_hpc.tracking.pipeline import Pipeline

#: The stage and its parameter for each field of PipelineSettings.
CONSTANTS = {
    "radius": ("frnn", "radius"),
    "max_neighbours": ("frnn", "max_neighbours"),
    "filter_cut": ("applyfilter", "cut"),
    "gnn_cut": ("wcc", "cut"),
    "edge_order": ("frnn", "edge_order"),
}
#: The input of each stage that takes the hits.
HITS = {"embed": "INPUT__0", "frnn": "INPUT1", "filter": "INPUT__0", "gnn": "INPUT__0", "wcc": "INPUT2"}
#: The stages that compare a network's scores with a cut.
SCORED = ("applyfilter", "wcc")
_SAME = "set the parameter scores of both to what the networks give (models install --scores)"


def load_pipeline(repository: Path, *, device: str = "cpu") -> Pipeline:
    """Return the pipeline of a model repository, with its weights and its constants, to run without a server.

    `device` is a torch device, such as `cuda:0`. Raises ModelError when a network or a stage is missing or unusable,
    MissingComponent without PyTorch, SciPy or, for ONNX networks, onnxruntime.
    """
    settings = require_pipeline(repository)
    from exatrkx_hpc.tracking.pipeline import Pipeline
    from exatrkx_hpc.tracking.serving_fused import warm_up

    try:
        pipeline = Pipeline.load(repository, settings=settings, device=device)
        warm_up(pipeline)
    except ValueError as error:
        raise ModelError(f"{repository}: {error}; run 'exatrkx-hpc models check {repository}'") from error
    return pipeline


def load_tracker(repository: Path) -> Callable[[Float32], Int64]:
    """Return a function from hits, float32 `[N, 3]`, to labels, int64 `[N]`; it uses one CPU thread and no server.

    The function raises ModelError for invalid hits. Raises the errors of `load_pipeline`.
    """
    keep_freed_memory()
    pipeline = load_pipeline(repository)
    import torch

    torch.set_num_threads(1)  # per process: parallel work uses several processes

    def find(hits: Float32) -> Int64:
        try:
            return pipeline.find_tracks(hits, name="FEATURES")
        except (ValueError, RuntimeError, torch.jit.Error) as error:  # the last: a `raise` in TorchScript
            raise ModelError(f"direct: {reason(error)}") from error

    return find


def require_pipeline(repository: Path) -> PipelineSettings:
    """Return the constants of a repository after a quick check that `load_pipeline` can use it.

    Raises ModelError when a stage or a weight is missing, MissingComponent without PyTorch, SciPy or, for ONNX
    networks, onnxruntime.
    """
    if not repository.is_dir():
        remedy = f"build it with 'exatrkx-hpc models build --device cpu --out {repository}'"
        raise ModelError(f"model repository {repository} does not exist; {remedy}")
    settings = pipeline_settings(repository)
    for name in NETWORK_NAMES:
        weight = network_file(repository / name / "1")
        if not weight.is_file():
            raise ModelError(f"{name}: the weight {weight} is missing; train or copy it")
        if is_lfs_pointer(weight):
            raise ModelError(f"{name}: {weight} is a Git LFS pointer, not the file itself; {LFS_REMEDY}")
    for package, extra in (("torch", "train"), ("scipy", "train"), ("onnxruntime", "onnx")):
        wanted = package != "onnxruntime" or onnx_networks(repository)
        if wanted and importlib.util.find_spec(package) is None:
            raise MissingComponent(f"tracks without a server need {package}; pip install 'exatrkx-hpc[{extra}]'")
    return settings


def pipeline_digest(repository: Path) -> str:
    """Return the SHA-256 (hexadecimal) of a pipeline's weights, constants and features file.

    Raises as `require_pipeline` does.
    """
    digest = hashlib.sha256(repr(require_pipeline(repository)).encode())
    if (repository / FEATURES_FILE).is_file():
        digest.update((repository / FEATURES_FILE).read_bytes())
    for name in NETWORK_NAMES:
        digest.update(network_file(repository / name / "1").read_bytes())
    return digest.hexdigest()


def pipeline_settings(repository: Path) -> PipelineSettings:
    """Return the constants that the stages of a repository have in their config.pbtxt.

    Raises ModelError when a stage is missing, a constant is not valid, or applyfilter and wcc differ in `scores`.
    """
    stages = {stage: read_model(repository / stage).parameters for stage, _ in CONSTANTS.values()}
    stated = {
        field: stages[stage][parameter] for field, (stage, parameter) in CONSTANTS.items() if parameter in stages[stage]
    }
    try:
        first, second = (scores_of(stages[stage]) for stage in SCORED)
        settings = settings_of(stated | {SCORES: first})
    except ValueError as error:
        raise ModelError(f"{repository}: invalid constant ({error}); correct it in config.pbtxt") from error
    if first != second:
        raise ModelError(f"{repository}: {_differ('wcc', second, first)}; {_SAME}")
    return settings


def feature_faults(repository: Path, models: Mapping[str, Model]) -> Iterator[tuple[str, str, str]]:
    """Yield the conflicts between the models and the repository's features, as (model, what, remedy)."""
    try:
        features = read_features(repository)
    except ValueError as error:
        yield FEATURES_FILE, str(error), f"correct {FEATURES_FILE}"
        return
    places = [(name, tensor) for name, tensor in HITS.items() if name in models]
    places += [(model.name, "FEATURES") for model in models.values() if is_fused(model)]
    for name, tensor in places:
        for entry in models[name].config.input:
            if entry.name == tensor and list(entry.dims) != [-1, len(features)]:
                names = ", ".join(column.name for column in features.columns)
                what = f"{tensor} has the dims {list(entry.dims)}, but a hit has {len(features)} features ({names})"
                yield name, what, f"correct the dims, or {FEATURES_FILE} ('exatrkx-hpc models install --features FILE')"
    for model in models.values():
        if model.parameters.get("edge_order") == "radius":
            try:
                require_radii(features)
            except ValueError as error:
                yield model.name, str(error), f"add them to {FEATURES_FILE}, or set edge_order to number"


def score_faults(models: Mapping[str, Model]) -> Iterator[tuple[str, str, str]]:
    """Yield the models whose parameter `scores` is invalid or differs from the others, as (model, what, remedy)."""
    places = [models[name] for name in SCORED if name in models] + [one for one in models.values() if is_fused(one)]
    known: dict[str, Scores] = {}
    for model in places:
        try:
            known[model.name] = scores_of(model.parameters)
        except ValueError as error:
            yield model.name, f"its parameter {error}".partition(";")[0], f"use one of {', '.join(get_args(Scores))}"
    first = next(iter(known.values()), None)
    for name, scores in known.items():
        if first is not None and scores != first:
            yield name, _differ(name, scores, first, than=next(iter(known))), _SAME


def _differ(name: str, scores: str, first: str, *, than: str = "applyfilter") -> str:
    return f"{name} takes the scores for {scores}, but {than} for {first}"


def onnx_networks(folder: Path) -> tuple[str, ...]:
    """Return which of the networks `embed`, `filter` and `gnn` in a folder of models are ONNX files."""
    return tuple(name for name in NETWORK_NAMES if network_file(folder / name / "1").name == ONNX_WEIGHT)


def is_fused(model: Model) -> bool:
    """Return whether `model` is a fused model: a Python model with the parameter `networks`."""
    return model.backend == "python" and "networks" in model.parameters


def fused_faults(model: Model, others: Mapping[str, Model], places: Places = None) -> Iterator[Fault]:
    """Yield the differences between the fused `model` and the stages among `others`, as pairs (what, remedy)."""
    stated = networks_folder(model.folder, model.parameters)
    folder = stated if stated == model.folder.parent else on_host(stated, places)
    for name in NETWORK_NAMES:
        network = others.get(name) if folder == model.folder.parent else None
        if folder is None:
            continue  # inside the image, which cannot be read here
        if network is not None:
            yield from _other_weights(network)
        elif not (weight := network_file(folder / name / "1")).is_file():
            yield f"the weight {weight} is missing", "put it there, or correct 'networks'"
        elif is_lfs_pointer(weight):
            yield f"the weight {weight} is a Git LFS pointer, not the file itself", LFS_REMEDY
    for field, (stage, parameter) in CONSTANTS.items():
        theirs = others[stage].parameters.get(parameter) if stage in others else None
        ours = model.parameters.get(field)
        if theirs != ours and stage in others:
            yield f"{field} is {ours}, but {parameter} of {stage} is {theirs}", "make them the same"


def _other_weights(network: Model) -> Iterator[Fault]:
    """Yield a fault if Triton and the fused model use different files of `network`; missing files are skipped."""
    ours = network_file(network.folder / "1").name
    weight = network.parameters.get(WEIGHTS) or network.config.default_model_filename or "model.pt"
    served = network.served()
    missing = weight == ONNX_WEIGHT and not (network.folder / "1" / weight).is_file()
    if served and (served != (1,) or (weight != ours and not missing)):
        found = ", ".join(f"{version}/{weight}" for version in served)
        yield f"it runs 1/{ours} of {network.name}, but Triton serves {found}", f"keep only 1/{ours} there"
