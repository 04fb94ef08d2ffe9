"""The page of a run: `OUT/report.html`, one self-contained file without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from exatrkx_hpc.base.readable import duration, moment, number, percent
from exatrkx_hpc.base.templates import render
from exatrkx_hpc.page import charts
from exatrkx_hpc.page.history import History, Run

TEMPLATE: Final = "exatrkx_hpc/page/page.html.j2"

_UNITS: Final = ((3 * 3600.0, "h", 3600.0), (180.0, "min", 60.0), (0.0, "s", 1.0))


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One figure at the top of the page."""

    name: str
    value: str
    unit: str = ""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A chart with its heading; `name` is its id on the page, and `svg` is already escaped."""

    name: str
    title: str
    caption: str
    svg: Markup


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of text cells; the first cell is the heading of its row. Without `columns` there is no header row."""

    name: str
    title: str
    rows: tuple[tuple[str, ...], ...]
    columns: tuple[str, ...] = ()
    caption: str = ""


@dataclass(frozen=True, kw_only=True)
class Group:
    """Tables side by side, or one below the other if the style is `wide`."""

    style: str
    tables: list[Table]


def render_page(told: History) -> str:
    """Return the page of a run as HTML for UTF-8; unknown facts are left out."""
    complete = told.done == told.events
    return render(
        TEMPLATE,
        title=f"run-clients: {told.done:,} of {told.events:,} events",
        heading=f"{told.events:,} events through {_clean(told.model) or 'the endpoint'}",
        subheading=_subheading(told),
        verdict=_verdict(told),
        verdict_class="complete" if complete else "incomplete",
        units=_clean(told.units),
        tiles=_tiles(told),
        figures=[figure for figure in _figures(told) if figure is not None],
        tables=[Group(style="wide", tables=_events_tables(told)), Group(style="", tables=_facts_tables(told))],
        footer=_footer(told),
    )


def _subheading(told: History) -> str:
    servers = dict.fromkeys(_clean(run.server) for run in told.runs if run.server)
    at = f"at {', '.join(list(servers)[:4])}{' and others' if len(servers) > 4 else ''}" if servers else ""
    began = f"begun {moment(told.runs[0].began, utc=True)}" if told.runs else ""
    return ", ".join(part for part in (f"mode {told.mode}" if told.mode else "", at, began) if part)


def _verdict(told: History) -> str:
    if told.done == told.events:
        return "Every event has a result."
    parts = [f"{told.done:,} of {told.events:,} events have results"]
    if told.quarantined:
        parts.append(f"{told.quarantined:,} in quarantine")
    if told.failed:
        parts.append(f"{told.failed:,} failed and will be tried again")
    if told.left:
        parts.append(f"{told.left:,} not done yet")
    return "; ".join(parts) + "." + (_last(told.runs[-1]) if told.runs else "")


def _last(run: Run) -> str:
    if run.killed:
        return " The last run was killed."
    return f" The last run ended early: {_clean(run.stopped)}." if run.stopped else ""


def _tiles(told: History) -> list[Tile]:
    figures = told.latency.figures
    unit, factor = _latency_unit(told)
    return [
        Tile(name="done", value=f"{told.done:,}", unit=f"of {told.events:,}"),
        Tile(name="failed", value=f"{told.failed + told.quarantined:,}"),
        Tile(name="throughput", value=number(told.events_per_second), unit="events/s"),
        Tile(name="running time", value=duration(told.throughput.seconds)),
        Tile(name="latency, median", value=number(figures.p50 * factor), unit=unit),
        Tile(name="latency, p99", value=number(figures.p99 * factor), unit=unit),
        Tile(name="retries", value=f"{told.retries:,}"),
        Tile(
            name=told.item,
            value=f"{told.items:,}",
            unit=", ".join(f"{count:,} {name}" for name, count in told.counts.items() if count),
        ),
    ]


def _figures(told: History) -> Iterable[Figure | None]:
    yield _throughput(told)
    yield _latency(told)
    yield _shares(
        "members", "Events by server", "The server that processed each event, where known.", told.members,
        unit="events", total="the events that are done",
    )  # fmt: skip
    yield _shares(
        "stages", "Compute by stage", "What Triton counted between the beginning and the end of the runs.",
        {name: spent / 1000.0 for name, spent in told.compute.items()},
        unit="s", total="the compute time of all stages",
    )  # fmt: skip
    yield _shares(
        "failures", "Failures by kind", "Events without a result, by kind of failure.", told.kinds,
        unit="events", total="the events that failed",
    )  # fmt: skip


