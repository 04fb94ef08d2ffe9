"""The direction of imports: down only, and nothing happens at import but definitions."""

from __future__ import annotations

import ast
import graphlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from package_modules import FRONT_DOOR, NAMES, TREES, folders, import_alone

from exatrkx_hpc.base.process import run
from exatrkx_hpc.cli.commands import COMMANDS
from exatrkx_hpc.launch.payload import write_payload

#: The layers, lowest first. A module imports from its own folder and from lower layers, no other folder of its layer.
LAYERS = (
    {"", "base"},
    {"config"},
    {"launch", "measure", "models"},
    {"fleet", "work"},
    {"doctor", "job_end", "page", "prepare", "scores", "track_scores"},
    {"farm"},
    {"bench", "demo"},
    {"cli"},
    {"__main__"},
)
#: The template of a user's file, which imports what such a file may.
TEMPLATE = "exatrkx_hpc.work.workloads.echo"
#: The same within a folder; `` is what lies in the folder itself.
INNER_LAYERS = {
    "work": ({""}, {"workloads"}, {"events"}, {"results"}, {"inference", "ledger"}, {"run"}, {"map", "nodes"}),
    "tracking": ({""}, {"simulation"}, {"scoring"}, {"training"}),
    "traccc": ({""}, {"simulation"}, {"scoring"}),
}
#: `tracking` and `traccc` run inside Triton. They stand beside the layers: these may import them, and they import
#: nothing of the rest. `traccc` may use what of `tracking` travels to the nodes, such as the base of a stage. Its
#: scoring, which does not travel, may also use the scoring of `tracking`.
ON_NODES = {"tracking", "traccc"}
KNOW_TRACKING = {"farm", "demo", "cli", "models", "scores", "track_scores"}
#: The workload of cells sends and reads the tensors that `traccc` defines; the rest of `work` knows neither.
KNOWS_TENSORS = "exatrkx_hpc.work.workloads.traccc"
#: What they may need: they also run inside Triton, on Python 3.10.
#: `acts` is optional: it is imported where it simulates or finds tracks.
FOR_TRACKING = {"acts", "numpy", "scipy", "torch", "triton_python_backend_utils"}
STARTS_PROGRAMS = {
    *("create_subprocess_exec", "create_subprocess_shell", "subprocess_exec", "subprocess_shell"),
    *("system", "popen", "fork", "forkpty", "posix_spawn", "posix_spawnp", "ProcessPoolExecutor"),
    *(f"{verb}{form}" for verb in ("exec", "spawn") for form in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
}


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield every module that is imported anywhere in `tree`, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in NAMES else str(node.module)


ARROWS = {name: set(imported(tree)) for name, tree in TREES.items()}
#: The front door's own imports are for type checkers; test_front_door.py compares them with what it gives.
ARROWS[FRONT_DOOR] = set(imported(ast.Module([n for n in TREES[FRONT_DOOR].body if not isinstance(n, ast.If)], [])))


def ours(module: str) -> set[str]:
    return {target for target in ARROWS[module] if target.partition(".")[0] == "exatrkx_hpc"}


def layer(name: str, layers: Sequence[set[str]]) -> int:
    return next(number for number, names in enumerate(layers) if name in names)


def allowed(source: str, target: str) -> bool:
    (here, inner), (there, other) = folders(source), folders(target)
    if target == FRONT_DOOR:
        return True
    if here == there:
        layers = INNER_LAYERS.get(here)
        return layers is None or inner == other or layer(other, layers) < layer(inner, layers)
    if there in ON_NODES:
        if source == KNOWS_TENSORS:
            return there == "traccc" and other == ""
        return here in KNOW_TRACKING or (here == "traccc" and other in {"", inner} - {"simulation"})
    return here not in ON_NODES and layer(there, LAYERS) < layer(here, LAYERS)


def test_every_folder_has_its_layer():
    assert {folders(name)[0] for name in NAMES} == set().union(*LAYERS, ON_NODES), "a new folder needs a layer"
    for name, layers in INNER_LAYERS.items():
        inner = {within for folder, within in map(folders, NAMES) if folder == name}
        assert inner - {""} == set().union(*layers) - {""}, f"a new folder in {name} needs a layer"


@pytest.mark.parametrize("module", NAMES)
def test_imports_run_downward(module: str):
    assert [target for target in sorted(ours(module)) if not allowed(module, target)] == []


def test_an_arrow_that_runs_up_would_be_found():
    assert not allowed("exatrkx_hpc.launch.plan", "exatrkx_hpc.farm")
    assert not allowed("exatrkx_hpc.launch.plan", "exatrkx_hpc.fleet.monitor")
    assert not allowed("exatrkx_hpc.fleet.monitor", "exatrkx_hpc.work.run.run")
    assert not allowed("exatrkx_hpc.base.errors", "exatrkx_hpc.config.schema")
    assert not allowed("exatrkx_hpc.tracking.frnn", "exatrkx_hpc.base.errors")
    assert not allowed("exatrkx_hpc.tracking.frnn", "exatrkx_hpc.tracking.simulation.synthetic")
    assert not allowed("exatrkx_hpc.work.inference.client", "exatrkx_hpc.tracking.frnn")
    assert not allowed("exatrkx_hpc.work.inference.client", "exatrkx_hpc.traccc.tensors")
    assert not allowed("exatrkx_hpc.work.workloads.traccc", "exatrkx_hpc.traccc.scoring.score")
    assert allowed("exatrkx_hpc.work.workloads.traccc", "exatrkx_hpc.traccc.tensors")
    assert not allowed("exatrkx_hpc.tracking.frnn", "exatrkx_hpc.traccc.cells")
    assert not allowed("exatrkx_hpc.traccc.cells", "exatrkx_hpc.base.errors")
    assert not allowed("exatrkx_hpc.traccc.cells", "exatrkx_hpc.traccc.simulation.truth")
    assert not allowed("exatrkx_hpc.traccc.simulation.truth", "exatrkx_hpc.tracking.simulation.synthetic")
    assert not allowed("exatrkx_hpc.traccc.clusters", "exatrkx_hpc.tracking.scoring.score")
    assert not allowed("exatrkx_hpc.tracking.scoring.score", "exatrkx_hpc.traccc.scoring.score")
    assert allowed("exatrkx_hpc.traccc.clusters", "exatrkx_hpc.tracking.tensors")
    assert allowed("exatrkx_hpc.traccc.scoring.score", "exatrkx_hpc.tracking.scoring.score")
    assert not allowed("exatrkx_hpc.work.results.layout", "exatrkx_hpc.work.ledger.ledger")
    assert not allowed("exatrkx_hpc.work.inference.client", "exatrkx_hpc.work.ledger.ledger")
    assert allowed("exatrkx_hpc.fleet.monitor", "exatrkx_hpc.launch.scheduler")
    assert allowed("exatrkx_hpc.work.run.run", "exatrkx_hpc.work.ledger.ledger")


def test_nothing_in_the_package_uses_the_front_door_but_the_template():
    for name, tree in TREES.items():
        taken = {
            alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == FRONT_DOOR
            for alias in node.names
            if f"{FRONT_DOOR}.{alias.name}" not in NAMES
        }
        assert taken <= {"__version__"} or name == TEMPLATE, f"{name} takes {taken} from the top"
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Import) and "exatrkx_hpc" in ast.dump(node)]
    assert ours(TEMPLATE) == {FRONT_DOOR}


