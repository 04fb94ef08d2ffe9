"""Where the embedded Triton is found, and what is said when a part is missing."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from exatrkx_hpc.base.assets import package_parent
from exatrkx_hpc.base.process import run
from exatrkx_hpc.launch.embedded.triton import embedded_triton


def test_the_layout_is_whole_and_safe_to_repeat(tmp_path: Path) -> None:
    first = embedded_triton(tmp_path / "a-work-folder")
    assert embedded_triton(tmp_path / "a-work-folder") == first
    assert os.access(first.server, os.X_OK)
    backend = first.backend_directory / "python"
    assert sorted(path.name for path in backend.iterdir()) == [
        "libtriton_python.so",
        "triton_python_backend_stub",
        "triton_python_backend_utils.py",
    ]
    assert all(path.exists() for path in backend.iterdir())
    assert (first.cache_directory / "local").is_dir()


def test_the_models_get_this_python_and_this_package(tmp_path: Path) -> None:
    environment = embedded_triton(tmp_path).environment
    folder = environment["PATH"].split(os.pathsep)[0]
    code = "import sys, exatrkx_hpc; print(sys.prefix, exatrkx_hpc.__file__)"
    done = run([f"{folder}/python3", "-c", code], env=environment, cwd=tmp_path)
    assert done.stdout.split() == [sys.prefix, str(package_parent() / "exatrkx_hpc" / "__init__.py")]


def test_the_stub_finds_all_its_libraries(tmp_path: Path) -> None:
    triton = embedded_triton(tmp_path)
    for program in (triton.server, (triton.backend_directory / "python/triton_python_backend_stub").resolve()):
        done = run(["ldd", str(program)], env={**os.environ, **triton.environment})
        assert done.returncode == 0
        assert "not found" not in done.stdout


def test_without_the_wheel_one_line_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from exatrkx_hpc.launch.embedded.triton import embedded_triton\n"
        "try: embedded_triton(Path('x'))\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    # -S leaves out site-packages, and with it the wheel.
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(package_parent()), "PYTHONDONTWRITEBYTECODE": "1"}
    done = run([sys.executable, "-S", "-c", code], env=environment, cwd=tmp_path)
    expected = "the embedded Triton is not installed; pip install 'exatrkx-hpc[local]'"
    if "site-packages" in str(package_parent()):
        pytest.skip("the package lies beside the wheel, so that one cannot be left out alone")
    assert done.stdout == f"MissingComponent {expected}\n"
    assert not list(tmp_path.iterdir())
