"""The contract of the container engines, held by each of them and by one that is a file of the tests."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from addresses import own_address
from engines import EXAMPLE, NAMES, add_example, write_program
from paths import FAKES
from repositories import tiny_repository
from waiting import until

from exatrkx_hpc import farm
from exatrkx_hpc.base.assets import package_parent
from exatrkx_hpc.base.errors import ConfigError, LaunchError, MissingComponent
from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.config.engines import ENGINES
from exatrkx_hpc.config.resolve import resolve
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.doctor import examine
from exatrkx_hpc.doctor.engine import engine_findings
from exatrkx_hpc.doctor.finding import Finding
from exatrkx_hpc.fleet.members.record import read_records
from exatrkx_hpc.launch.embedded.cleanup import containers, removal_argv
from exatrkx_hpc.launch.engines.base import PULL_DEADLINE, ContainerEngine
from exatrkx_hpc.launch.engines.spec import ContainerSpec
from exatrkx_hpc.launch.engines.table import engine_named
from exatrkx_hpc.launch.images import find_image, refuse_missing_image
from exatrkx_hpc.launch.plan import engine_faults, make_plan
from exatrkx_hpc.launch.words import Var
from exatrkx_hpc.prepare import refuse_faults, set_up

#: A name that each engine takes; to apptainer it is a file.
IMAGE = "nowhere/triton:1"
SPEC = ContainerSpec(
    image=IMAGE,
    command=("tritonserver", ("--id=", Var("instance"))),
    folders=("/models",),
    mounts=(("/environment", "/environment"),),
    environment=(("A", "b c"),),
    modules=("gpu",),
)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of each engine."""
    add_example(monkeypatch)
    return str(request.param)


@pytest.fixture
def engine(name: str) -> ContainerEngine:
    return engine_named(name)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that alone is PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for program in ("bash", "env"):
        (folder / program).symlink_to(f"/usr/bin/{program}")
    return folder


def broken(folder: Path, engine: ContainerEngine) -> None:
    """Put programs of the engine into the folder that fail in three lines whatever they are asked."""
    for program in engine.programs:
        write_program(folder, program, "printf 'one\\ntwo; three\\nfour\\n' >&2; exit 3")


def farm_of(name: str, folder: Path, **more: object) -> Farm:
    values = {"site": "local", "run_root": str(folder / "runs"), "server.engine": name, "server.image": IMAGE}
    return resolve(flags={**values, **more}, ambient=False).farm


def test_it_has_programs_if_it_has_containers(engine):
    assert isinstance(engine, ContainerEngine)
    assert bool(engine.programs) is engine.has_container


def test_an_ordinary_server_is_the_end_of_its_command(engine):
    assert engine.faults(SPEC) == ()
    argv = engine.argv(SPEC)
    assert argv[-len(SPEC.command) :] == SPEC.command
    assert not engine.has_container or argv[0] in engine.programs
    assert not {"-it", "-i", "-t", "--tty", "--interactive"} & {word for word in argv if isinstance(word, str)}


def test_a_plan_is_made_of_what_it_says(name, engine, tmp_path):
    plan = make_plan(farm_of(name, tmp_path))
    assert (plan.engine, plan.container_stop, plan.foreign) == (name, engine.removal(), engine.foreign())
    assert any(word == f"--model-repository={plan.model_repository}" for word in plan.command)


def test_a_question_ends_in_its_own_words_and_has_time_for_a_pull_if_it_needs_one(engine):
    asked = engine.question(SPEC, ("python3", "-c", "print(1)"))
    assert asked.words[-2:] == ("-c", "print(1)") and "python3" in asked.words
    assert not engine.has_container or asked.words[0] in engine.programs
    for image in (IMAGE, f"docker://{IMAGE}"):
        spec = ContainerSpec(image=image, command=("tritonserver",))
        pulls_first = engine.pull(image) is None and "://" in engine.image_name(image) and engine.has_container
        assert engine.question(spec, ("true",)).deadline == (PULL_DEADLINE if pulls_first else 60)


def test_a_pull_names_the_image_as_the_engine_does_and_may_take_long(engine):
    pull = engine.pull(f"docker://{IMAGE}")
    if pull is not None:
        assert pull.words[0] in engine.programs
        assert pull.words[-1] == engine.image_name(f"docker://{IMAGE}")
        assert pull.deadline == PULL_DEADLINE


