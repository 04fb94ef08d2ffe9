"""Results that tests write into a ledger."""

from __future__ import annotations

from exatrkx_hpc.work.results.outcome import Result


def result(name: str, **changes) -> Result:
    fields = {"items": 3, "seconds": 0.25, "retries": 1, "size": 18, "mtime_ns": 7, "sha256": "ab" * 32}
    written = {"result_size": 6, "result_sha256": "cd" * 32}
    return Result(name=name, **(fields | written | changes))
