"""Every module of the package by its name, as its file."""

from __future__ import annotations

from exatrkx_hpc.base.assets import package_parent

PACKAGE = package_parent() / "exatrkx_hpc"
NAMES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "_assets" not in path.parts
}
