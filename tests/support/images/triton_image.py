"""Build the root file system of the test image: a small Debian with Python and a real Triton.

Like a site's image, it has `tritonserver` on PATH, in /opt/tritonserver, and a Python without packages. Triton comes
from the `local` extra, Debian from the apt sources of this machine.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import uuid
from pathlib import Path

from exatrkx_hpc.base.process import run
from exatrkx_hpc.models import pack_env, packages

#: PATH of the container: the imported image has no ENV.
PATH = "/opt/tritonserver/bin:/usr/local/bin:/usr/bin:/bin"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
#: podman-hpc needs squashfs-tools: it packs an image with a program that runs inside the image.
_PACKAGES = (
    *("bash", "coreutils", "dash", "libstdc++6", "zlib1g", "python3-minimal"),
    *(f"python{_VERSION}", f"libpython{_VERSION}", "squashfs-tools"),
)
#: Paths of the wheel's parts in the image; there their RPATH finds the libraries.
_PARTS = {
    "pytriton/tritonserver/bin/tritonserver": "opt/tritonserver/bin/tritonserver",
    "pytriton/tritonserver/backends": "opt/tritonserver/backends",
    "pytriton/tritonserver/caches": "opt/tritonserver/caches",
    f"pytriton/tritonserver/python_backend_stubs/{_VERSION}/triton_python_backend_stub": (
        "opt/tritonserver/backends/python/triton_python_backend_stub"
    ),
    "nvidia_pytriton.libs": "nvidia_pytriton.libs",
}


def cache_folder() -> Path:
    """Return the cache folder for slow builds: EXATRKX_TEST_CACHE, or one in this venv."""
    folder = Path(os.environ.get("EXATRKX_TEST_CACHE") or Path(sys.prefix, "test-cache"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def missing() -> str:
    """Return why the image cannot be made here, in one line, or '' when it can."""
    if shutil.which("mmdebstrap") is None:
        return "the test image needs the package mmdebstrap; run '.ci/system-packages test'"
    if importlib.util.find_spec("pytriton") is None:
        return "the test image needs the embedded Triton; pip install 'exatrkx-hpc[local]'"
    if not _sources():
        return "the test image needs a Debian with sources of packages in /etc/apt"
    return ""


def root_archive() -> Path:
    """Return the image's root as a tar file, from the cache or built now (about 10 s and 270 MB)."""
    facts = ["5", *_PACKAGES, *_PARTS.items(), importlib.metadata.version("nvidia-pytriton")]
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    archive = cache_folder() / f"triton-image-{key}.tar"
    if archive.exists():
        return archive
    aside = archive.with_name(f"{archive.stem}.{uuid.uuid4().hex}.tar")
    try:
        include = f"--include={','.join(_PACKAGES)}"
        _must(["mmdebstrap", "--quiet", "--variant=extract", include, "", str(aside), *_sources()])
        # A user without subordinate IDs can unpack only files of root.
        _must(["tar", "--delete", f"--file={aside}", "./var"])
        _append(aside)
        aside.rename(archive)
    finally:
        aside.unlink(missing_ok=True)
    return archive


def _sources() -> list[str]:
    folder = Path("/etc/apt")
    found = [folder / "sources.list", *folder.glob("sources.list.d/*.list"), *folder.glob("sources.list.d/*.sources")]
    return sorted(str(path) for path in found if path.is_file() and path.stat().st_size)


def _append(archive: Path) -> None:
    wheels = Path(str(importlib.util.find_spec("pytriton").submodule_search_locations[0])).parent
    for source, target in _PARTS.items():
        rename = f"--transform=s,^{source},{target},"
        # After a failed start, Triton removes permissions from the wheel's stub. In the image, every user may run it.
        options = [f"--file={archive}", "--owner=0", "--group=0", "--mode=u=rwX,go=rX", rename]
        _must(["tar", "--append", *options, "-C", str(wheels), source])


def _must(argv: list[str]) -> None:
    done = run(argv, timeout=280)
    assert done.returncode == 0, f"{argv[0]}: {done.complaint}"


def model_environment() -> Path:
    """Return a packed environment with all dependencies of the models, from the cache or built now (about 12 s)."""
    import torch

    # A changed pack_env must build a new environment, to be tested.
    code = b"".join(Path(str(module.__file__)).read_bytes() for module in (pack_env, packages))
    key = hashlib.sha256(code).hexdigest()[:12]
    folder = cache_folder() / f"model-environment-{_VERSION}-torch-{torch.__version__}-{key}"
    if not folder.exists():
        pack_env.pack_environment(folder, python=Path(sys.executable), packages=("numpy", "scipy", "torch"))
    return folder


def place(source: Path, target: Path) -> None:
    """Hard-link the files of `source` to `target`, or copy them if links fail."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError:
            shutil.copy2(one, other, follow_symlinks=False)

    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=link)
    else:
        link(str(source), str(target))
