"""Go on where a run ended, or begin: the ledger that fits the input, or a clear refusal."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from exatrkx_hpc.errors import OutputError
from exatrkx_hpc.work.ledger import Ledger
from exatrkx_hpc.work.ledger_file import create
from exatrkx_hpc.work.reconcile import match_events
from exatrkx_hpc.work.reconcile_results import match_labels, match_quarantine
from exatrkx_hpc.work.results import Results

Tell = Callable[[str], None]
"""What is called with one line for what a person should know."""

_REMEDY: Final = "choose another -o, or begin anew with --fresh"


def facts_of(events: Path, *, mode: str, model: str) -> dict[str, str]:
    """Return what a ledger must agree with: the folder of events, their format, and what makes the labels."""
    return {"folder": os.path.realpath(events), "format": "csv", "mode": mode, "model": model}


def go_on(
    results: Results,
    events: Path,
    facts: Mapping[str, str],
    *,
    locks: bool = True,
    accept_changes: bool = False,
    retry_failed: bool = False,
    tell: Tell = lambda line: None,
) -> Ledger | None:
    """Open the ledger of an earlier run and hold it against what is there; None when there is none.

    Raises OutputError for a ledger that cannot be used, or is of other models; InputError when events changed or
    are gone and that is not accepted.
    """
    if not os.path.lexists(results.ledger):
        return None
    ledger = Ledger(results.ledger, locks=locks)
    try:
        _require_same(ledger, facts)
        changes = match_events(ledger, events, accept=accept_changes)
        ledger.set_facts(**facts)
        if retry_failed:
            ledger.release()
        with results.usable():
            match_quarantine(ledger, results.quarantine)
            again = match_labels(ledger, results.labels)
    except BaseException:
        ledger.close()
        raise
    _tell(ledger, tell, changes=str(changes), again=again)
    return ledger


def begin(results: Results, events: Path, facts: Mapping[str, str], *, locks: bool = True) -> Ledger:
    """Make a new ledger, in place of one that is there; label files that are there of these events are removed.

    Raises OutputError when something cannot be written or removed, InputError for a folder without events.
    """
    results.clear()
    create(results.ledger, facts, locks=locks)
    ledger = Ledger(results.ledger, locks=locks)
    try:
        match_events(ledger, events)
        with results.usable():
            match_labels(ledger, results.labels)
    except BaseException:
        ledger.close()
        raise
    return ledger


def require_version(ledger: Ledger, version: str, *, server: str) -> None:
    """Note which version of the model `server` serves; raises OutputError when done events are of another one.

    An empty version is not known, and not compared.
    """
    former = ledger.facts.get("version", "")
    if version and former not in ("", version) and ledger.counts().done:
        raise OutputError(
            f"the labels in {ledger.path.parent} are of version {former} of the model, and {server} serves version "
            f"{version}; {_REMEDY}"
        )
    if version:
        ledger.set_facts(version=version)


def _require_same(ledger: Ledger, facts: Mapping[str, str]) -> None:
    """Refuse a ledger of other labels; whether the events are the same is seen from the events."""
    former = ledger.facts
    for name in ("format", "mode", "model"):
        if former.get(name, "") != facts[name]:
            raise OutputError(
                f"{ledger.path} is of {name} {former.get(name, '(none)')}, and this run is of {name} {facts[name]}; "
                f"{_REMEDY}"
            )


def _tell(ledger: Ledger, tell: Tell, *, changes: str, again: int) -> None:
    counts = ledger.counts()
    said = [f"{counts.done} of {counts.events} events were done before, {counts.left} are left"]
    if counts.quarantined:
        said.append(f"{counts.quarantined} in quarantine are passed over (--retry-failed tries them again)")
    if changes:
        said.append(f"events: {changes}")
    if again:
        said.append(f"{again} label files were missing or torn")
    tell("; ".join(said))
