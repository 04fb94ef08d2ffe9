"""The tool that changes one thing at a time: what it changes, and that it tells whether tests notice."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from pathlib import Path

import mutate
import pytest

from exatrkx_hpc.base.process import run

PYTHON = '''\
"""Say 1 word."""
def f(a: Literal[1], b=3, *, c=True) -> Literal[2]:
    if a < b and c:
        g(a, key="é", other=None)
    a.seen = a is not b
    return h(key=not a)
'''
TEMPLATE = """\
# a comment
{% if modern %}
  http2 on;
{% endif %}
while read -r line; do
  echo "$line" \\
    >>log
done
"""


def changed(file: str, text: str) -> list[str]:
    """The first line that is another in each mutant."""
    before = text.splitlines()
    found = []
    for one in mutate.mutants_of(file, text.encode()):
        after = one.of(text.encode()).decode().splitlines()
        assert before[: one.line - 1] == after[: one.line - 1]
        found.append("" if len(after) < len(before) else after[one.line - 1].strip())
    return found


def test_what_is_changed_in_python():
    assert changed("x.py", PYTHON) == [
        "def f(a: Literal[1], b=4, *, c=True) -> Literal[2]:",
        "def f(a: Literal[1], b=3, *, c=False) -> Literal[2]:",
        "if a <= b and c:",
        "if a >= b and c:",
        "if a < b or c:",
        "pass",
        'g(a, other=None)',
        'g(a, key="é")',
        "pass",
        "a.seen = a is b",
        "return h()",
        "return h(key=a)",
    ]  # fmt: skip


def test_what_is_left_out_of_a_template():
    left_out = [one.of(TEMPLATE.encode()).decode() for one in mutate.mutants_of("x.sh.j2", TEMPLATE.encode())]
    assert left_out == [TEMPLATE.replace("  http2 on;\n", ""), TEMPLATE.replace("    >>log\n", "")]


@pytest.mark.parametrize("subject", mutate.SUBJECTS)
def test_each_subject_has_mutants_and_tests(subject):
    text = (mutate.ROOT / mutate.path_of(subject)).read_bytes()
    assert mutate.drawn({subject: text}, count=1, seed=1)
    tests = mutate.tests_of(subject)
    assert [Path(path).name for path in tests] == list(mutate.SUBJECTS[subject])
    assert not [path for path in tests if path.startswith("tests/real/")], "such tests are deselected"


def test_the_same_seed_draws_the_same():
    texts = {"x.py": PYTHON.encode(), "x.sh.j2": TEMPLATE.encode()}
    first, second, other = (mutate.drawn(texts, count=5, seed=seed) for seed in (1, 1, 2))
    assert first == second != other and len(first) == 5


def test_a_cut_that_tears_a_bracket_is_no_mutant():
    text = b"f((a), b=1)\n"
    assert [one.of(text) for one in mutate.mutants_of("x.py", text)] == [b"pass\n", b"f((a)\n", b"f((a), b=2)\n"]
    assert {one.of(text) for one in mutate.drawn({"x.py": text}, count=9, seed=1)} == {b"pass\n", b"f((a), b=2)\n"}


@pytest.mark.part
def test_what_tests_notice_and_what_they_cannot(tmp_path, capsys):
    if run(["unshare", "--map-root-user", "--net", "--pid", "--mount", "--fork", "true"]).returncode:
        pytest.skip("this machine gives no namespaces")
    subject = "work/run/faults.py"
    text = (mutate.ROOT / mutate.path_of(subject)).read_bytes()
    told = next(one for one in mutate.mutants_of(subject, text) if b"self._deaths[event] < DEATHS" in one.of(text))
    word = dataclasses.replace(told, line=1, start=text.index(b"cause"), end=text.index(b"cause") + 5, new=b"CAUSE")
    trial = mutate.Trial(tmp_path, goldens=False)
    assert [trial.notices(one, mutate.tests_of(subject)) for one in (told, word)] == [True, False]
    mutate.show(Counter({subject: 2}), [word], {subject: text})
    shown = capsys.readouterr().out
    assert re.search(r"all +│ 2 +│ 1 +│ 1 ", shown), shown
    assert f"exatrkx_hpc/{subject}:1\n" in shown and '    +"""The CAUSE' in shown
