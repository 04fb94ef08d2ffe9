"""NERSC's podman-hpc as a site would install it: from PyPI, with a configuration, modules and a mksquashfs."""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from exatrkx_hpc.base.process import run
from images.triton_image import cache_folder, place

PODMAN_HPC = "podman-hpc==1.2.2"
#: Podman's settings: limits of a container, and no files outside of the site's folders.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
events_logger = "none"
lock_type = "file"
tmp_dir = "{own}/tmp"
"""
#: A module of the site; tests use it to check that a module's flag and its folder reach the container.
MODULE = """\
name: labels
cli_arg: labels
env: ENABLE_LABELS
additional_args:
  - --volume={folder}/labels:/labels:ro
"""
CONF = """\
podman_bin: /usr/bin/podman
mount_program: {folder}/packages/bin/fuse-overlayfs-wrap
modules_dir: {folder}/modules.d
hooks_dir: {folder}/hooks.d
graph_root_template: "{own}/{{{{ uid }}}}_hpc/storage"
run_root_template: "{own}/{{{{ uid }}}}_hpc"
config_home_template: "{own}/{{{{ uid }}}}_hpc/config"
mksquashfs_bin: {folder}/mksquashfs.static
"""
#: mksquashfs runs inside the image. A site has a static one, 4.6 or later; this script calls the image's older one.
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
START = """\
#!/usr/bin/python3
import os
import sys

os.environ.update({variables})
sys.path.insert(0, "{folder}/packages")
from podman_hpc.podman_hpc import main

main()
"""


def install(folder: Path, *, own: Path, squash: Path) -> Path:
    """Install podman-hpc below `folder`, and return its program.

    `own` holds the stores of a node's users. `squash` holds migrated images; all nodes share it.
    """
    place(_packages(), folder / "packages")
    for name in ("modules.d", "hooks.d", "labels"):
        (folder / name).mkdir()
    texts = {
        "containers.conf": CONTAINERS_CONF.format(own=own),
        "podman_hpc.yaml": CONF.format(folder=folder, own=own),
        "modules.d/labels.yaml": MODULE.format(folder=folder),
        "labels/text": "seen",
        "mksquashfs.static": MKSQUASHFS,
        "podman-hpc": START.format(folder=folder, variables=_variables(folder, own, squash)),
    }
    for name, text in texts.items():
        (folder / name).write_text(text)
    for name in ("mksquashfs.static", "podman-hpc"):
        (folder / name).chmod(0o755)
    return folder / "podman-hpc"


def _variables(folder: Path, own: Path, squash: Path) -> Mapping[str, str]:
    return {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "PODMANHPC_CONFIG_FILE": str(folder / "podman_hpc.yaml"),
        "SQUASH_DIR": str(squash),
        "STORAGE_DRIVER": "overlay",
        "TMPDIR": str(own),
        "PATH": f"/usr/sbin:/usr/bin:/sbin:/bin:{folder}/packages/bin",
    }


def _packages() -> Path:
    """Return a folder with podman-hpc and its dependencies, from the cache or installed with pip now."""
    folder = cache_folder() / PODMAN_HPC.replace("==", "-")
    if not folder.exists():
        aside = folder.with_name(uuid.uuid4().hex)
        done = run([sys.executable, "-m", "pip", "install", "--quiet", "--target", str(aside), PODMAN_HPC], timeout=120)
        assert done.returncode == 0, done.complaint
        aside.rename(folder)
    return folder
