"""A site with a real container engine: podman as root, or NERSC's podman-hpc as an unprivileged user.

A folder and a mount namespace hold everything that the engine needs and this machine may lack. Removing both leaves
nothing behind. `podman` and `podman-hpc` on the site's PATH enter the namespace.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from waiting import until

from exatrkx_hpc.base.process import Child, Completed, run, spawn
from images import podman_hpc
from images.triton_image import PATH, model_environment, place, root_archive

IMAGE = "localhost/triton-of-the-tests:1"
#: Each test session has its own UID, so that two sessions can tell their processes apart.
_USER, _UID = "guest", 100_000 + os.getpid() % 100_000
_HERE = Path(__file__).parent
_PROGRAMS = ("podman", "conmon", "crun", "nsenter", "unshare", "setpriv")
_ROOTLESS = ("fuse-overlayfs", "newuidmap", "slirp4netns", "squashfuse", "inotifywait")
_KEEPERS = ("squashfuse_ll", "inotifywait", "fuse-overlayfs-wrap wait")

STORAGE_CONF = """\
[storage]
driver = "overlay"
graphroot = "{folder}/store"
runroot = "{folder}/run"
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
    """A site where `engine` runs: its folder, its programs, and the models' packed environment."""

    engine: str
    folder: Path
    environment: Path
    _anchor: Child = field(repr=False)

    @property
    def programs(self) -> Path:
        """The folder with the engine's program, to go first on PATH."""
        return self.folder / "programs"

    def engine_run(self, *words: str, timeout: float = 120) -> Completed:
        """Run the engine's program with these arguments."""
        return run([str(self.programs / self.engine), *words], timeout=timeout)

    def must(self, *words: str) -> str:
        """Run the engine's program with these arguments and return its output; fail if the program fails."""
        done = self.engine_run(*words)
        assert done.returncode == 0, f"{self.engine} {' '.join(words)}: {done.complaint}"
        return done.stdout

    def containers(self) -> list[str]:
        """Return the names of all containers, running or not."""
        return self.must("ps", "--all", "--format", "{{.Names}}").split()

    def processes(self) -> dict[int, str]:
        """Return the site's processes by PID, with their commands, without the engine's idle helpers.

        The helpers are podman's holder of the user namespace, and podman-hpc's processes that mount an image. On a
        real site they end with the job.
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
    """Yield a site for `engine` with the image in its store; remove the site at the end."""
    # A short name, because socket paths contain it; readable by the unprivileged user.
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
    for name in ("etc", "programs", "tmp", "podman-hpc"):
        (folder / name).mkdir()
    for name in ("home", "scratch"):
        (folder / name).mkdir()
        os.chown(folder / name, _UID, _UID)
    place(root_archive(), folder / "image.tar")
    place(model_environment(), folder / "environment")
    if engine == "podman-hpc":
        podman_hpc.install(folder / "podman-hpc", own=folder / "home", squash=folder / "scratch" / "squash")
    else:
        (folder / "etc" / "containers.conf").write_text(podman_hpc.CONTAINERS_CONF.format(own=folder))
        (folder / "etc" / "storage.conf").write_text(STORAGE_CONF.format(folder=folder))


def _write_program(folder: Path, engine: str, anchor: int) -> None:
    if engine == "podman-hpc":
        become = f"setpriv --reuid={_UID} --regid={_UID} --clear-groups"
        words = f"{become} env HOME={folder}/home USER={_USER} {folder}/podman-hpc/podman-hpc"
    else:
        settings = f"CONTAINERS_CONF={folder}/etc/containers.conf CONTAINERS_STORAGE_CONF={folder}/etc/storage.conf"
        words = f"env {settings} /usr/bin/podman"
    path = folder / "programs" / engine
    path.write_text(f'#!/bin/bash\nexec nsenter --target {anchor} --mount -- {words} "$@"\n')
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
    """Return the live processes in the anchor's namespace, of the site's user and in containers, without the anchor."""
    home = os.readlink(f"/proc/{anchor}/ns/mnt")
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(OSError, psutil.Error):
            inside = os.readlink(f"/proc/{process.pid}/ns/mnt") == home or process.uids().real == _UID
            if inside and process.pid != anchor:
                # A container has its own namespace, but its processes are descendants of an engine process.
                found |= {one.pid: one for one in (process, *process.children(recursive=True))}
    return [process for process in found.values() if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.status() != psutil.STATUS_ZOMBIE
    return False
