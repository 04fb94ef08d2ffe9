"""Benchmarks: farms of several sizes measured with perf_analyzer, and the same work without a server."""
