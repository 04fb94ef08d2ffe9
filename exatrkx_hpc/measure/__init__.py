"""Measurements of the servers."""
