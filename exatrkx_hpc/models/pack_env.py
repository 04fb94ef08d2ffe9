"""Pack a relocatable Python environment for the models of Triton's Python backend.

A plain venv points to the Python that made it, which a container does not have. A packed environment contains the
interpreter, the standard library and the shared libraries that these need, and nothing else of the machine.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.base.files import odd_characters, write_whole
from exatrkx_hpc.base.process import run
from exatrkx_hpc.models.packages import Package, find_packages, plain_name
from exatrkx_hpc.models.replace import folder_aside, swap

#: Packages that the models of `tracking` import; networks on a CPU also need torch.
NEEDED = ("numpy", "scipy")
#: Marks a folder that was packed here and may be replaced; lists its packages.
MANIFEST = "exatrkx-environment.json"
_ARCHIVES = (".tar.gz", ".tgz")
_NOT_PACKED = (
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3"),
    *("_tkinter*", "_test*", "_ctypes_test*", "xxlimited*", "config-*"),
)
#: Libraries of glibc and of the compiler; they must come from the image.
_OF_THE_IMAGE = (
    *("linux-vdso", "ld-linux", "libc.", "libm.", "libpthread.", "libdl.", "librt.", "libutil."),
    *("libresolv.", "libanl.", "libmvec.", "libgcc_s.", "libstdc++."),
)

_ASK = """
import json, os, site, sys, sysconfig
v = sysconfig.get_config_var
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "executable": os.path.realpath(sys._base_executable if sys.version_info >= (3, 11) else sys.executable),
    "standard_library": sysconfig.get_path("stdlib"),
    "platform_library": sysconfig.get_path("platstdlib"),
    "library_folder": sys.platlibdir,
    "shared": os.path.join(v("LIBDIR") or "", v("INSTSONAME") or "") if v("Py_ENABLE_SHARED") else "",
    "libc": os.confstr("CS_GNU_LIBC_VERSION") or "",
    "packages": [path for path in sys.path if os.path.basename(path) in ("site-packages", "dist-packages")],
}))
"""
#: Prints the package folder of the interpreter outside of any venv; Debian has its own.
_ASK_PLACE = "import os, site, sys; print(os.path.relpath(site.getsitepackages()[-1], sys.prefix))"
_CHECK = """
import json, sys
found = {}
for name in sys.argv[1:]:
    found[name] = getattr(__import__(name), "__file__", "")
print(json.dumps([sys.prefix, found]))
"""

ACTIVATE = """\
# Triton's Python backend reads this before it starts a model; a person may source it in bash, too.
# The interpreter finds its packages by its own place, so that PATH is all that it needs.
_environment=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
unset PYTHONHOME
export VIRTUAL_ENV=$_environment PYTHONNOUSERSITE=1
export PATH=$_environment/bin${PATH:+:$PATH}
# For this interpreter's own libraries. Triton sets the same.
export LD_LIBRARY_PATH=$_environment/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
unset _environment
"""


@dataclass(frozen=True, kw_only=True)
class PackedEnvironment:
    """A packed environment: its path, its Python version, the oldest glibc that it runs on, and its packages."""

    path: Path
    python: str
    libc: str
    packages: tuple[Package, ...]


@dataclass(frozen=True, kw_only=True)
class _Python:
    """Facts about an interpreter.

    `shared` is its libpython, or ''. `packages` are the package folders of its environment. `place` is the package
    folder of the interpreter outside of any environment, relative to its prefix.
    """

    version: str
    executable: str
    standard_library: str
    platform_library: str
    library_folder: str
    shared: str
    libc: str
    packages: list[str]
    place: str

    @property
    def home(self) -> str:
        """The folder of its standard library, relative to the environment."""
        return f"{self.library_folder}/python{self.version}"


def pack_environment(out: Path, *, python: Path, packages: Sequence[str] = NEEDED) -> PackedEnvironment:
    """Write the interpreter `python` with `packages` and their requirements to `out`; return the contents.

    `out` is a folder, or an archive if its name ends with .tar.gz or .tgz. Both can be moved, and both are valid for
    EXECUTION_ENV_PATH of a model. A folder or an archive is replaced only if it was packed here, a folder also if
    it is empty. The packages come from the environment of `python`; nothing is downloaded. The environment is tested
    before it is moved to `out`. Raises ModelError when a package is missing or would not work inside Triton.
    """
    _refuse_foreign(out)
    what = _ask(python)
    chosen = find_packages([Path(folder) for folder in what.packages], packages, python=python)
    _refuse_numpy_2(chosen, python)
    packed = PackedEnvironment(path=out, python=what.version, libc=what.libc, packages=chosen)
    with environment_aside(out) as aside:
        _write(aside / "new", what, packed)
        wanted = set(map(plain_name, packages))
        _try(aside / "new", [module for one in chosen if one.name in wanted for module in one.modules])
        _put(aside / "new", out, aside)
    return packed


@contextlib.contextmanager
def environment_aside(out: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `out` in which to make an environment; remove the folder at the end.

    Raises ModelError when something cannot be written.
    """
    try:
        with folder_aside(out) as aside:
            yield aside
    except OSError as error:
        remedy = "check permissions and free space, or choose another folder"
        raise ModelError(f"cannot write {out}: {error.strerror}; {remedy}") from error


