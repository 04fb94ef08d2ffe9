"""Make the root of the image that the tests' containers run: a small Debian with Python and a real Triton.

It stands for a site's image: `tritonserver` is on PATH, in /opt/tritonserver, and its Python has no packages at
all. The Triton is that of the `local` extra, the Debian comes from the sources that this machine's apt has.
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

from exatrkx_hpc.process import run

#: What the container's environment must say, because an image made by hand has no ENV of its own.
PATH = "/opt/tritonserver/bin:/usr/local/bin:/usr/bin:/bin"
_VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
#: squashfs-tools is for podman-hpc, which packs an image with a program that runs inside it.
_PACKAGES = (
    *("bash", "coreutils", "dash", "libstdc++6", "zlib1g", "python3-minimal"),
    *(f"python{_VERSION}", f"libpython{_VERSION}", "squashfs-tools"),
)
#: Where the parts of the wheel go; their RPATH then leads to the libraries.
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
    """Return the folder that keeps what takes long to make: EXATRKX_TEST_CACHE, or one in this venv."""
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
    """Return the image's root as a tar file, made now or taken from the cache (about 10 s and 270 MB)."""
    facts = [*_PACKAGES, *_PARTS.items(), importlib.metadata.version("nvidia-pytriton")]
    key = hashlib.sha256(repr(facts).encode()).hexdigest()[:12]
    archive = cache_folder() / f"triton-image-{key}.tar"
    if archive.exists():
        return archive
    aside = archive.with_name(f"{archive.stem}.{uuid.uuid4().hex}.tar")
    try:
        _must(["mmdebstrap", "--quiet", "--variant=extract", f"--include={','.join(_PACKAGES)}", "", str(aside)])
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
    packages = Path(str(importlib.util.find_spec("pytriton").submodule_search_locations[0])).parent
    for source, target in _PARTS.items():
        rename = f"--transform=s,^{source},{target},"
        _must(["tar", "--append", f"--file={archive}", "--owner=0", "--group=0", rename, "-C", str(packages), source])


def _must(argv: list[str]) -> None:
    if argv[0] == "mmdebstrap":
        argv = [*argv, *_sources()]
    done = run(argv, timeout=280)
    assert done.returncode == 0, f"{argv[0]}: {done.complaint}"
