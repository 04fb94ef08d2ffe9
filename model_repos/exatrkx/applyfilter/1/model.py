"""Triton loads this; the package exatrkx_hpc must be on the PYTHONPATH of the server."""

from exatrkx_hpc.tracking.serving import ApplyFilterStage as TritonPythonModel  # noqa: F401
