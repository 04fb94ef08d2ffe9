"""Resume or begin a run: open a ledger that fits the input, create a new one, or refuse."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import InputError, OutputError
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.work.events.source import (
    CSV,
    EVENT,
    PassedOver,
    Reader,
    ends_with_newline,
    last_byte,
    scan_events,
)
from exatrkx_hpc.work.ledger.file import create
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.match_events import Changes, match_events
from exatrkx_hpc.work.ledger.match_results import match_quarantine, match_results
from exatrkx_hpc.work.ledger.rebuild import begin_journal, rebuild
from exatrkx_hpc.work.news import FilesPassedOver, ModelsChanged, NoFinalNewline, RunResumed, UnitsDoubtful, listed
from exatrkx_hpc.work.results.journal import Journal
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.models import Served, changes
from exatrkx_hpc.work.results.shards import WHOLE, Shard
from exatrkx_hpc.work.workloads.base import Workload

_LOOKED_AT: Final = 10
"""Events that are checked for wrong units."""

ACCEPT: Final = ", or go on and record both with --accept-model-change"
"""What `run-clients` adds to REMEDY when the models have changed."""

REMEDY: Final = "choose another -o, or start over with --fresh"
"""The default remedy for a ledger that does not fit."""


def facts_of(
    events: Path,
    *,
    mode: str,
    model: str,
    workload: Workload,
    form: str = CSV,
    column: str = EVENT,
    results: str = CSV,
    shard: Shard = WHOLE,
) -> dict[str, str]:
    """Return the facts of a ledger: the folder of events, the formats, and the workload, mode and model.

    `form` is the format of the events, `column` the column that names them in Parquet files, `results` the format of
    the results, `shard` the shard that the ledger is for.
    """
    folder = os.path.realpath(events)
    part = {} if shard.is_whole else {"shard": str(shard)}
    kinds = {"format": form, "column": column, "results": results}
    return {
        "folder": folder,
        **kinds,
        "workload": workload.name,
        "item": workload.item,
        "mode": mode,
        "model": model,
        "stages": ",".join(workload.stages(mode)),
        **part,
    }


def go_on(
    results: Results,
    events: Path,
    facts: Mapping[str, str],
    *,
    locks: bool = True,
    accept_changes: bool = False,
    retry_failed: bool = False,
    tell: Tell = untold,
) -> Ledger | None:
    """Open the ledger of an earlier run and compare it with events and results; return None if there is no ledger.

    With `retry_failed`, the caller releases the events in quarantine, once the endpoint has answered. Raises
    OutputError for a ledger that cannot be used or was made with other settings, and for results without a ledger;
    InputError when events changed or are missing, unless `accept_changes` is set.
    """
    if not os.path.lexists(results.ledger) and not rebuild(results, events, facts, locks=locks, tell=tell):
        results.require_ledger()
        return None
    ledger = Ledger(results.ledger, locks=locks)
    try:
        results.mark()
        begin_journal(ledger, results)
        require_same(ledger, facts)
        column = facts.get("column", EVENT)
        differing = match_events(
            ledger, events, accept=accept_changes, column=column, shard=results.shard, workload=results.workload
        )
        ledger.set_facts(**facts)
        _note_passed(ledger, events, differing, tell if results.shard.number == 0 else untold)
        again = match_files(ledger, results)
    except BaseException:
        ledger.close()
        raise
    tell(_resumed(ledger, differing, again=again, retry_failed=retry_failed))
    return ledger


def match_files(ledger: Ledger, results: Results) -> int:
    """Compare the ledger with the quarantine and the results; return the number of missing or damaged results.

    Raises OutputError when a file cannot be removed.
    """
    with results.usable():
        match_quarantine(ledger, results.quarantine)
        return match_results(ledger, results)


def begin(
    results: Results, events: Path, facts: Mapping[str, str], *, locks: bool = True, tell: Tell = untold
) -> Ledger:
    """Create a new ledger, replacing an existing one; remove result files of these events and all parts of the shard.

    Call it when `results.require_ours` has passed: it marks the folder, and then removes. Raises OutputError when a
    file cannot be written or removed, InputError for a folder without events.
    """
    results.mark()
    results.clear()
    create(results.ledger, facts, locks=locks)
    note_in_journal(results, facts)
    ledger = Ledger(results.ledger, locks=locks)
    try:
        column = facts.get("column", EVENT)
        differing = match_events(ledger, events, column=column, shard=results.shard, workload=results.workload)
        with results.usable():
            match_results(ledger, results)
            results.fresh.unlink(missing_ok=True)
        _note_passed(ledger, events, differing, tell if results.shard.number == 0 else untold)
    except BaseException:
        ledger.close()
        raise
    return ledger


def note_in_journal(results: Results, facts: Mapping[str, str]) -> None:
    """Write facts to the journal; raises OutputError."""
    journal = Journal(results.journal)
    journal.note_facts(facts)
    journal.close()


def require_served(
    ledger: Ledger,
    served: Served,
    *,
    server: str,
    remedy: str = REMEDY,
    accept: bool = False,
    tell: Tell = untold,
) -> None:
    """Note the models that `server` serves; raise OutputError if done events are of others, unless `accept` is set.

    What the server does not tell is unknown and not compared. `remedy` ends the error message. An accepted change is
    told.
    """
    former, known = ledger.facts.get("version", ""), json.loads(ledger.facts.get("models", "{}"))
    said, what = "", changes(known, served.models)
    if served.version and former not in ("", served.version):
        said = f"are of version {former} of the model, and {server} serves version {served.version}"
        what = what or f"version {former} is version {served.version}"
    elif what:
        said = f"are of other models than {server} serves: {what}"
    if said and ledger.counts().done:
        if not accept:
            raise OutputError(f"the results in {ledger.path.parent} {said}; {remedy}")
        tell(ModelsChanged(server=server, changes=what))
    note_served(ledger, served)


def note_served(ledger: Ledger, served: Served) -> None:
    """Note the models of the results from here on, also for the run that writes them."""
    if served.version:
        ledger.set_facts(version=served.version)
    if served.models:
        ledger.set_facts(models=json.dumps(dict(served.models)))


def _note_passed(ledger: Ledger, events: Path, changes: Changes, tell: Tell) -> None:
    """Note and report what lies in the folder of events and is no event."""
    ledger.set_facts(passed_over=json.dumps(dict(sorted(changes.passed_over.items()))))
    if changes.passed_over:
        tell(FilesPassedOver(folder=str(events), kinds=dict(sorted(changes.passed_over.items()))))


def require_expected(
    events: Path, expect: int | None, *, form: str, column: str = EVENT, workload: Workload | None = None
) -> None:
    """Raise InputError unless the folder has exactly `expect` events; None means any number."""
    if expect is None:
        return
    passed = PassedOver()
    number = sum(1 for _ in scan_events(events, form, column=column, workload=workload, passed=passed))
    if number != expect:
        other = f" (passed over: {listed(passed.counts)})" if passed.counts else ""
        raise InputError(
            f"{events} has {number} events, not {expect}{other}; restore the missing ones, or correct --expect"
        )


def note_newlines(ledger: Ledger, events: Path, tell: Tell) -> bool:
    """Return whether the CSV files of this dataset end with a newline, judged by the first events; note and report.

    A CSV file that is cut inside its last number reads as a whole one. Its missing newline tells, where other files
    have theirs. Where none has, a cut file cannot be known, and the news say so.
    """
    if ledger.facts.get("format", CSV) != CSV:
        return False
    ends = [end for event in ledger.first(events, _LOOKED_AT) if (end := last_byte(event.path))]
    newline = not ends or any(map(ends_with_newline, ends))
    ledger.set_facts(newline="yes" if newline else "no")
    if not newline:
        tell(NoFinalNewline(looked_at=len(ends)))
    return newline


def note_units(ledger: Ledger, events: Path, workload: Workload, tell: Tell) -> None:
    """Check the first events, and note and report doubts about them, such as other units."""
    if workload.sampler is None:
        return
    sample = workload.sampler()
    with contextlib.closing(Reader(workload)) as reader:
        for event in ledger.first(events, _LOOKED_AT):
            with contextlib.suppress(InputError):  # the run reports this error for the event
                sample.add(reader.read(event).tensors)
            if sample.full:
                break
    doubt = sample.doubt()
    if doubt or ledger.facts.get("units"):
        ledger.set_facts(units=doubt)
    if doubt:
        tell(UnitsDoubtful(doubt=doubt))


def require_same(ledger: Ledger, facts: Mapping[str, str], *, remedy: str = REMEDY) -> None:
    """Raise OutputError, with `remedy`, unless the ledger was made with the same settings.

    `match_events` compares the events themselves.
    """
    former = ledger.facts
    for name in ("format", "results", "workload", "mode", "model", "shard"):
        if former.get(name, "") != facts.get(name, ""):
            raise OutputError(
                f"{ledger.path} was made with {name} {former.get(name, '(none)')}, but this run uses {name} "
                f"{facts.get(name, '(none)')}; {remedy}"
            )


def _resumed(ledger: Ledger, changes: Changes, *, again: int, retry_failed: bool) -> RunResumed:
    counts = ledger.counts()
    retried = counts.quarantined if retry_failed else 0
    return RunResumed(
        events=counts.events,
        done=counts.done,
        left=counts.left + retried,
        quarantined=counts.quarantined - retried,
        new=changes.new,
        changed=changes.changed,
        gone=changes.gone,
        again=again,
    )
