"""Mutation testing: change one thing at a time in a copy of this tree, and check whether the tests fail.

    python tests/support/mutate.py --files 'work/run/*' 'nginx/*' --count 30 --seed 1

A mutant inverts a comparison, moves a bound, negates a condition, changes a constant, or drops a statement or an
argument; in a template it drops a line. Each mutant runs the tests that SUBJECTS lists, without those that need slow
real parts. It runs in its own namespaces, so that a mutant that kills the wrong process cannot hit this machine, and
none of its processes outlives it. Goldens are rewritten instead of compared, unless `--goldens` is set: a golden
notices every change of a text, even one without effect. Needs Linux with `unshare` and `ip`.

Read the survivors: each is a gap in the tests, dead code, or a change without an observable effect.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from rich.console import Console
from rich.table import Table

from exatrkx_hpc.base.process import TIMED_OUT, run

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "exatrkx_hpc/"
#: The most important files, and the test files of each, anywhere below tests/.
SUBJECTS: dict[str, tuple[str, ...]] = {
    "base/files.py": ("test_files.py",),
    "base/process.py": ("test_process.py",),
    "fleet/balancer/nginx.py": ("test_nginx.py", "test_balancers.py"),
    "fleet/endings.py": ("test_endings.py", "test_reasons.py"),
    "fleet/members/probe.py": ("test_probe.py",),
    "fleet/members/reconcile.py": ("test_membership.py",),
    "fleet/members/record.py": ("test_membership.py",),
    "fleet/monitor.py": ("test_monitor.py",),
    "fleet/watch.py": ("test_monitor.py",),
    "launch/plan.py": ("test_rendered_scripts.py", "test_containers.py"),
    "launch/render.py": ("test_rendered_scripts.py",),
    "launch/slurm/farm_jobs.py": ("test_farm_slurm.py", "test_slurm_submit.py"),
    "launch/slurm/parse.py": ("test_slurm_answers.py", "test_slurm.py"),
    "launch/slurm/snapshot.py": ("test_slurm.py",),
    "launch/slurm/submit.py": ("test_slurm_submit.py",),
    "work/inference/client.py": ("test_client.py",),
    "work/inference/retry.py": ("test_client.py",),
    "work/inference/blame.py": ("test_blame.py",),
    "work/ledger/file.py": ("test_ledger.py", "test_resume.py"),
    "work/ledger/ledger.py": ("test_ledger.py", "test_resume.py"),
    "work/ledger/match_events.py": ("test_resume.py", "test_formats.py"),
    "work/ledger/match_parts.py": ("test_parts.py",),
    "work/ledger/match_results.py": ("test_resume.py", "test_reconcile.py"),
    "work/ledger/open.py": ("test_resume.py", "test_ledger.py"),
    "work/map/map.py": ("test_mapping.py",),
    "work/nodes/merge.py": ("test_shards.py",),
    "work/nodes/run.py": ("test_shards.py",),
    "work/nodes/state.py": ("test_shards.py",),
    "work/results/layout.py": ("test_results.py", "test_resume.py"),
    "work/results/parts.py": ("test_parts.py",),
    "work/results/read.py": ("test_parts.py", "test_workload.py"),
    "work/results/write.py": ("test_results.py",),
    "work/run/accounts.py": ("test_workers.py", "test_resume.py"),
    "work/run/coordinator.py": ("test_workers.py",),
    "work/run/faults.py": ("test_faults.py",),
    "work/run/worker.py": ("test_worker.py", "test_workers.py"),
    "work/run/worker_process.py": ("test_workers.py",),
    "jobs/server.sh.j2": ("test_rendered_scripts.py", "test_local.py"),
    "nginx/nginx.conf.j2": ("test_nginx.py", "test_balancers.py"),
    "nginx/upstream.conf.j2": ("test_nginx.py", "test_balancers.py"),
}
NOT = "not (" + " or ".join(("slurm", "podman", "triton", "browser", "chaos", "gpu")) + ")"
#: Hides this machine's ports and shared memory: segments of invisible processes would look abandoned. Bash stays as the
#: first process of the namespace and reaps its orphans.
_APART = 'ip link set lo up && mount -t tmpfs tmpfs /dev/shm && "$@"; exit $?'
#: Beginnings and ends of blocks in a template: without such a line, the script would not be valid.
_BLOCK = ("if ", "for ", "while ", "case ", "then", "else", "elif ", "fi", "do", "done", "esac", "{", "}", "(", ")")
_TURNED = {
    ast.Lt: ("<", (">=", "<=")),
    ast.LtE: ("<=", (">", "<")),
    ast.Gt: (">", ("<=", ">=")),
    ast.GtE: (">=", ("<", ">")),
    ast.Eq: ("==", ("!=",)),
    ast.NotEq: ("!=", ("==",)),
    ast.Is: ("is", ("is not",)),
    ast.IsNot: ("is not", ("is",)),
    ast.In: ("in", ("not in",)),
    ast.NotIn: ("not in", ("in",)),
}


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change: the bytes from `start` to `end` of a file become `new`."""

    file: str
    line: int
    start: int
    end: int
    new: bytes

    def of(self, text: bytes) -> bytes:
        return text[: self.start] + self.new + text[self.end :]

    def diff(self, text: bytes) -> str:
        before, after = (one.decode().splitlines() for one in (text, self.of(text)))
        lines = difflib.unified_diff(before, after, n=0, lineterm="")
        return "\n".join(f"    {line}" for line in itertools.islice(lines, 3, None))


