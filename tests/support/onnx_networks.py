"""ONNX files for tests: small graphs made by hand, and the shipped networks exported."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from exatrkx_hpc.base.process import run

HITS = ("hits", TensorProto.FLOAT, ["N", 3])
EDGES = ("edges", TensorProto.INT64, [2, "E"])
#: Old enough for every onnxruntime version that the extra allows.
OPSET, IR_VERSION = 17, 8

#: Exports the shipped networks. torch's exporter does not support asinh, and its index_add_ loses rows with repeated
#: indices. In these networks, training mode only turns off the split of edges into blocks.
_EXPORT = """
import sys, warnings
import torch
from exatrkx_hpc.base.assets import asset
from exatrkx_hpc.tracking.training.networks import Embed, Filter, Gnn

warnings.simplefilter("ignore")
torch.asinh = lambda x: torch.log(x + torch.sqrt(x * x + 1))
torch.Tensor.index_add_ = lambda sums, dim, index, rows: sums.scatter_add(dim, index[:, None].expand_as(rows), rows)
for name, network in {"embed": Embed(), "filter": Filter(), "gnn": Gnn()}.items():
    network.load_state_dict(torch.jit.load(str(asset(f"model_repos/exatrkx/{name}/1/model.pt"))).state_dict())
    names = ["hits"] if name == "embed" else ["hits", "edges"]
    sample = (torch.rand(5, 3), torch.tensor([[1, 2, 3], [0, 1, 2]]))[: len(names)]
    torch.onnx.export(
        network.train(), sample, f"{sys.argv[1]}/{name}.onnx", dynamo=False, opset_version=17, input_names=names,
        output_names=["answer"], dynamic_axes={"hits": {0: "N"}, "edges": {1: "E"}},
        training=torch.onnx.TrainingMode.PRESERVE,
    )
"""


def export_shipped(folder: Path) -> dict[str, Path]:
    """Write `embed.onnx`, `filter.onnx` and `gnn.onnx`, with the same outputs as the shipped TorchScript files."""
    done = run([sys.executable, "-c", _EXPORT, str(folder)], timeout=120)
    assert done.returncode == 0, done.stderr
    return {name: folder / f"{name}.onnx" for name in ("embed", "filter", "gnn")}


def write(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    *,
    inputs: Sequence[tuple] = (HITS,),
    outputs: Sequence[tuple] = (("answer", TensorProto.FLOAT, ["N", 8]),),
    constants: dict[str, np.ndarray] | None = None,
    opset: int = OPSET,
) -> Path:
    """Write a graph of these nodes."""
    graph = helper.make_graph(
        list(nodes),
        "network",
        [helper.make_tensor_value_info(*one) for one in inputs],
        [helper.make_tensor_value_info(*one) for one in outputs],
        [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION)
    path.write_bytes(made.SerializeToString())
    return path


def node(kind: str, inputs: Sequence[str], output: str = "answer", **attributes: object) -> onnx.NodeProto:
    """Return one operation."""
    return helper.make_node(kind, list(inputs), [output], **attributes)


WEIGHTS = np.random.default_rng(3).normal(size=(3, 8)).astype(np.float32)


def embedding(path: Path, **changes: object) -> Path:
    """Write a network that returns hits times WEIGHTS, `[N, 8]`."""
    return write(path, [node("MatMul", ["hits", "W"])], **{"constants": {"W": WEIGHTS}} | changes)


def edge_network(path: Path, *, rank: int = 2, **changes: object) -> Path:
    """Write a network that returns the difference in r of each edge, `[E, 1]`, or `[E]` if `rank` is 1."""
    steps = [
        node("Gather", ["edges", "first"], "a", axis=0),
        node("Gather", ["edges", "second"], "b", axis=0),
        node("Gather", ["hits", "a"], "at_a", axis=0),
        node("Gather", ["hits", "b"], "at_b", axis=0),
        node("Sub", ["at_a", "at_b"], "step"),
        node("MatMul", ["step", "r"], "column"),
        node("Reshape", ["column", "shape"]),
    ]
    constants = {
        "first": np.array(0, np.int64),
        "second": np.array(1, np.int64),
        "r": np.array([[1], [0], [0]], np.float32),
        "shape": np.array([-1, 1][:rank], np.int64),
    }
    options = {
        "inputs": (HITS, EDGES),
        "outputs": (("answer", TensorProto.FLOAT, ["E", 1][:rank]),),
        "constants": constants,
    }
    return write(path, steps, **options | changes)
