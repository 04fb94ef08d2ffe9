"""The only error of the cluster: it did not start, or a request failed or timed out."""

from __future__ import annotations


class ClusterError(Exception):
    """An error of the cluster; its message names the part that failed and the last output of that part."""
