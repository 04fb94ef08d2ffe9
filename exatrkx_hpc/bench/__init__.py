"""The evaluation: farms of several sizes, each measured with perf_analyzer, and the same work without a server."""