def test_what_it_cannot_do_is_refused_before_anything_is_written(name, engine, tmp_path):
    wrong = {"server.image": "--privileged"} if engine.has_container else {"server.mounts": ["/a:/b"]}
    what = farm_of(name, tmp_path, **wrong)
    assert len(engine_faults(what)) == 1
    with pytest.raises(LaunchError, match=rf"^engine {name}: [^;\n]+; [^\n]+$"):
        refuse_faults(what)
    (finding,) = [one for one in engine_findings(what) if one.what == "server settings"]
    assert (finding.ok, bool(finding.found), bool(finding.remedy)) == (False, True, True)
    assert not (tmp_path / "runs").exists()


def test_without_its_programs_doctor_says_what_to_do_and_deploy_does_not_ask(name, engine, tmp_path, programs):
    what = farm_of(name, tmp_path, **{"server.image": f"docker://{IMAGE}"})
    refuse_missing_image(what)  # they may be on the nodes alone
    found = [one for one in engine_findings(what) if one.what == "engine"]
    assert [one.ok for one in found] == [False] * len(engine.programs)
    assert all("load its module" in one.remedy for one in found)


def test_an_image_that_it_does_not_tell_of_is_one_line_with_what_to_do(name, engine, tmp_path, programs):
    broken(programs, engine)
    what = farm_of(name, tmp_path)
    if not engine.has_container:
        assert [one.what for one in engine_findings(what)] == []
        return
    with pytest.raises(LaunchError, match=r"^[^;\n]+; [^\n]+$"):
        find_image(what)
    (finding,) = [one for one in engine_findings(what) if one.what == "image"]
    assert (finding.ok, bool(finding.remedy)) == (False, True)


def test_what_doctor_tries_fails_in_one_line_with_what_to_do(engine, tmp_path):
    mounts = ((str(tmp_path), "/elsewhere"), ("/nowhere", "/nothing"))
    for trial in engine.trials(ContainerSpec(image=IMAGE, command=("tritonserver",), mounts=mounts)):
        assert trial.command.words[0] in engine.programs
        assert "/nowhere" not in " ".join(trial.command.words), "what is not here is not tried"
        answer = Completed(argv=trial.command.words, returncode=1, stdout="", stderr="one\ntwo\n")
        what, _, remedy = trial.refusal(answer).partition("; ")
        assert what and remedy and "\n" not in what + remedy


def test_what_it_lists_it_can_remove(name, engine, tmp_path, programs):
    removal, listing = engine.removal(), engine.listing()
    assert bool(removal) is bool(listing)
    if not listing:
        assert containers(name, tmp_path) == ()
        return
    assert [word for word in removal if not isinstance(word, str)] == [Var("container")]
    assert removal_argv(name, ["a", "b"])[-2:] == ["a", "b"]
    assert {removal[0], listing[0]} <= set(engine.programs)
    assert engine.read_listing("") == ()
    with pytest.raises(ValueError):
        engine.read_listing("no list")
    with pytest.raises(MissingComponent, match="load its module"):
        containers(name, tmp_path)
    broken(programs, engine)
    with pytest.raises(LaunchError, match="cannot list the containers of"):
        containers(name, tmp_path)


# A new engine: one file and a line of the table


def test_the_package_does_not_know_the_example(tmp_path):
    with pytest.raises(ConfigError, match=r"server\.engine: input should be 'shifter', .* or 'none' \(got 'example'\)"):
        farm_of(EXAMPLE, tmp_path)


