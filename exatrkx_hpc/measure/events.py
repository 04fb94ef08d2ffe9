"""News during measurements: of the points of a scan, of perf_analyzer, and of the servers' counters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exatrkx_hpc.base.news import Level, News
from exatrkx_hpc.measure.bench_table import Kind, Point


@dataclass(frozen=True, kw_only=True)
class PointNews(News):
    """News of one point of a scan."""

    kind: Kind
    servers: int
    instances: int
    concurrency: int

    @property
    def point(self) -> Point:
        """The point."""
        return Point(kind=self.kind, servers=self.servers, instances=self.instances, concurrency=self.concurrency)


@dataclass(frozen=True, kw_only=True)
class PointMeasured(PointNews):
    """A repetition of a point was measured; `variation` is that of its repetitions so far, 0 for the first."""

    code: ClassVar[str] = "point-measured"
    repetition: int
    events_per_s: float
    p50_ms: float
    variation: float

    def __str__(self) -> str:
        """Return the figures, and the variation of the repetitions."""
        spread = f", {100 * self.variation:.0f} % between {self.repetition}" if self.repetition > 1 else ""
        return (
            f"{self.point}: {self.events_per_s:.1f} events/s, p50 {self.p50_ms:.0f} ms "
            f"(repetition {self.repetition}{spread})"
        )


@dataclass(frozen=True, kw_only=True)
class PointFailed(PointNews):
    """A point could not be measured; it is given up after the second failure."""

    code: ClassVar[str] = "point-failed"
    #: The scan continues with the other points.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return the point and the reason."""
        return f"{self.point}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class AnalyzerInstalling(News):
    """perf_analyzer is being installed in `folder`, from the pip requirement `package`."""

    code: ClassVar[str] = "analyzer-installing"
    package: str
    folder: str

    def __str__(self) -> str:
        """Return package and folder."""
        return f"perf_analyzer: installing {self.package} in {self.folder}"


@dataclass(frozen=True, kw_only=True)
class AnalyzerBroken(News):
    """The installed perf_analyzer does not run; it is installed again."""

    code: ClassVar[str] = "analyzer-broken"
    #: Another machine may have installed it.
    usual: ClassVar[Level] = Level.WARNING
    launcher: str

    def __str__(self) -> str:
        """Return the problem and the action."""
        return f"perf_analyzer: {self.launcher} does not run; installing it again"


@dataclass(frozen=True, kw_only=True)
class LibrariesFetching(News):
    """The machine's C library is older than `glibc`, which perf_analyzer needs; Debian's is installed next to it."""

    code: ClassVar[str] = "libraries-fetching"
    glibc: str

    def __str__(self) -> str:
        """Return the problem and the action."""
        return f"perf_analyzer: this machine's glibc is older than {self.glibc}; installing Debian's next to it"


@dataclass(frozen=True, kw_only=True)
class ServerLeftOut(News):
    """The printed sums do not include the counters of one server."""

    code: ClassVar[str] = "server-left-out"
    #: The sums do not include all servers.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return the server and the reason."""
        return f"left out: {self.reason}"
