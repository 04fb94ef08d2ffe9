"""The container engines: the values of `server.engine`, each with its module."""

from __future__ import annotations

from typing import Final

#: Modules are imported on first use (launch/engines/table.py). A new engine needs its file and a line here.
ENGINES: Final = {
    "shifter": "exatrkx_hpc.launch.engines.shifter",
    "podman-hpc": "exatrkx_hpc.launch.engines.podman_hpc",
    "podman": "exatrkx_hpc.launch.engines.podman",
    "apptainer": "exatrkx_hpc.launch.engines.apptainer",
    "none": "exatrkx_hpc.launch.engines.bare",
}
