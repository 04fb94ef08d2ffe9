"""Make a Python environment of the models for an image: packages for the image's own interpreter.

Of the packages that models need, NVIDIA's images contain only numpy. The environment uses the interpreter of the image,
so no packed interpreter has to fit the image's libc, and this machine needs no Python of the image's version.
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.process import run
from exatrkx_hpc.models.pack_env import ACTIVATE, MANIFEST, NEEDED, environment_aside

#: Code for the image's python3. Only the last line of its output counts, because an image may print a banner.
QUESTION = (
    "import json, os, sys; "
    "print(json.dumps(['%d.%d' % sys.version_info[:2], os.path.realpath(sys.executable or '/usr/bin/python3')]))"
)
#: Platforms of wheels that run on the glibc of every recent image; pip takes the newest wheel.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
#: For CUDA 12, which the images of the profiles have. Not tested on a GPU.
_FUSED_ON_GPU = ("torch<2.9", "cupy-cuda12x<14")
#: Timeout of pip (s): packages may be large and the network slow.
_PIP_DEADLINE = 1800.0


@dataclass(frozen=True, kw_only=True)
class ImagePython:
    """The Python of an image: its version, such as `3.10`, and its path in the image."""

    version: str
    executable: str


def read_answer(text: str) -> ImagePython | None:
    """Return the Python from the output of QUESTION, or None if the output is something else."""
    try:
        version, executable = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError, TypeError):
        return None
    return ImagePython(version=version, executable=executable)


def needed(device: str, *, fused: bool = True) -> tuple[str, ...]:
    """Return the packages that the models need, as requirements for pip.

    On a GPU, the networks run in Triton's own PyTorch backend. On a CPU and in the fused model, they need PyTorch.
    """
    plain = tuple("numpy<2" if name == "numpy" else name for name in NEEDED)
    if device == "cpu":
        return (*plain, "torch")
    return (*plain, *(_FUSED_ON_GPU if fused else ()))


def make_environment(out: Path, python: ImagePython, packages: Sequence[str]) -> None:
    """Write an environment of `python` with the newest `packages` from PyPI to the new folder `out`.

    The environment is a venv with the image's interpreter, so it works only in the image. Raises ModelError when the
    packages are not available for that Python, or `out` cannot be written.
    """
    with environment_aside(out) as aside:
        _fetch(aside / "lib" / f"python{python.version}" / "site-packages", python, packages, out)
        _lay_out(aside, python, packages)
        aside.chmod(0o755)  # Triton may run as another user than the one who fetches.
        aside.rename(out)


def _fetch(place: Path, python: ImagePython, packages: Sequence[str], out: Path) -> None:
    machine = platform.machine()
    kinds = [f"--platform={name}_{machine}" for name in _PLATFORMS]
    what = ["--implementation=cp", f"--python-version={python.version}", "--only-binary=:all:", *kinds]
    argv = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", f"--target={place}"]
    done = run([*argv, *what, *packages], timeout=_PIP_DEADLINE)
    if done.returncode:
        raise ModelError(
            f"pip has no {', '.join(packages)} for Python {python.version}: {done.complaint}; try "
            f"again where PyPI can be reached, or pack one yourself: 'exatrkx-hpc models pack-env "
            f"--python python{python.version} --out {out}'"
        )


def _lay_out(folder: Path, python: ImagePython, packages: Sequence[str]) -> None:
    binaries = folder / "bin"
    binaries.mkdir()
    for name in ("python3", "python"):
        (binaries / name).symlink_to(python.executable)
    home = str(Path(python.executable).parent)
    write_whole(folder / "pyvenv.cfg", f"home = {home}\ninclude-system-site-packages = false\n")
    write_whole(binaries / "activate", ACTIVATE)
    facts = {"python": python.version, "executable": python.executable, "packages": list(packages)}
    write_whole(folder / MANIFEST, json.dumps(facts, indent=2) + "\n")