def _throughput(told: History) -> Figure | None:
    through = told.throughput
    if not through.counts:
        return None
    unit, seconds = next((unit, size) for least, unit, size in _UNITS if through.seconds >= least)
    rates = through.rates
    width = through.edges[1] - through.edges[0]
    resumed = {0: "", 1: ", resumed once"}.get(len(through.begins), f", resumed {len(through.begins)} times")
    caption = f"Events done in each {duration(width)} of the running time{resumed}."
    svg = charts.rate_over_time(
        charts.Chart(
            name="throughput",
            title="Throughput over time",
            description=f"Between {number(min(rates))} and {number(max(rates))} events per second, "
            f"{number(told.events_per_second)} on average, over {duration(through.seconds)}.",
        ),
        rates,
        [edge / seconds for edge in through.edges],
        unit=unit,
        mean=told.events_per_second,
        begins=[at / seconds for at in through.begins],
    )
    return Figure(name="throughput", title="Throughput over time", caption=caption, svg=Markup(svg))


def _latency(told: History) -> Figure | None:
    spread = told.latency
    if not spread.counts:
        return None
    unit, factor = _latency_unit(told)
    marks = {name: getattr(spread.figures, name) * factor for name in ("p50", "p95", "p99")}
    step = spread.edges_ms[1] / spread.edges_ms[0] - 1.0
    said = ", ".join(f"{name} {number(value)} {unit}" for name, value in marks.items())
    svg = charts.distribution(
        charts.Chart(name="latency", title="Latency of the events", description=f"A histogram; {said}."),
        spread.counts,
        [edge * factor for edge in spread.edges_ms],
        unit=unit,
        marks=marks,
    )
    width = f"{100 * step:.0f}\N{NO-BREAK SPACE}%"
    caption = f"From an event's first request to its result, repeats included; each bar is {width} wide."
    return Figure(name="latency", title="Latency of the events", caption=caption, svg=Markup(svg))


def _shares(
    name: str, title: str, caption: str, values: Mapping[str, float], *, unit: str, total: str
) -> Figure | None:
    if sum(values.values()) <= 0:
        return None
    clean: dict[str, float] = {}
    for key, value in values.items():
        clean[_clean(key)] = clean.get(_clean(key), 0.0) + value
    said = ", ".join(f"{key} {percent(value / sum(clean.values()))}" for key, value in list(clean.items())[:8])
    chart = charts.Chart(name=name, title=title, description=f"Bars; {said}.")
    svg = charts.shares(chart, clean, unit=unit, total=total)
    return Figure(name=name, title=title, caption=caption, svg=Markup(svg))


def _events_tables(told: History) -> list[Table]:
    failures = Table(
        name="first-failures",
        title="First failures",
        columns=("event", "kind", "reason"),
        rows=tuple((_clean(one.event), one.kind, _clean(one.reason)) for one in told.failures),
        caption=f"{len(told.failures):,} of {told.failed + told.quarantined:,}, in the order of their names.",
    )
    runs = Table(
        name="runs",
        title="Runs",
        columns=("begun", "lasted", "endpoint", "end"),
        rows=tuple(
            (moment(run.began, utc=True), duration(run.ended - run.began), _clean(run.server), _end(run))
            for run in told.runs
        ),
        caption="This result comes from several runs. Each run resumed the run before.",
    )
    return [table for table in (failures, runs) if len(table.rows) > (table is runs)]


def _facts_tables(told: History) -> list[Table]:
    return [
        Table(name=name, title=title, rows=tuple((_clean(key), _clean(value)) for key, value in values.items()))
        for name, title, values in (("settings", "Settings", told.settings), ("versions", "Versions", told.versions))
        if values
    ]


def _end(run: Run) -> str:
    return "was killed" if run.killed else _clean(run.stopped) or "finished"


def _footer(told: History) -> str:
    if not told.runs:
        return "Made by exatrkx-hpc from the ledger of the run."
    ended = moment(max(run.ended for run in told.runs), utc=True)
    return f"Made by exatrkx-hpc from the ledger of the run, which ended {ended}."


def _latency_unit(told: History) -> tuple[str, float]:
    return ("s", 0.001) if told.latency.figures.p50 >= 10_000 else ("ms", 1.0)


def _clean(words: str) -> str:
    """Replace bytes that are not UTF-8 and non-printable characters; a file name may contain both."""
    sound = words.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in sound)
