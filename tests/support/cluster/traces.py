"""Find what a cluster left behind on this machine."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import cgroups
from cluster.config import HEAD
from cluster.slurm import Cluster


def links() -> frozenset[str]:
    """Return the names of this machine's own network links."""
    return frozenset(line.split(":")[0].strip() for line in Path("/proc/net/dev").read_text().splitlines()[2:])


@dataclass(frozen=True, kw_only=True)
class Traces:
    """What identifies a cluster: its folder, its namespaces and its machines."""

    base: Path
    namespaces: frozenset[str]
    hosts: tuple[str, ...]

    @classmethod
    def of(cls, cluster: Cluster) -> Traces:
        """Read these from a running cluster."""
        namespaces = {
            os.readlink(f"/proc/{host.first}/ns/{kind}")
            for host in (cluster.head, *cluster.nodes)
            for kind in ("net", "mnt", "pid", "uts")
        }
        return cls(base=cluster.base, namespaces=frozenset(namespaces), hosts=(HEAD, *cluster.config.node_names))

    def left(self) -> list[str]:
        """Return the existing parts of the cluster, one line each; empty after a clean stop."""
        return [*self._processes(), *self._files()]

    def _processes(self) -> Iterator[str]:
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                inside = {os.readlink(entry / "ns" / kind) for kind in ("net", "mnt", "pid", "uts")}
                if inside & self.namespaces or self.base.name in words:
                    yield f"process {entry.name} {words}"

    def _files(self) -> Iterator[str]:
        if self.base.exists():
            yield f"folder {self.base}"
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            if self.base.name in line or "exatrkx-cluster" in line:
                yield f"mount {line}"
        for name in self.hosts:
            yield from (f"cgroup {path}" for path in cgroups.of_host(self.base, name))
            yield from (f"shared memory {path}" for path in Path("/dev/shm").glob(f"*{name}*"))
        named = Path("/run/netns")
        yield from (f"namespace {path}" for path in (named.iterdir() if named.is_dir() else []))
