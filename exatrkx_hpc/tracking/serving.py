"""The stages of the pipeline as Triton's Python backend runs them, one class a model.

A model folder's `1/model.py` only names its class. Each request is checked before it is computed: what a
stage cannot use becomes an error of that request alone, which names the model, the tensor and what was
expected, and the server lives on. Triton's own module exists only inside Triton, so it is imported there.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, Float32
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges
from exatrkx_hpc.tracking.memory import keep_freed_memory
from exatrkx_hpc.tracking.signatures import check_signature
from exatrkx_hpc.tracking.tensors import BadTensor, check_edges, check_hits, check_scores, check_table

Array = NDArray[Any]


def refuse_numpy_2(version: str, parameters: Mapping[str, str]) -> None:
    """Raise RuntimeError for a numpy from 2 on, unless the parameter `numpy2` is `allow`.

    With it, the Python backend of Triton 2.51 answers every request with outputs of 0 bytes, while the model
    says READY: far better not to load. A later server that can do it is told so by the parameter.
    """
    if int(version.partition(".")[0]) >= 2 and parameters.get("numpy2") != "allow":
        raise RuntimeError(
            f"numpy {version} makes Triton 2.51 send empty outputs; put numpy<2 into the models' Python "
            "environment, or set the parameter numpy2 to 'allow' in config.pbtxt if this server can use it"
        )


class Refused(Exception):
    """The one request of a call gets no answer; Triton tells its client this message, between words of its own."""


class Stage:
    """What every model has in common: read the configuration, check, compute, answer.

    A subclass sets `outputs` (tensor names) and overrides `configure` and `compute`.
    """

    outputs: tuple[str, ...] = ()

    def initialize(self, args: Mapping[str, str]) -> None:
        """Take the model's name and the `parameters` of its config.pbtxt; Triton calls this once.

        Raises ValueError or OSError, which make Triton refuse to load the model.
        """
        self.model = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
        refuse_numpy_2(np.__version__, parameters)
        keep_freed_memory()
        self.configure(args, config, parameters)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Keep what this stage needs of its `parameters`."""

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the outputs, in the order of `outputs`; raise BadTensor for inputs that cannot be used."""
        raise NotImplementedError

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer each of Triton's requests, one response a request; a bad one gets an error of its own.

        Raises Refused for a bad one that came alone: Triton (2.51) counts that as a failure of the model, but a
        response that is an error as a success. What is raised becomes INTERNAL, so an error of another status stays
        a response: clients go by it.
        """
        answers = [self._answer(request) for request in requests]
        if len(answers) == 1 and answers[0].has_error():
            error = answers[0].error()
            if error.code() == _triton().TritonError.INTERNAL:
                raise Refused(error.message())
        return answers

    def _answer(self, request: Any) -> Any:  # noqa: ANN401 - exists only inside Triton
        triton = _triton()
        try:
            results = self.compute({tensor.name(): tensor.as_numpy() for tensor in request.inputs()})
        except BadTensor as error:
            return triton.InferenceResponse(error=triton.TritonError(f"{self.model}: {error}"))
        # Not Tensor.from_dlpack: with numpy arrays Triton 2.51 loses the stub, and it refuses empty ones.
        tensors = [
            triton.Tensor(name, np.ascontiguousarray(result))
            for name, result in zip(self.outputs, results, strict=True)
        ]
        return triton.InferenceResponse(output_tensors=tensors)


class FrnnStage(Stage):
    """Embedding `[N, D]` (float32) to candidate edges `[2, E]` (int64); parameters radius, max_neighbours."""

    outputs = ("OUTPUT0",)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Take the radius and the neighbour limit."""
        self.radius = float(parameters.get("radius", DEFAULT_SETTINGS.radius))
        self.max_neighbours = int(parameters.get("max_neighbours", DEFAULT_SETTINGS.max_neighbours))
        self.columns = int(config["input"][0]["dims"][1])

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the candidate edges."""
        embedding: Float32 = inputs["INPUT0"]
        check_table("INPUT0", embedding, columns=self.columns)
        return (fixed_radius_edges(embedding, radius=self.radius, max_neighbours=self.max_neighbours),)


class ApplyFilterStage(Stage):
    """Logits `[E, 1]` (float32) and edges `[2, E]` (int64) to the edges that pass; parameter cut."""

    outputs = ("EDGE_LIST_AFTER_FILTER",)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Take the cut, a probability."""
        self.cut = float(parameters.get("cut", DEFAULT_SETTINGS.filter_cut))

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the edges whose score passes the cut."""
        scores, edges = inputs["FILTER_SCORES"], inputs["EDGE_LIST"]
        check_edges("EDGE_LIST", edges)
        check_scores("FILTER_SCORES", scores, n_edges=edges.shape[1])
        return (apply_filter(edges, scores, cut=self.cut),)


