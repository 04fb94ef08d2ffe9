"""Make a Python environment of the models for an image: packages for the image's own interpreter.

NVIDIA's images have numpy and nothing else that models need. The interpreter stays in the image, so that nothing is
packed that would have to fit its libc, and the machine that makes the environment needs no Python of its version.
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

#: What an image's python3 is asked; the last line of its answer counts, because an image may print a banner.
QUESTION = (
    "import json, os, sys; "
    "print(json.dumps(['%d.%d' % sys.version_info[:2], os.path.realpath(sys.executable or '/usr/bin/python3')]))"
)
#: Wheels that run on the glibc of every image of the last years; pip takes the newest that there is.
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
#: For CUDA 12, which the images of the profiles have. Not tested on a GPU.
_FUSED_ON_GPU = ("torch<2.9", "cupy-cuda12x<14")
#: Packages may be big, and a network slow.
_PIP_DEADLINE = 1800.0


@dataclass(frozen=True, kw_only=True)
class ImagePython:
    """The Python of an image: its version, such as `3.10`, and where it is in there."""

    version: str
    executable: str


def read_answer(text: str) -> ImagePython | None:
    """Return what an image's python3 answered to QUESTION, or None when it answered something else."""
    try:
        version, executable = json.loads(text.strip().splitlines()[-1])
    except (IndexError, ValueError, TypeError):
        return None
    return ImagePython(version=version, executable=executable)


def needed(device: str, *, fused: bool = True) -> tuple[str, ...]:
    """Return what the models import.

    The networks run in Triton's own PyTorch backend on a GPU; on a CPU, and in the fused model, they need PyTorch.
    """
    plain = tuple("numpy<2" if name == "numpy" else name for name in NEEDED)
    if device == "cpu":
        return (*plain, "torch")
    return (*plain, *(_FUSED_ON_GPU if fused else ()))


def make_environment(out: Path, python: ImagePython, packages: Sequence[str]) -> None:
    """Write an environment of `python` with the newest `packages` from PyPI to the folder `out`, which is not there.

    It is a venv whose interpreter is the image's; it works in the image and nowhere else. Raises ModelError when the
    packages cannot be had for that Python, or `out` cannot be written.
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
