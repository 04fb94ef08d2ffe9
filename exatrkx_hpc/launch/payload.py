"""Copy the Python code that the models need on the nodes to a folder of the run root."""

from __future__ import annotations

from pathlib import Path

from exatrkx_hpc.base.assets import package_parent
from exatrkx_hpc.base.files import write_whole

_PARTS = ("exatrkx_hpc/__init__.py", "exatrkx_hpc/tracking", "exatrkx_hpc/traccc")
#: Python code, GPU code, which is compiled on the node, and the description of traccc's detector.
_KINDS = (".py", ".cu", ".json")


def write_payload(folder: Path) -> None:
    """Copy `tracking` and `traccc`, which import no other part of the package, into `folder`; safe to repeat.

    `folder` is the PYTHONPATH of a server; a container mounts it.
    """
    for part in _PARTS:
        source = package_parent() / part
        files = sorted(file for file in source.iterdir() if file.suffix in _KINDS) if source.is_dir() else [source]
        for file in files:
            target = folder / file.relative_to(package_parent())
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, file.read_bytes())