class WccStage(Stage):
    """Edges `[2, E]` (int64), logits `[E]` (float32) and, if given, hits `[N, 3]` to labels; parameter cut.

    With the hits there are exactly N labels. Without them, as in the public service's own form, there are as
    many as the largest hit number among the edges, plus one.
    """

    outputs = ("OUTPUT0",)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Take the cut, a probability."""
        self.cut = float(parameters.get("cut", DEFAULT_SETTINGS.gnn_cut))

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the labels `[N]` (int64)."""
        edges, scores, hits = inputs["INPUT0"], inputs["INPUT1"], inputs.get("INPUT2")
        if hits is not None:
            check_hits("INPUT2", hits)  # where Triton itself runs the networks, nobody looked at them before
        n_hits = None if hits is None else len(hits)
        check_edges("INPUT0", edges, n_hits=n_hits)
        check_scores("INPUT1", scores, n_edges=edges.shape[1])
        return (label_components(edges, scores, cut=self.cut, n_hits=n_hits),)


class TorchScriptStage(Stage):
    """A TorchScript network, as Triton's PyTorch backend would run it, where that backend is not at hand.

    Inputs are the hits `[N, 3]` (float32) and, for an edge network, the edges `[2, E]` (int64). Tensor names
    come from config.pbtxt, the weights from the file of parameter `weights` in the version folder. An
    instance of KIND_CPU never touches a GPU, even where there is one.
    """

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Load the weights and run them once, so that what cannot work is refused now, not at the first event."""
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(int(parameters.get("threads", "1")))
        self.device = device_of(args)
        weights = Path(args["model_repository"]) / args["model_version"] / parameters.get("weights", "model.pt")
        require_weight(self.model, weights)
        inference = importlib.import_module("exatrkx_hpc.tracking.inference")
        try:
            self.network = inference.load_network(weights, device=self.device)
        except ValueError as error:
            raise ValueError(f"{self.model}: {error}") from error
        self.inputs = tuple(entry["name"] for entry in config["input"])
        self.outputs = tuple(entry["name"] for entry in config["output"])
        self.dims = [int(size) for size in config["output"][0]["dims"]]
        try:
            check_signature(self._run, inputs=self.inputs, output=self.outputs[0], columns=self.dims[1:])
        except BadTensor as error:
            raise ValueError(f"{self.model}: {weights}: {error}") from error

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the network's answer: `[N, 8]` of the embedding, one logit an edge of the others."""
        hits, *rest = (inputs[name] for name in self.inputs)
        check_hits(self.inputs[0], hits)
        for name, edges in zip(self.inputs[1:], rest, strict=True):
            check_edges(name, edges, n_hits=len(hits))
        rows = rest[0].shape[1] if rest else len(hits)
        return (_shaped(self._run(hits, *rest), self.outputs[0], (rows, *self.dims[1:])),)

    def _run(self, *arrays: Array) -> Array:
        with self.torch.inference_mode():
            tensors = [self.torch.from_numpy(array).to(self.device) for array in arrays]
            answer: Array = self.network(*tensors).cpu().numpy()
        return answer


@functools.cache
def _triton() -> Any:  # noqa: ANN401 - as above
    """Return Triton's module, found once: an import statement's search costs each request."""
    return importlib.import_module("triton_python_backend_utils")


def device_of(args: Mapping[str, str]) -> str:
    """Return where an instance runs, as torch calls it: its GPU, or `cpu` for KIND_CPU, even where there is a GPU."""
    gpu = args["model_instance_kind"] == "GPU"
    return f"cuda:{args['model_instance_device_id']}" if gpu else "cpu"


def require_weight(model: str, path: Path) -> None:
    """Raise FileNotFoundError, which names the model, when a weight is not there."""
    if not path.is_file():
        raise FileNotFoundError(f"{model}: the weight {path} is missing; train or copy it")


def _shaped(answer: Array, name: str, shape: tuple[int, ...]) -> Array:
    """Return the answer in the shape that config.pbtxt promises: networks differ in `[E]` and `[E, 1]`."""
    if answer.size != math.prod(shape):
        raise BadTensor(f"{name} has shape {list(answer.shape)}, but config.pbtxt promises {list(shape)}")
    return answer.reshape(shape)
