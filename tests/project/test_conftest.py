"""With EXATRKX_REQUIRE=all nothing that is missing hides behind a skip."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from paths import ROOT

from exatrkx_hpc.base.process import run

pytestmark = pytest.mark.slow


OF_A_FILE = "import pytest\npytest.importorskip('no_such_package')\ndef test_it(): pass\n"
OF_A_TEST = "import pytest\ndef test_it(): pytest.importorskip('no_such_package')\n"
ALLOWED = "import pytest\ndef test_it(): pytest.skip('GPU: no device on this machine')\n"
#: Not the GPU that is missing, but something that CI installs.
NOT_ALLOWED = "import pytest\ndef test_it(): pytest.skip('GPU kernels need no_such_package')\n"


@pytest.mark.parametrize(
    ("text", "require", "status"),
    [
        (OF_A_FILE, "all", 2),
        (OF_A_FILE, "", 5),
        (OF_A_TEST, "all", 1),
        (OF_A_TEST, "", 0),
        (ALLOWED, "all", 0),
        (NOT_ALLOWED, "all", 1),
    ],
    ids=["file-all", "file", "test-all", "test", "allowed", "not-allowed"],
)
def test_a_missing_part_fails_where_all_are_required(tmp_path: Path, text: str, require: str, status: int):
    (tmp_path / "test_it.py").write_text(text)
    path = os.pathsep.join(str(ROOT / part) for part in ("tests", "tests/support"))
    environment = {**os.environ, "PYTHONPATH": path, "EXATRKX_REQUIRE": require}
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "conftest",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = run(argv, env=environment, cwd=tmp_path)
    assert done.returncode == status, done.stdout
    assert ("no_such_package" in done.stdout) is (require == "all" and text != ALLOWED)
