"""The modules of the package: their files, syntax trees and folders, and the effects of an import."""

from __future__ import annotations

import ast
import json
import os
import sys
from pathlib import Path

from exatrkx_hpc.base.assets import package_parent
from exatrkx_hpc.base.process import run

PACKAGE = package_parent() / "exatrkx_hpc"
NAMES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if "_assets" not in path.parts
}
TREES = {name: ast.parse(path.read_text(), str(path)) for name, path in NAMES.items()}
#: The module that users import. It is above all layers, and imports from them on the first use of a name.
FRONT_DOOR = "exatrkx_hpc"


def folders(module: str) -> tuple[str, str]:
    """Return the folder and the subfolder of a module: `launch`, `slurm` for `exatrkx_hpc.launch.slurm.parse`.

    A module directly in the package is its own folder.
    """
    parts = module.split(".")[1:]
    deeper = len(parts) > 2 or (len(parts) == 2 and NAMES[module].name == "__init__.py")
    return (parts[0] if parts else "", parts[1] if deeper else "")


#: Imports modules and prints what our own code did meanwhile; actions of other packages, such as numpy, do not count.
WATCH = """
import json, sys
events = []
WATCHED = {"subprocess.Popen", "os.fork", "os.posix_spawn", "os.exec", "os.system", "socket.bind", "socket.connect"}
def look(name, arguments):
    frame = sys._getframe(1) if name in WATCHED else None
    while frame is not None:
        file = frame.f_code.co_filename
        if "/exatrkx_hpc/" in file:
            events.append([name, file])
        if "/exatrkx_hpc/" in file or "site-packages" in file:
            break
        frame = frame.f_back
sys.addaudithook(look)
for name in sys.argv[1:]:
    __import__(name)
import logging, threading
print(json.dumps({
    "events": events,
    "modules": sorted(name for name in sys.modules if "." not in name),
    "handlers": len(logging.getLogger().handlers),
    "threads": [thread.name for thread in threading.enumerate()],
}))
"""


def import_alone(*modules: str, **variables: str) -> dict:
    """Import the modules in a separate Python process and return what happened."""
    environment = {**os.environ, "PYTHONPATH": str(package_parent()), **variables}
    done = run([sys.executable, "-c", WATCH, *modules], env=environment, cwd=Path("/"))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return json.loads(done.stdout)
