"""Faults behind an endpoint under load, on a real Slurm cluster: the parts of `steady.py`."""
