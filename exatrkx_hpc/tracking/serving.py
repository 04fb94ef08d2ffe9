"""The stages of the pipeline as models of Triton's Python backend, one class per model.

A model folder's `1/model.py` only names its class. Each request is checked before it is computed. Invalid input
becomes an error of only that request, which names the model, the tensor and what was expected; the server continues.
Triton's own module exists only inside Triton, so it is imported there.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exatrkx_hpc.tracking.arrays import AnyArray, on_host
from exatrkx_hpc.tracking.components import label_components
from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, Float32
from exatrkx_hpc.tracking.devices import device_of, is_broken, is_out_of_memory, reason, use_device
from exatrkx_hpc.tracking.features import radii_of, read_features, require_radii
from exatrkx_hpc.tracking.filtering import apply_filter
from exatrkx_hpc.tracking.frnn import fixed_radius_edges, in_order
from exatrkx_hpc.tracking.memory import keep_freed_memory
from exatrkx_hpc.tracking.parameters import edge_order_of, scores_of
from exatrkx_hpc.tracking.signatures import check_signature
from exatrkx_hpc.tracking.tensors import BadTensor, check_edges, check_hits, check_scores, check_table

Array = NDArray[Any]


def refuse_numpy_2(version: str, parameters: Mapping[str, str]) -> None:
    """Raise RuntimeError for numpy 2 or later, unless the parameter `numpy2` is `allow`.

    With numpy 2, the Python backend of Triton 2.51 reads zeros and answers every request with outputs of 0 bytes, while
    the model is READY. Not loading the model is better. Set the parameter for a later server that supports numpy 2.
    Only stages with NumPy tensors need this check: torch tensors go through DLPack, which is right with any numpy.
    """
    if int(version.partition(".")[0]) >= 2 and parameters.get("numpy2") != "allow":
        raise RuntimeError(
            f"numpy {version} makes Triton 2.51 send empty outputs; put numpy<2 into the models' Python "
            "environment, or set the parameter numpy2 to 'allow' in config.pbtxt if this server supports numpy 2"
        )


class Refused(Exception):
    """The only request of a call is refused; Triton sends this message to the client, within a text of its own."""


class Stage:
    """Base class of every model: read the configuration, check, compute, answer.

    A subclass sets `outputs` (tensor names) and overrides `configure` and `compute`. Tensors are NumPy arrays.
    """

    outputs: tuple[str, ...] = ()

    def initialize(self, args: Mapping[str, str]) -> None:
        """Read the model's name and the `parameters` of its config.pbtxt; Triton calls this once.

        Raises ValueError, RuntimeError or OSError; Triton then refuses to load the model.
        """
        self.model = args["model_name"]
        config = json.loads(args["model_config"])
        parameters = {key: entry["string_value"] for key, entry in config.get("parameters", {}).items()}
        self.refuse(parameters)
        keep_freed_memory()
        self.configure(args, config, parameters)

    def refuse(self, parameters: Mapping[str, str]) -> None:
        """Raise RuntimeError if this stage's tensors would be wrong."""
        refuse_numpy_2(np.__version__, parameters)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Store the `parameters` that this stage needs."""

    def compute(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Return the outputs, in the order of `outputs`; raise BadTensor for invalid inputs."""
        raise NotImplementedError

    def take(self, tensor: Any) -> AnyArray:  # noqa: ANN401 - exists only inside Triton
        """Convert an input tensor of Triton for `compute`."""
        return tensor.as_numpy()

    def give(self, name: str, result: AnyArray) -> Any:  # noqa: ANN401 - as above
        """Convert a result of `compute` to an output tensor of Triton."""
        # Not Tensor.from_dlpack: with numpy arrays the stub process of Triton 2.51 dies, and it refuses empty arrays.
        return _triton().Tensor(name, np.ascontiguousarray(result))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Answer Triton's requests, one response per request; an invalid request gets its own error.

        Raises Refused for an invalid request that came alone: Triton 2.51 counts an exception as a failure of the
        model, but an error response as a success. An exception becomes INTERNAL, so an error with another status stays
        a response: clients use the status.
        """
        answers = [self._answer(request) for request in requests]
        if len(answers) == 1 and answers[0].has_error():
            error = answers[0].error()
            if error.code() == _triton().TritonError.INTERNAL:
                raise Refused(error.message())
        return answers

    def _answer(self, request: Any) -> Any:  # noqa: ANN401 - as above
        triton = _triton()
        try:
            results = self.compute({tensor.name(): self.take(tensor) for tensor in request.inputs()})
            tensors = [self.give(name, result) for name, result in zip(self.outputs, results, strict=True)]
        except BadTensor as error:
            return triton.InferenceResponse(error=triton.TritonError(f"{self.model}: {error}"))
        except Exception as error:  # only this request fails; the others of the call get their answers
            return triton.InferenceResponse(error=self.failure(error))
        return triton.InferenceResponse(output_tensors=tensors)

    def failure(self, error: Exception) -> Any:  # noqa: ANN401 - as above
        """Return the client's error for a failure that its input did not cause.

        If the GPU failed, the server ends, and UNAVAILABLE tells the client to retry on another server. An unexpected
        error is logged with its traceback.
        """
        triton = _triton()
        if is_broken(error):
            end_server(told := f"{self.model}: {reason(error)}; this server exits in order to be restarted")
            return triton.TritonError(told, triton.TritonError.UNAVAILABLE)
        if is_out_of_memory(error):
            told = f"not enough GPU memory for this event ({reason(error)}); run fewer instances on it"
            return triton.TritonError(f"{self.model}: {told}")
        traceback.print_exception(error, file=sys.stderr)
        return triton.TritonError(f"{self.model}: {type(error).__name__}: {reason(error)}")


class TorchStage(Stage):
    """A stage with torch tensors, which it exchanges with Triton by DLPack, with any numpy.

    A Python model gets its inputs on the CPU unless FORCE_CPU_ONLY_INPUT_TENSORS is off; the stage accepts both.
    Outputs are on the CPU. A failed GPU ends the server: CUDA no longer works in this process, and since 24.06 Triton
    does not start another process, but reports that it is ready and fails each request.
    """

    def refuse(self, parameters: Mapping[str, str]) -> None:
        """Refuse nothing: no tensor of this stage passes through NumPy inside Triton's own code."""

    def take(self, tensor: Any) -> AnyArray:  # noqa: ANN401 - exists only inside Triton
        """Return a torch tensor in Triton's memory, which stays valid as long as the tensor exists."""
        return importlib.import_module("torch").from_dlpack(tensor.to_dlpack())

    def give(self, name: str, result: AnyArray) -> Any:  # noqa: ANN401 - as above
        """Return the output tensor of Triton, which accepts only contiguous tensors."""
        return _triton().Tensor.from_dlpack(name, result.detach().cpu().contiguous())


