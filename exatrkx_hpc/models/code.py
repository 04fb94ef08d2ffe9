"""Inspect the code of a Python model: its stage class, the parameters that it reads, and its imports.

The code is parsed, not imported or run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from exatrkx_hpc.models.repository import Model

_SERVING = "exatrkx_hpc.tracking.serving"
#: Where the stage classes of this package are.
_OUR_STAGES = (_SERVING, "exatrkx_hpc.traccc.serving")
#: The parameters of config.pbtxt that each stage of this package reads, by the class that its model.py imports.
READS = {
    "FrnnStage": ("radius", "max_neighbours", "edge_order"),
    "ApplyFilterStage": ("cut", "scores"),
    "WccStage": ("cut", "scores"),
    "FusedStage": ("radius", "max_neighbours", "filter_cut", "gnn_cut", "scores", "edge_order"),
}
#: Packages that need a GPU and its driver, on import or on first use.
_GPU_PACKAGES = frozenset({"cudf", "cugraph", "cuml", "cupy", "cupyx", "pycuda", "pylibcugraph", "pylibraft", "rmm"})
_GPU_MODULES = ("numba.cuda",)

#: The complete model.py of a network that Triton's Python backend runs.
_NETWORK = '''"""Triton loads this; the package exatrkx_hpc must be on the PYTHONPATH of the server.

The Python inside Triton 2.51 passes over that variable, hence the line that reads it.
"""

import os
import sys

sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]

from {module} import {stage} as TritonPythonModel  # noqa: E402, F401
'''
_NETWORK_STAGES = {"TorchScriptStage": _SERVING, "OnnxStage": f"{_SERVING}_onnx"}


def network_code(stage: str) -> str:
    """Return the model.py of a network that the stage `TorchScriptStage` or `OnnxStage` runs."""
    return _NETWORK.format(module=_NETWORK_STAGES[stage], stage=stage)


def stage_of(model: Model) -> str:
    """Return the stage class of this package that a model's served code imports, such as `FrnnStage`, or ''."""
    for path in _served_code(model):
        for node in ast.walk(_parsed(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(_OUR_STAGES):
                return next((alias.name for alias in node.names if alias.name.endswith("Stage")), "")
    return ""


def runs_onnx(model: Model) -> bool:
    """Return whether a model is an ONNX network that OnnxStage of this package runs."""
    return stage_of(model) == "OnnxStage"


def reads(model: Model, parameter: str) -> bool:
    """Return whether the code of `model` reads this parameter of its config.pbtxt.

    A stage of this package is known by its class. A site's own code is assumed to read a parameter if it contains the
    parameter's name as a string.
    """
    if stage := stage_of(model):
        return parameter in READS.get(stage, ())
    trees = [_parsed(path) for path in _all_code(model)]
    return any(isinstance(node, ast.Constant) and node.value == parameter for tree in trees for node in ast.walk(tree))


def gpu_code(model: Model) -> str:
    """Return where the code of `model` requires a GPU, such as `1/model.py line 3 imports cupy`, or ''.

    Code in an `if`, or in a `try` that catches the failure, is ignored, because it has an alternative.
    """
    for path in _all_code(model):
        for line, what in _wants_gpu(_parsed(path)):
            return f"{path.relative_to(model.folder)} line {line} {what}"
    return ""


def _wants_gpu(node: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield line number and action of the code below `node` that always requires a GPU."""
    if isinstance(node, ast.If | ast.IfExp):
        return
    if isinstance(node, ast.Try) and any(_catches_failure(handler) for handler in node.handlers):
        return
    for name in _imports(node):
        if name.partition(".")[0] in _GPU_PACKAGES or name.startswith(_GPU_MODULES):
            yield getattr(node, "lineno", 0), f"imports {name}"
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "cuda":
        yield node.lineno, "calls .cuda()"
    for child in ast.iter_child_nodes(node):
        yield from _wants_gpu(child)


def _imports(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
        yield from (f"{node.module}.{alias.name}" for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        if name in ("import_module", "__import__") and isinstance(node.args[0].value, str):
            yield node.args[0].value


def _catches_failure(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    names = {getattr(kind, "id", "Exception") for kind in kinds}
    return bool(names & {"Exception", "BaseException", "ImportError", "ModuleNotFoundError", "RuntimeError"})


def _served_code(model: Model) -> Iterator[Path]:
    """Yield the file that the Python backend loads, for each served version."""
    if model.backend == "python":
        name = model.config.default_model_filename or "model.py"
        yield from (model.folder / str(version) / name for version in model.served())


def _all_code(model: Model) -> Iterator[Path]:
    """Yield the file that the Python backend loads and the modules beside it, for each served version."""
    for path in _served_code(model):
        yield path
        yield from (other for other in sorted(path.parent.rglob("*.py")) if other != path)


def _parsed(path: Path) -> ast.AST:
    """Return the file's syntax tree; an empty one if the file is missing or this Python cannot parse it."""
    try:
        return ast.parse(path.read_bytes())
    except (OSError, ValueError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])
