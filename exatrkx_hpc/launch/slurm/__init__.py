"""Slurm as the scheduler."""