def test_the_front_door_imports_nothing_of_ours_before_it_is_used():
    assert ours(FRONT_DOOR) == set()
    modules = import_alone(FRONT_DOOR)["modules"]
    assert not {"numpy", "pydantic", "tritonclient", "grpc", "torch", "typer", "requests"} & set(modules)


def test_no_imports_run_in_a_circle():
    graphlib.TopologicalSorter({name: ours(name) - {name} for name in NAMES}).prepare()


@pytest.mark.parametrize("module", [name for name in NAMES if folders(name)[0] in ON_NODES])
def test_tracking_needs_numpy_scipy_and_torch_alone(module: str):
    others = {target.partition(".")[0] for target in ARROWS[module]} - sys.stdlib_module_names - {"exatrkx_hpc"}
    assert others <= FOR_TRACKING
    at_import = ast.Module([node for node in TREES[module].body if isinstance(node, ast.Import | ast.ImportFrom)], [])
    assert "triton_python_backend_utils" not in set(imported(at_import)), "it exists inside Triton only"


@pytest.mark.parametrize("module", [name for name in NAMES if name != "exatrkx_hpc.base.process"])
def test_process_is_the_only_door_to_other_programs(module: str):
    assert not {"subprocess", "multiprocessing", "pty", "pexpect"} & {name.split(".")[0] for name in ARROWS[module]}
    words = {node.attr for node in ast.walk(TREES[module]) if isinstance(node, ast.Attribute)}
    words |= {node.id for node in ast.walk(TREES[module]) if isinstance(node, ast.Name)}
    assert words & STARTS_PROGRAMS == set()