#: Images and containers are files in $BOX: what is in the image is this machine.
BOX = """\
set -eu
case $1 in
  pull) touch "$BOX/images/${2//\\//_}"; echo "pulled $2" ;;
  has) [ -e "$BOX/images/${2//\\//_}" ] ;;
  list) cat "$BOX"/containers/* 2>/dev/null || true ;;
  remove) shift; for one; do rm -f "$BOX/containers/$one"; done ;;
  run)
    name=$2 mounts=
    shift 2
    while [[ $1 == --bind=* ]]; do
      one=${1#--bind=}
      [ "${one#*=}" != /refused ] || { echo "no place for it" >&2; exit 1; }
      mounts+=${mounts:+:}${one%%=*}
      shift
    done
    printf '%s\\t%s\\n' "$name" "$mounts" >"$BOX/containers/$name"
    shift
    exec "$@"
    ;;
esac"""


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of box, which is first on PATH."""
    add_example(monkeypatch)
    folder = tmp_path / "box"
    for part in ("", "bin", "images", "containers"):
        (folder / part).mkdir()
    write_program(folder / "bin", "box", BOX)
    monkeypatch.setenv("BOX", str(folder))
    monkeypatch.setenv("PATH", f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.mark.slow
def test_a_new_engine_runs_a_farm_from_setup_to_stop(box, tmp_path):
    tiny_repository(tmp_path / "models")
    address = own_address()
    more = {
        "cluster.local_address": address,
        "job.nodes": 1,
        "server.model_repository": str(tmp_path / "models"),
        "server.triton": str(FAKES / "fake_tritonserver"),
        "server.mounts": [f"{tmp_path}:/data", f"{FAKES}:/refused"],
        "server.drain": 0,
        "balancer.grpc_port": 0,
        "balancer.http_port": 0,
        "monitor.prometheus": False,
        "monitor.trial": False,
    }
    what = farm_of(EXAMPLE, tmp_path, **more)
    with pytest.raises(LaunchError, match=rf"^box has no {IMAGE}; pull it with 'exatrkx-hpc setup'"):
        farm.deploy(what)
    told: list[str] = []
    set_up(what, lambda news: told.append(str(news)), trust_run_root=True)
    assert told == [f"image: box pull {IMAGE}", f"image: {IMAGE}"]
    found = {(one.what, one.ok): one for one in of_the_engine(what)}
    assert found["image", True].found == IMAGE
    assert found["in the container", True].found == f"{tmp_path} as /data"
    assert found["in the container", False].found == f"box does not show {FAKES}: no place for it"
    job = farm.deploy(farm_of(EXAMPLE, tmp_path, **{**more, "server.mounts": [f"{tmp_path}:/data"]}))
    try:
        record = until(lambda: next(iter(read_records(job.run_dir)), None), what="a record")
        (one,) = until(lambda: containers(EXAMPLE, tmp_path / "runs"), what="a container")
        assert (one.name, one.job, one.running) == (f"exatrkx-{job.id}-{address}-0", job.id, True)
        assert record.state == "starting"
    finally:
        farm.stop(job, drain=False)
    assert containers(EXAMPLE, tmp_path / "runs") == (), "the script has removed it"


def of_the_engine(what: Farm) -> list[Finding]:
    """What doctor finds of the engine, among all that it finds."""
    found = list(examine(what, lambda: make_plan(what)))
    assert [one for one in found if one.what == "engine"] == [
        Finding(what="engine", ok=True, found=str(Path(os.environ["BOX"], "bin", "box")))
    ]
    return found


# Nobody else asks an engine's name


def asked_names(tree: ast.AST) -> Iterator[str]:
    """Yield each place of a module that decides by an engine's name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in set(ENGINES) - {"none"}:
            yield f"line {node.lineno}: {node.value!r}"
        if isinstance(node, ast.Compare | ast.Subscript | ast.Match) and (line := _decides(node)):
            yield f"line {node.lineno}: {line}"


def _decides(node: ast.Compare | ast.Subscript | ast.Match) -> str:
    """Return the text of a comparison, a look-up or a match whose subject is called `engine`."""
    match node:
        case ast.Compare():
            sides = [node.left, *node.comparators]
        case ast.Subscript():
            sides = [node.slice]
        case ast.Match():
            sides = [node.subject]
    names = {side.attr if isinstance(side, ast.Attribute) else getattr(side, "id", "") for side in sides}
    return ast.unparse(node).partition("\n")[0] if "engine" in names else ""


def test_nobody_else_asks_an_engines_name():
    """They ask the engine, so that another one is one file and one line of the table."""
    package = package_parent() / "exatrkx_hpc"
    asking = {
        f"{path.relative_to(package)}: {place}"
        for path in package.rglob("*.py")
        if path.parts[-2] != "engines" and path.parent.name != "config"
        for place in asked_names(ast.parse(path.read_text()))
    }
    assert asking == set()


@pytest.mark.parametrize(
    "code",
    [
        'if farm.server.engine == "none": pass',
        'if engine in ("none", "x"): pass',
        "look = TABLE[farm.server.engine]",
        'match farm.server.engine:\n    case "none": pass',
        'special = {"podman": 1}',
    ],
)
def test_a_question_for_a_name_would_be_found(code):
    assert list(asked_names(ast.parse(code)))
