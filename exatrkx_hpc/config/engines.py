"""Which container engines there are: the values of `server.engine`, each with the module that holds it."""

from __future__ import annotations

from typing import Final

#: Loaded when they are asked for (launch/engines/table.py). A new engine is its file and a line here.
ENGINES: Final = {
    "shifter": "exatrkx_hpc.launch.engines.shifter",
    "podman-hpc": "exatrkx_hpc.launch.engines.podman_hpc",
    "podman": "exatrkx_hpc.launch.engines.podman",
    "apptainer": "exatrkx_hpc.launch.engines.apptainer",
    "none": "exatrkx_hpc.launch.engines.bare",
}