# Mutants


def mutants_of(file: str, text: bytes) -> list[Mutant]:
    """Return all mutants of a file, in file order."""
    edits = _python(text) if file.endswith(".py") else _template(text)
    found = {
        Mutant(file=file, line=text.count(b"\n", 0, start) + 1, start=start, end=end, new=new)
        for start, end, new in edits
    }
    return sorted(found, key=lambda one: (one.start, one.end, one.new))


Edit = tuple[int, int, bytes]


def _template(text: bytes) -> Iterator[Edit]:
    start = 0
    for line in text.splitlines(keepends=True):
        words = line.decode().strip()
        whole = not words.startswith(("#", "{%", *_BLOCK)) and not words.endswith(("\\", "{", "(", "then", "do"))
        if words and whole:
            yield start, start + len(line), b""
        start += len(line)


def _python(text: bytes) -> Iterator[Edit]:
    starts = list(itertools.accumulate(map(len, text.splitlines(keepends=True)), initial=0))

    def begin(node: ast.AST) -> int:
        return starts[node.lineno - 1] + node.col_offset  # type: ignore[attr-defined]

    def end(node: ast.AST) -> int:
        return starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]

    def between(one: ast.AST, other: ast.AST, old: str, new: str) -> Edit:
        at = end(one), begin(other)
        return *at, text[slice(*at)].replace(old.encode(), new.encode(), 1)

    def edits(node: ast.AST) -> Iterator[Edit]:
        match node:
            case ast.Compare(ops=[op]):
                old, others = _TURNED[type(op)]
                yield from (between(node.left, node.comparators[0], old, new) for new in others)
            case ast.BoolOp(values=[one, other, *_]):
                words = ("and", "or") if isinstance(node.op, ast.And) else ("or", "and")
                yield between(one, other, *words)
            case ast.UnaryOp(op=ast.Not()):
                yield begin(node), begin(node) + len("not "), b""
            case ast.Constant(value=bool(value)):
                yield begin(node), end(node), str(not value).encode()
            case ast.Constant(value=int(value)):
                yield begin(node), end(node), str(value + 1).encode()
            case ast.If() | ast.While() | ast.IfExp() if isinstance(node.test, ast.Name | ast.Attribute | ast.Call):
                yield begin(node.test), begin(node.test), b"not "
            case ast.Expr(value=ast.Call() | ast.Await()) | ast.AugAssign() | ast.Raise() | ast.Continue():
                yield begin(node), end(node), b"pass"
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.Delete() | ast.Break():
                yield begin(node), end(node), b"pass"
            case ast.Call():
                yield from without_one(node)

    def without_one(call: ast.Call) -> Iterator[Edit]:
        """Yield one edit per keyword argument of the call, which drops the argument."""
        given = sorted([*call.args, *call.keywords], key=begin)
        for at, one in enumerate(given):
            if isinstance(one, ast.keyword) and one.arg is not None:
                if at:
                    yield end(given[at - 1]), end(one), b""
                else:
                    yield begin(one), begin(given[1]) if given[1:] else end(one), b""

    for node in _code(ast.parse(text)):
        yield from edits(node)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes that run: no annotations, no decorators, no blocks for TYPE_CHECKING."""
    yield node
    for name, value in ast.iter_fields(node):
        for child in value if isinstance(value, list) else [value]:
            types_alone = isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"
            if (
                isinstance(child, ast.AST)
                and name not in ("annotation", "returns", "decorator_list")
                and not types_alone
            ):
                yield from _code(child)


def _is_code(mutant: Mutant, text: bytes) -> bool:
    """Return whether a mutant parses: an edit may drop only one of two brackets."""
    try:
        return not mutant.file.endswith(".py") or bool(ast.parse(mutant.of(text)))
    except SyntaxError:
        return False


# Tests


def path_of(subject: str) -> str:
    return subject if subject.endswith(".j2") else PACKAGE + subject


def tests_of(subject: str) -> tuple[str, ...]:
    """Return the paths of the test files of a subject, relative to ROOT."""
    found = [path for name in SUBJECTS[subject] for path in (ROOT / "tests").rglob(name)]
    return tuple(str(path.relative_to(ROOT)) for path in found)


class Trial:
    """A copy of the tree in which one file at a time is mutated."""

    def __init__(self, folder: Path, *, goldens: bool) -> None:
        self._tree, self._tmp, self._goldens = folder / "tree", folder / "tmp", goldens
        self._tmp.mkdir()
        unwanted = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "demo-results", "dist", "build")
        shutil.copytree(ROOT, self._tree, symlinks=True, ignore=unwanted)
        self._stamps = itertools.count(int(time.time()))
        self._seconds: dict[tuple[str, ...], float | None] = {}

    def seconds(self, tests: tuple[str, ...]) -> float | None:
        """Return the run time of the tests without a mutant, in seconds, or None if they fail without one."""
        if tests not in self._seconds:
            began = time.monotonic()
            status, said = self._run(tests, limit=900)
            self._seconds[tests] = None if status else time.monotonic() - began
            if status:
                print(f"{' '.join(tests)} fail without a mutant (exit {status}):\n{said}", file=sys.stderr, flush=True)
        return self._seconds[tests]

    def notices(self, mutant: Mutant, tests: tuple[str, ...]) -> bool | None:
        """Return whether the tests fail or time out with this mutant, or None if they fail without one."""
        if (seconds := self.seconds(tests)) is None:
            return None
        path = self._tree / path_of(mutant.file)
        whole = path.read_bytes()
        try:
            self._write(path, mutant.of(whole))
            status, said = self._run(tests, limit=30 + 3 * seconds)
        finally:
            self._write(path, whole)
        if status not in (0, 1, 2, TIMED_OUT):  # 2: the mutant cannot be imported
            raise SystemExit(f"pytest ended with {status}: {said}")
        return status != 0

    def _write(self, path: Path, text: bytes) -> None:
        path.write_bytes(text)
        stamp = next(self._stamps)  # Python reuses a cached module whose source has the same size and second
        os.utime(path, (stamp, stamp))

    def _run(self, tests: tuple[str, ...], *, limit: float) -> tuple[int, str]:
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        apart = ("unshare", *user, "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--")
        words = ("-x", "-q", "-m", NOT, "-p", "no:cacheprovider", *(() if self._goldens else ("--update-golden",)))
        argv = [*apart, "bash", "-c", _APART, "-", sys.executable, "-m", "pytest", *words, *tests]
        env = {**os.environ, "PYTHONPATH": str(self._tree), "TMPDIR": str(self._tmp)}
        done = run(argv, timeout=limit, env=env, cwd=self._tree)
        return done.returncode, (done.stdout + done.stderr)[-2000:]


def drawn(texts: Mapping[str, bytes], *, count: int, seed: int) -> list[Mutant]:
    """Return `count` random mutants of these files; the same seed gives the same mutants."""
    every = [one for subject, text in texts.items() for one in mutants_of(subject, text)]
    random.Random(seed).shuffle(every)
    return list(itertools.islice((one for one in every if _is_code(one, texts[one.file])), count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", nargs="+", default=["*"], help="patterns of the files in SUBJECTS, all by default")
    parser.add_argument("--count", type=int, default=30, help="mutants to draw")
    parser.add_argument("--seed", type=int, default=1, help="another one draws others")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin with no mutant after so long")
    parser.add_argument("--goldens", action="store_true", help="let goldens notice a mutant, too")
    parser.add_argument("--list", action="store_true", help="show the mutants and run none")
    args = parser.parse_args()
    subjects = [subject for subject in SUBJECTS if any(fnmatch(subject, pattern) for pattern in args.files)]
    texts = {subject: (ROOT / path_of(subject)).read_bytes() for subject in subjects}
    mutants = drawn(texts, count=args.count, seed=args.seed)
    if args.list:
        for one in mutants:
            print(f"{path_of(one.file)}:{one.line}\n{one.diff(texts[one.file])}")
        return
    until, tried, survivors = time.monotonic() + 60 * args.minutes, Counter[str](), []
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        trial = Trial(Path(folder), goldens=args.goldens)
        for one in itertools.takewhile(lambda _: time.monotonic() < until, mutants):
            noticed = trial.notices(one, tests_of(one.file))
            said = {True: "noticed ", False: "SURVIVED", None: "UNTRIED "}[noticed]
            print(f"{said} {path_of(one.file)}:{one.line}", file=sys.stderr, flush=True)
            tried[one.file] += noticed is not None
            survivors += [one] if noticed is False else []
    show(tried, survivors, texts)


def show(tried: Counter[str], survivors: Sequence[Mutant], texts: Mapping[str, bytes]) -> None:
    """Print the counts per file, and each survivor with its diff."""
    alive = Counter(one.file for one in survivors)
    table = Table("file", "mutants", "noticed", "survived")
    for file, number in sorted(tried.items()):
        table.add_row(file, str(number), str(number - alive[file]), str(alive[file]))
    table.add_section()
    table.add_row("all", str(tried.total()), str(tried.total() - alive.total()), str(alive.total()))
    Console().print(table)
    for one in survivors:
        print(f"{path_of(one.file)}:{one.line}\n{one.diff(texts[one.file])}")


if __name__ == "__main__":
    main()
