"""The one error of the cluster: it could not be brought up, or did not do what was asked in time."""

from __future__ import annotations


class ClusterError(Exception):
    """The message says what failed, and what the part that failed wrote last."""