class FrnnStage(Stage):
    """Embedding `[N, D]` (float32) to candidate edges `[2, E]` (int64); parameters radius, max_neighbours, edge_order.

    Edges by radius need the hits, `[N, F]` (float32), as a second input.
    """

    outputs = ("OUTPUT0",)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Read the radius, the neighbour limit, the edge order and the features."""
        self.radius = float(parameters.get("radius", DEFAULT_SETTINGS.radius))
        self.max_neighbours = int(parameters.get("max_neighbours", DEFAULT_SETTINGS.max_neighbours))
        self.columns = int(config["input"][0]["dims"][1])
        self.order = edge_order_of(parameters)
        self.features = read_features(Path(args["model_repository"]).parent)
        if self.order == "radius":
            require_radii(self.features)

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the candidate edges."""
        embedding: Float32 = inputs["INPUT0"]
        check_table("INPUT0", embedding, columns=self.columns)
        edges = fixed_radius_edges(embedding, radius=self.radius, max_neighbours=self.max_neighbours)
        if self.order == "both":
            edges = in_order(edges, self.order, None)
        elif self.order == "radius":
            hits = inputs.get("INPUT1")
            if hits is None or len(hits) != len(embedding):
                raise BadTensor("INPUT1 must be the hits of INPUT0: the edges are ordered by radius")
            check_hits("INPUT1", hits, self.features)
            edges = in_order(edges, self.order, radii_of(hits, self.features))
        return (np.ascontiguousarray(edges),)


class ApplyFilterStage(Stage):
    """Scores `[E, 1]` (float32) and edges `[2, E]` (int64) to the edges that pass; parameters cut, scores."""

    outputs = ("EDGE_LIST_AFTER_FILTER",)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Read the cut, a probability, and the kind of the scores."""
        self.cut = float(parameters.get("cut", DEFAULT_SETTINGS.filter_cut))
        self.scores = scores_of(parameters)

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the edges whose score passes the cut."""
        scores, edges = inputs["FILTER_SCORES"], inputs["EDGE_LIST"]
        check_edges("EDGE_LIST", edges)
        check_scores("FILTER_SCORES", scores, n_edges=edges.shape[1])
        return (apply_filter(edges, scores, cut=self.cut, scores=self.scores),)


