"""A site with a real container engine: podman as root, or NERSC's podman-hpc as an unprivileged user.

What the engine needs and this machine may lack stands in a folder and in a mount namespace, so that nothing of
it is left when both are gone. `podman` and `podman-hpc` on the site's PATH enter it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from waiting import until

from exatrkx_hpc.models.pack_env import pack_environment
from exatrkx_hpc.process import Child, Completed, run, spawn
from images.triton_image import PATH, cache_folder, root_archive

IMAGE = "localhost/triton-of-the-tests:1"
PODMAN_HPC = "podman-hpc==1.2.2"
_USER, _UID = "guest", 20_077
_HERE = Path(__file__).parent
_PROGRAMS = ("podman", "conmon", "crun", "nsenter", "unshare", "setpriv")
_ROOTLESS = ("fuse-overlayfs", "newuidmap", "slirp4netns", "squashfuse", "inotifywait")
_KEEPERS = ("squashfuse_ll", "inotifywait", "fuse-overlayfs-wrap wait")

CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
events_logger = "none"
lock_type = "file"
tmp_dir = "{tmp}"
"""
STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{folder}/store"
runroot = "{folder}/run"
"""
#: A site's own modules; this one shows that a module's flag and its folder reach the container.
MODULE = """\
name: labels
cli_arg: labels
env: ENABLE_LABELS
additional_args:
  - --volume={folder}/labels:/labels:ro
"""
PODMAN_HPC_CONF = """\
podman_bin: /usr/bin/podman
mount_program: {folder}/podman-hpc/bin/fuse-overlayfs-wrap
modules_dir: {folder}/modules.d
hooks_dir: {folder}/hooks.d
graph_root_template: "{folder}/home/{{{{ uid }}}}_hpc/storage"
run_root_template: "{folder}/home/{{{{ uid }}}}_hpc"
config_home_template: "{folder}/home/{{{{ uid }}}}_hpc/config"
mksquashfs_bin: {folder}/bin/mksquashfs.static
"""
#: A site has a static one of version 4.6 or later; it runs inside the image, which has an older one here.
MKSQUASHFS = """\
#!/bin/bash
words=()
while [ $# -gt 0 ]; do
  case $1 in
    -xattrs-exclude) shift ;;
    *) words+=("$1") ;;
  esac
  shift
done
exec /usr/bin/mksquashfs "${words[@]}"
"""
ENTER = """\
#!/bin/bash
exec nsenter --target {anchor} --mount -- {become} env {variables} {program} "$@"
"""
START_PODMAN_HPC = """\
#!/usr/bin/python3
import sys
sys.path.insert(0, "{folder}/podman-hpc")
from podman_hpc.podman_hpc import main
main()
"""


def missing(engine: str) -> str:
    """Return why `engine` cannot run here, in one line, or '' when it can."""
    if os.getuid() != 0:
        return f"the tests of {engine} need root, for a mount namespace"
    wanted = _PROGRAMS + (_ROOTLESS if engine == "podman-hpc" else ())
    if lacking := [name for name in wanted if shutil.which(name) is None]:
        return f"{engine} needs {' '.join(lacking)}; run '.ci/system-packages test'"
    return ""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A place where `engine` runs: its folder, what goes before PATH, and the models' packed environment."""

    engine: str
    folder: Path
    environment: Path
    _anchor: Child = field(repr=False)

    @property
    def programs(self) -> Path:
        """The folder with the engine's program, to go first on PATH."""
        return self.folder / "programs"

    def engine_run(self, *words: str, timeout: float = 120) -> Completed:
        """Run the engine's program with these words."""
        return run([str(self.programs / self.engine), *words], timeout=timeout)

    def must(self, *words: str) -> str:
        """Run the engine's program with these words, and return what it printed."""
        done = self.engine_run(*words)
        assert done.returncode == 0, f"{self.engine} {' '.join(words)}: {done.complaint}"
        return done.stdout

    def containers(self) -> list[str]:
        """Return the names of all containers, running or not."""
        return self.must("ps", "--all", "--format", "{{.Names}}").split()

    def processes(self) -> dict[int, str]:
        """Return the processes of the site, with their commands, but what the engine keeps when nothing runs.

        That is podman's holder of the user's namespace, and in podman-hpc what unpacks an image: on a real site
        it ends with the job.
        """
        found = {}
        for process in _inside(self._anchor.pid):
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                kept = words == ["/usr/bin/podman"] or any(keeper in " ".join(words[:3]) for keeper in _KEEPERS)
                if process.ppid() != self._anchor.pid and not kept:
                    found[process.pid] = " ".join(words)
        return found


