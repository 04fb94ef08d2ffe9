"""Workloads: kinds of events with their inputs, outputs and formats."""