class WccStage(Stage):
    """Edges `[2, E]` (int64), scores `[E]` (float32) and, if given, hits `[N, F]` to labels; parameters cut, scores.

    With the hits there are exactly N labels. Without them, as in the public service, the number of labels is the
    largest hit number in the edges plus one.
    """

    outputs = ("OUTPUT0",)

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Read the cut, a probability, and the kind of the scores."""
        self.cut = float(parameters.get("cut", DEFAULT_SETTINGS.gnn_cut))
        self.scores = scores_of(parameters)
        self.features = read_features(Path(args["model_repository"]).parent)

    def compute(self, inputs: Mapping[str, Array]) -> tuple[Array, ...]:
        """Return the labels `[N]` (int64)."""
        edges, scores, hits = inputs["INPUT0"], inputs["INPUT1"], inputs.get("INPUT2")
        if hits is not None:
            # If Triton's own backend runs the networks, the hits were not checked before.
            check_hits("INPUT2", hits, self.features)
        n_hits = None if hits is None else len(hits)
        check_edges("INPUT0", edges, n_hits=n_hits)
        check_scores("INPUT1", scores, n_edges=edges.shape[1])
        return (label_components(edges, scores, cut=self.cut, n_hits=n_hits, scores=self.scores),)


class TorchScriptStage(TorchStage):
    """A TorchScript network in the Python backend, for servers without Triton's PyTorch backend.

    Inputs are the hits `[N, F]` (float32) and, for an edge network, the edges `[2, E]` (int64). Tensor names
    come from config.pbtxt. The parameter `weights` names the file in the version folder. An instance of KIND_CPU never
    uses a GPU, even if there is one.
    """

    def configure(self, args: Mapping[str, str], config: dict[str, Any], parameters: dict[str, str]) -> None:
        """Load the weights and run them on a sample, so that a faulty network fails now, not at the first event."""
        self.torch = importlib.import_module("torch")
        self.torch.set_num_threads(int(parameters.get("threads", "1")))
        self.device = device_of(args)
        weights = Path(args["model_repository"]) / args["model_version"] / parameters.get("weights", "model.pt")
        require_weight(self.model, weights)
        self.features = read_features(Path(args["model_repository"]).parent)
        inference = importlib.import_module("exatrkx_hpc.tracking.inference")
        try:
            use_device(self.device)
            self.network = inference.load_network(weights, device=self.device, columns=len(self.features))
        except ValueError as error:
            raise ValueError(f"{self.model}: {error}") from error
        self.inputs = tuple(entry["name"] for entry in config["input"])
        self.outputs = tuple(entry["name"] for entry in config["output"])
        self.dims = [int(size) for size in config["output"][0]["dims"]]
        try:
            check_signature(
                self._on_arrays,
                inputs=self.inputs,
                output=self.outputs[0],
                columns=self.dims[1:],
                features=self.features,
            )
        except BadTensor as error:
            raise ValueError(f"{self.model}: {weights}: {error}") from error

    def compute(self, inputs: Mapping[str, AnyArray]) -> tuple[AnyArray, ...]:
        """Return the network's output, a tensor: `[N, D]` for the embedding, one score per edge for the others."""
        hits, *rest = (inputs[name] for name in self.inputs)
        check_hits(self.inputs[0], on_host(hits), self.features)
        for name, edges in zip(self.inputs[1:], rest, strict=True):
            check_edges(name, on_host(edges), n_hits=len(hits))
        rows = rest[0].shape[1] if rest else len(hits)
        answer = _shaped(self._run(hits, *rest), self.outputs[0], (rows, *self.dims[1:]))
        return (_own(answer, hits, *rest),)

    def _run(self, *tensors: AnyArray) -> AnyArray:
        with self.torch.inference_mode():
            return self.network(*(tensor.to(self.device) for tensor in tensors)).cpu()

    def _on_arrays(self, *arrays: Array) -> Array:
        answer: Array = self._run(*map(self.torch.from_numpy, arrays)).numpy()
        return answer


@functools.cache
def _triton() -> Any:  # noqa: ANN401 - as above
    """Return Triton's module; cached, because the search of an import statement costs time in each request."""
    return importlib.import_module("triton_python_backend_utils")


def end_server(why: str) -> None:
    """Write `why` to the log and stop the server cleanly; its supervisor, such as the farm, restarts it."""
    print(why, file=sys.stderr, flush=True)
    server = os.getppid()
    if Path(f"/proc/{server}/comm").read_text().strip() != "tritonserver":
        os._exit(1)  # started by another program, which must see that this process cannot continue
    os.kill(server, signal.SIGTERM)


def require_weight(model: str, path: Path) -> None:
    """Raise FileNotFoundError, which names the model, if a weight is missing."""
    if not path.is_file():
        raise FileNotFoundError(f"{model}: the weight {path} is missing; train or copy it")


def _shaped(answer: AnyArray, name: str, shape: tuple[int, ...]) -> AnyArray:
    """Return the tensor in the shape of config.pbtxt: some networks return `[E]`, others `[E, 1]`."""
    if answer.numel() != math.prod(shape):
        raise BadTensor(f"{name} has shape {list(answer.shape)}, but config.pbtxt promises {list(shape)}")
    return answer.reshape(shape)


def _own(answer: AnyArray, *inputs: AnyArray) -> AnyArray:
    """Return the tensor in its own memory: a network may return its input, whose memory belongs to Triton."""
    memory = answer.untyped_storage().data_ptr()
    shared = any(memory == tensor.untyped_storage().data_ptr() for tensor in inputs)
    return answer.clone() if shared else answer
