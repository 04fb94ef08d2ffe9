"""What happens while something is measured, as news: to the points of a scan, and to what measures them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from exatrkx_hpc.base.news import Level, News
from exatrkx_hpc.measure.bench_table import Kind, Point


@dataclass(frozen=True, kw_only=True)
class PointNews(News):
    """News of a point of a scan."""

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
    """A point was measured once more; `variation` is that of its repetitions so far, 0 of the first."""

    code: ClassVar[str] = "point-measured"
    repetition: int
    events_per_s: float
    p50_ms: float
    variation: float

    def __str__(self) -> str:
        """Return the figures, and how far the repetitions lie apart."""
        spread = f", {100 * self.variation:.0f} % between {self.repetition}" if self.repetition > 1 else ""
        return (
            f"{self.point}: {self.events_per_s:.1f} events/s, p50 {self.p50_ms:.0f} ms "
            f"(repetition {self.repetition}{spread})"
        )


@dataclass(frozen=True, kw_only=True)
class PointFailed(PointNews):
    """A point could not be measured; it is tried a second time, and then given up."""

    code: ClassVar[str] = "point-failed"
    #: The scan goes on with the others.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return the point and why."""
        return f"{self.point}: {self.reason}"


@dataclass(frozen=True, kw_only=True)
class AnalyzerInstalling(News):
    """perf_analyzer, which pip knows as `package`, is being installed in `folder`."""

    code: ClassVar[str] = "analyzer-installing"
    package: str
    folder: str

    def __str__(self) -> str:
        """Return what goes where."""
        return f"perf_analyzer: installing {self.package} in {self.folder}"


@dataclass(frozen=True, kw_only=True)
class AnalyzerBroken(News):
    """The perf_analyzer that was installed before does not run; it is installed again."""

    code: ClassVar[str] = "analyzer-broken"
    #: The machine may be another one than that which installed it.
    usual: ClassVar[Level] = Level.WARNING
    launcher: str

    def __str__(self) -> str:
        """Return what is done about it."""
        return f"perf_analyzer: {self.launcher} does not run; installing it again"


@dataclass(frozen=True, kw_only=True)
class LibrariesFetching(News):
    """The C library here is older than `glibc`, which perf_analyzer needs; Debian's goes next to it."""

    code: ClassVar[str] = "libraries-fetching"
    glibc: str

    def __str__(self) -> str:
        """Return what is fetched."""
        return f"perf_analyzer: this machine's glibc is older than {self.glibc}; installing Debian's next to it"


@dataclass(frozen=True, kw_only=True)
class ServerLeftOut(News):
    """The counters of a server are not in the sums that are printed now."""

    code: ClassVar[str] = "server-left-out"
    #: The sums are of fewer servers than there are.
    usual: ClassVar[Level] = Level.WARNING
    reason: str

    def __str__(self) -> str:
        """Return the server and why."""
        return f"left out: {self.reason}"
