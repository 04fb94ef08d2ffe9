"""exatrkx-hpc: a Slurm allocation becomes one Triton endpoint, and every event of a dataset goes through it."""

__version__ = "0.1.0"
