"""Triton loads this file; the package exatrkx_hpc must be on the PYTHONPATH of the server.

The Python inside Triton 2.51 ignores PYTHONPATH, so this file reads it.
"""

import os
import sys

sys.path[1:1] = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]

from exatrkx_hpc.traccc.serving import TracccStage as TritonPythonModel  # noqa: E402, F401
