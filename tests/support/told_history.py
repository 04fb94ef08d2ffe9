"""A history with everything that a page can show, and a parser of the page."""

from __future__ import annotations

from html.parser import HTMLParser

from exatrkx_hpc.page.history import History, Run, Spread, Throughput
from exatrkx_hpc.work.results.outcome import Failed
from exatrkx_hpc.work.run.latency import Latency

HOSTILE = "evt_</title><script>alert(1)</script><img src=http://leak.invalid/x>\"'\udcff\x1b[31m\u202e"
FIGURES = ("throughput", "latency", "members", "stages", "failures")
TOLD = History(
    model="exatrkx",
    mode="ensemble",
    events=2000,
    done=1990,
    failed=3,
    quarantined=4,
    item="hits",
    items=5_000_000,
    retries=57,
    runs=(
        Run(began=1.7e9, ended=1.7e9 + 5, server="127.0.0.1:9191", killed=True),
        Run(began=1.7e9 + 60, ended=1.7e9 + 65, server="127.0.0.1:9191", stopped="stopped by SIGTERM"),
    ),
    throughput=Throughput(counts=(190, 200) * 5 + (40,), edges=(*range(11), 10.8), begins=(5.0,)),
    latency=Spread(
        counts=(10, 900, 1000, 70, 10),
        edges_ms=(20, 40, 80, 160, 320, 640),
        figures=Latency(mean=85, p50=82, p95=150, p99=300),
    ),
    members={"nid001:8001": 1100, HOSTILE: 890},
    compute={"embed": 8000.0, "gnn": 120_000.0},
    kinds={"input": 4, "endpoint": 3},
    failures=(Failed(event=HOSTILE, kind="input", reason=HOSTILE),),
    settings={"workers": "8", "events": f"/scratch/{HOSTILE}"},
    versions={"Triton": "2.51.0"},
)
NOTHING = History(
    model="", mode="", events=0, done=0, failed=0, quarantined=0, item="hits", items=0, retries=0, runs=(),
    throughput=Throughput(), latency=Spread(),
)  # fmt: skip


class Page(HTMLParser):
    """A parsed page: its elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words += data

    def ids(self, tag: str) -> list[str]:
        return [found["id"] for name, found in self.elements if name == tag and "id" in found]