@contextlib.contextmanager
def container_site(engine: str) -> Iterator[Site]:
    """A site for `engine` with the image in its store; at the end nothing of it is left."""
    # A short name, because it is part of the path of sockets; readable for the unprivileged user.
    folder = Path(tempfile.mkdtemp(prefix="exatrkx-site-"))
    folder.chmod(0o755)
    anchor: Child | None = None
    try:
        _furnish(folder, engine)
        argv = ["unshare", "--mount", "--", "bash", str(_HERE / "anchor.sh"), str(folder), _USER, str(_UID)]
        anchor = spawn(argv, log=folder / "anchor.log")
        until((folder / "ready").exists, what=f"the namespace, see {folder / 'anchor.log'}")
        _write_program(folder, engine, anchor.pid)
        site = Site(engine=engine, folder=folder, environment=folder / "environment", _anchor=anchor)
        site.must("import", "--change", f"ENV PATH={PATH}", str(folder / "image.tar"), IMAGE)
        (folder / "image.tar").unlink()
        yield site
        _assert_nothing_runs(site)
    finally:
        if anchor is not None:
            _end(anchor)
        shutil.rmtree(folder)


def _furnish(folder: Path, engine: str) -> None:
    for name in ("etc", "bin", "programs", "modules.d", "hooks.d", "labels", "tmp"):
        (folder / name).mkdir()
    (folder / "labels" / "text").write_text("seen")
    texts = {
        "etc/containers.conf": CONTAINERS_CONF.format(tmp=folder / ("tmp" if engine == "podman" else "home/tmp")),
        "etc/storage.conf": STORAGE_CONF.format(folder=folder),
        "etc/podman_hpc.yaml": PODMAN_HPC_CONF.format(folder=folder),
        "modules.d/labels.yaml": MODULE.format(folder=folder),
        "bin/mksquashfs.static": MKSQUASHFS,
        "bin/podman-hpc": START_PODMAN_HPC.format(folder=folder),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name in ("mksquashfs.static", "podman-hpc"):
        (folder / "bin" / name).chmod(0o755)
    for name in ("home", "scratch"):
        (folder / name).mkdir()
        os.chown(folder / name, _UID, _UID)
    _place(root_archive(), folder / "image.tar")
    _place(model_environment(), folder / "environment")
    if engine == "podman-hpc":
        _place(podman_hpc(), folder / "podman-hpc")


def _place(source: Path, target: Path) -> None:
    """Link the files of `source` to `target`, or copy them where links cannot be."""

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other, follow_symlinks=False)
        except OSError:
            shutil.copy2(one, other, follow_symlinks=False)

    if source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=link)
    else:
        link(str(source), str(target))


def model_environment() -> Path:
    """Return a packed environment with all that the models need, made now (about 12 s) or from the cache."""
    import torch

    folder = cache_folder() / f"model-environment-{sys.version_info.major}.{sys.version_info.minor}-{torch.__version__}"
    if not folder.exists():
        pack_environment(folder, python=Path(sys.executable), packages=("numpy", "scipy", "torch"))
    return folder


def podman_hpc() -> Path:
    """Return a folder with podman-hpc as pip installs it, made now or from the cache."""
    folder = cache_folder() / PODMAN_HPC.replace("==", "-")
    if not folder.exists():
        aside = folder.with_name(uuid.uuid4().hex)
        done = run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(aside), PODMAN_HPC], timeout=120)
        assert done.returncode == 0, done.complaint
        aside.rename(folder)
    return folder


def _write_program(folder: Path, engine: str, anchor: int) -> None:
    variables = {"CONTAINERS_CONF": folder / "etc/containers.conf", "TMPDIR": "/var/tmp"}
    if engine == "podman":
        program, become = "/usr/bin/podman", ""
        variables["CONTAINERS_STORAGE_CONF"] = folder / "etc/storage.conf"
    else:
        program, become = str(folder / "bin/podman-hpc"), f"setpriv --reuid={_UID} --regid={_UID} --clear-groups"
        variables |= {
            "HOME": folder / "home",
            "USER": _USER,
            "SQUASH_DIR": folder / "scratch/squash",
            "PODMANHPC_CONFIG_FILE": folder / "etc/podman_hpc.yaml",
            "STORAGE_DRIVER": "overlay",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin:" + str(folder / "podman-hpc/bin"),
        }
    words = " ".join(f"{name}={value}" for name, value in variables.items())
    path = folder / "programs" / engine
    path.write_text(ENTER.format(anchor=anchor, become=become, variables=words, program=program))
    path.chmod(0o755)


def _assert_nothing_runs(site: Site) -> None:
    left = site.containers()
    site.engine_run("rm", "--all", "--force", "--time", "0")
    assert not left, f"containers left behind: {left}"
    until(lambda: not site.processes(), what=f"the end of {site.processes()}", deadline=10)


def _end(anchor: Child) -> None:
    for process in _inside(anchor.pid):
        with contextlib.suppress(psutil.Error):
            process.send_signal(signal.SIGKILL)
    anchor.stop(grace=0)


def _inside(anchor: int) -> list[psutil.Process]:
    """Return the living processes in the anchor's namespace, of the site's user and in containers, but the anchor."""
    home = os.readlink(f"/proc/{anchor}/ns/mnt")
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            inside = os.readlink(f"/proc/{process.pid}/ns/mnt") == home or process.uids().real == _UID
            if inside and process.pid != anchor:
                # A container has a namespace of its own, below a process of the engine.
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return [process for process in found.values() if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