def _is_archive(out: Path) -> bool:
    return out.name.endswith(_ARCHIVES)


def _refuse_foreign(out: Path) -> None:
    if odd := odd_characters(out.absolute()):
        raise ModelError(
            f"{out} contains {odd!r}, which Triton's Python backend does not support; choose a name without spaces "
            "and quotes"
        )
    if not out.exists() or (out / MANIFEST).is_file() or (out.is_file() and _is_packed(out)):
        return
    if not out.is_dir() or any(out.iterdir()):
        raise ModelError(f"{out} exists and was not packed by exatrkx-hpc; choose another place, or remove it")


def _is_packed(archive: Path) -> bool:
    """Return whether a file is an archive of a packed environment."""
    try:
        with tarfile.open(archive, "r:gz") as members:
            return any(Path(member.name) == Path(MANIFEST) for member in members)
    except (tarfile.TarError, zlib.error, OSError, EOFError):
        return False


def _ask(python: Path) -> _Python:
    done = run([str(python), "-I", "-c", _ASK])
    if done.returncode:
        raise ModelError(f"cannot pack {python}: {done.complaint}; choose another Python with --python")
    facts = json.loads(done.stdout)
    place = run([facts["executable"], "-I", "-c", _ASK_PLACE])
    return _Python(**facts, place=place.stdout.strip())


def _refuse_numpy_2(packages: Sequence[Package], python: Path) -> None:
    """Raise ModelError for numpy 2 without torch: only the networks and the fused model support it, with torch."""
    if "torch" in {package.name for package in packages}:
        return
    for package in packages:
        if package.name == "numpy" and int(package.version.partition(".")[0]) >= 2:
            raise ModelError(
                f"{python} has numpy {package.version}, with which Triton's Python backend returns 0 bytes; "
                f"'{python} -m pip install \"numpy<2\"' installs a working one; for exatrkx_fused alone, add "
                "'--package torch'"
            )


def packed_packages(environment: Path) -> dict[str, str]:
    """Return name and version of each package of a packed environment; empty for any other folder."""
    try:
        facts = json.loads((environment / MANIFEST).read_text())
        return {str(name): str(version) for name, version in facts["packages"].items()}
    except (OSError, ValueError, KeyError, AttributeError):
        return {}


def _write(folder: Path, python: _Python, packed: PackedEnvironment) -> None:
    """Write the environment to `folder`; symbolic links of the source are replaced by their targets."""
    home = folder / python.home
    for source in dict.fromkeys((python.standard_library, python.platform_library)):
        ignore = shutil.ignore_patterns(*_NOT_PACKED)
        shutil.copytree(source, home, ignore=ignore, ignore_dangling_symlinks=True, dirs_exist_ok=True)
    binaries = folder / "bin"
    binaries.mkdir()
    shutil.copy2(python.executable, binaries / f"python{python.version}")
    for name in ("python3", "python"):
        (binaries / name).symlink_to(f"python{python.version}")
    for package in packed.packages:
        package.copy(folder / python.place)
    (folder / "lib").mkdir(exist_ok=True)
    if python.shared:
        shutil.copy2(python.shared, folder / "lib")
    _copy_libraries([binaries / f"python{python.version}", *home.glob("lib-dynload/*.so")], folder / "lib")
    write_whole(binaries / "activate", ACTIVATE)
    facts = asdict(packed) | {"path": None, "packages": {one.name: one.version for one in packed.packages}}
    write_whole(folder / MANIFEST, json.dumps(facts, indent=2) + "\n")


def _copy_libraries(programs: Sequence[Path], folder: Path) -> None:
    """Copy the shared libraries that the programs load, except those that every image has."""
    done = run(["ldd", *map(str, programs)])
    for line in done.stdout.splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        library = Path(rest.rpartition(" (")[0])
        if arrow and library.is_file() and not name.startswith(_OF_THE_IMAGE) and not (folder / name).exists():
            shutil.copy2(library, folder / name)


def _try(folder: Path, modules: Sequence[str]) -> None:
    """Import the modules in the environment as Triton would, and check that they are loaded from it."""
    command = 'source "$1/bin/activate" && shift && exec python3 -I -c "$@"'
    argv = ["bash", "-c", command, "bash", str(folder), _CHECK, *modules]
    done = run(argv, timeout=300)
    if done.returncode:
        raise ModelError(f"the packed environment does not work: {done.complaint}; check the packages of its source")
    prefix, found = json.loads(done.stdout)
    strangers = [name for name, file in found.items() if not Path(file).is_relative_to(prefix)]
    if strangers or not Path(prefix).samefile(folder):
        raise ModelError(f"the packed environment loads {', '.join(strangers) or prefix} from outside; pack another")


def _put(fresh: Path, out: Path, aside: Path) -> None:
    """Move the finished environment to `out`, as an archive if `out` has an archive's name."""
    if _is_archive(out):
        whole = aside / "archive"
        fresh.chmod(0o755)  # the archive keeps it; Triton may run as another user than the one who packs
        with tarfile.open(whole, "w:gz", compresslevel=1) as archive:
            archive.add(fresh, arcname=".")
        whole.replace(out)
        return
    swap(fresh, out, aside / "old")