@pytest.mark.parametrize("module", NAMES)
def test_every_module_postpones_its_annotations(module: str):
    imports = [node for node in TREES[module].body if isinstance(node, ast.Import | ast.ImportFrom)]
    if imports:
        assert isinstance(imports[0], ast.ImportFrom) and imports[0].module == "__future__"


@pytest.mark.slow
def test_the_command_line_starts_without_the_heavy_packages():
    modules = import_alone("exatrkx_hpc.cli")["modules"]
    assert not {"torch", "scipy", "matplotlib", "pandas", "cupy", "pytriton"} & set(modules)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["site_commands", "farm_commands", "config_commands"])
def test_a_command_does_not_wait_for_what_another_needs(module: str):
    modules = import_alone(f"exatrkx_hpc.cli.{module}")["modules"]
    assert not {"numpy", "grpc", "tritonclient", "pyarrow"} & set(modules)


def test_the_table_of_commands_is_right():
    for module, name in COMMANDS.values():
        assert callable(getattr(importlib.import_module(f"exatrkx_hpc.cli.{module}"), name))


@pytest.mark.slow
def test_importing_everything_starts_nothing():
    seen = import_alone(*NAMES)
    assert seen["events"] == []
    assert seen["handlers"] == 0
    assert seen["threads"] == ["MainThread"]


@pytest.mark.slow
def test_what_travels_to_the_nodes_imports_nothing_else(tmp_path: Path):
    write_payload(tmp_path)
    write_payload(tmp_path)
    parts = [name for name in NAMES if folders(name) in {(folder, "") for folder in ON_NODES}]
    seen = import_alone(*parts, PYTHONPATH=str(tmp_path))
    assert not {"pydantic", "typer", "rich", "tritonclient", "grpc", "jinja2", "requests"} & set(seen["modules"])
    code = "from exatrkx_hpc.traccc import detector; detector.generic_detector(); print(detector.__file__)"
    done = run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=Path("/"))
    assert done.stdout.strip() == str(tmp_path / "exatrkx_hpc" / "traccc" / "detector.py")
    for folder in ON_NODES:
        inside = [path for path in (tmp_path / "exatrkx_hpc" / folder).iterdir() if path.name != "__pycache__"]
        assert not any(path.is_dir() for path in inside), "simulation, training and scoring stay at home"
    assert sorted(path.name for path in (tmp_path / "exatrkx_hpc").iterdir() if path.name != "__pycache__") == [
        "__init__.py",
        *sorted(ON_NODES),
    ]
