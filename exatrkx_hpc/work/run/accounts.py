"""The accounts of one run: open events, outcomes and figures, stored in the ledger."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from exatrkx_hpc.base.errors import OutputError
from exatrkx_hpc.work.events.source import EventFile
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.open import note_served
from exatrkx_hpc.work.results.journal import Journal
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.models import Served
from exatrkx_hpc.work.results.outcome import Failed, Result, Strike
from exatrkx_hpc.work.results.parts import Part
from exatrkx_hpc.work.run.event_figures import StageMeans
from exatrkx_hpc.work.run.latency import Stopwatch
from exatrkx_hpc.work.run.progress import Tally
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.silence import Silence

LISTED: Final = 1000
"""Maximum number of failed events in a report; the ledger has all of them."""


class Accounts:
    """Counts and records the outcomes of one run; starts from the counts of earlier runs in the ledger.

    The memory use does not grow with the number of events. Every method raises OutputError when the disk is full or
    the ledger is damaged.
    """

    def __init__(
        self,
        ledger: Ledger,
        results: Results,
        events: Path,
        *,
        server: str,
        version: str,
        ignore_first: int = 0,
    ) -> None:
        """Begin a run over the folder `events`; the figures leave out the times of the first `ignore_first` events."""
        ledger.begin_run(server=server, version=version)
        counts = ledger.counts()
        self._ledger, self._results, self._folder = ledger, results, events
        self._server = server
        self.version = version
        self._journal = Journal(results.journal)
        self._journal.note_facts(ledger.facts)
        self._journal.flush()
        self.accept_model_change = False
        self._taken_back = False  # then further answers are of the changed models, too
        self.events = counts.events
        self.done = self.done_before = counts.done
        self.failed = self.failed_before = counts.quarantined
        self.items = self.retries = 0
        self.counts: Counter[str] = Counter()
        self._ignored = 0
        self._ignore_first = ignore_first
        self._stages = StageMeans()
        self.members: Counter[str] = Counter()
        self.times = Stopwatch()
        # Both grow with the events in trouble, not with all events.
        self.strikes = ledger.strikes()
        self._retries: Counter[str] = Counter()

    @property
    def complete(self) -> bool:
        """Whether every event is done or failed."""
        return self.done + self.failed == self.events

    def page(self) -> list[EventFile]:
        """Return the next events, up to 500; an empty list when all were handed out."""
        return self._ledger.waiting(self._folder)

    @property
    def proven(self) -> bool:
        """Whether an earlier run got results."""
        return self.done_before > 0

    def retried(self, event: str) -> None:
        """Count a retry of an event, which may have no result yet."""
        self.retries += 1
        self._retries[event] += 1

    def strike(self, event: str, strike: Strike) -> None:
        """Write a strike of an event to disk at once."""
        self._ledger.strike(event, strike)

    def add(self, result: Result, *, attempts: int) -> None:
        """Note an event whose result is on disk; `attempts` counts the workers that tried it."""
        if not self._wanted([result]):
            return
        counted = self._counted(result)
        self._journal.note_result(counted)
        self._ledger.done(counted, attempts=attempts)

    def add_part(self, part: Part, results: Sequence[tuple[Result, int]]) -> None:
        """Note the events of a part that is on disk, each with its number of attempts."""
        if not self._wanted([result for result, _ in results]):
            return
        counted = [(self._counted(result), attempts) for result, attempts in results]
        self._journal.note_part(part, [result for result, _ in counted])
        self._ledger.done_part(part, counted)

    def _counted(self, result: Result) -> Result:
        """Count a result, and return it with all retries of its event."""
        before = self._retries.pop(result.name, 0)
        result = replace(result, retries=max(result.retries, before))
        self.retries += result.retries - before
        self._count(result)
        return result

    def _wanted(self, results: Sequence[Result]) -> bool:
        """Return whether results count; remove them if not. Raise OutputError if another version of the model answered.

        After `take_back` none counts: answers that were still on their way may be of the changed models.
        """
        if self._taken_back:
            self.forget(result.name for result in results)
            return False
        if self.accept_model_change or not self.version:
            return True
        other = next((one for one in results if one.version not in ("", self.version)), None)
        if other is not None:
            self.forget(result.name for result in results)
            server = f"{other.member} behind {self._server}" if other.member else self._server
            raise OutputError(
                f"{server} answered {other.name} with version {other.version} of the model, but this run began with "
                f"version {self.version}; serve one version, or go on and record both with --accept-model-change"
            )
        return True

    def serve(self, served: Served) -> None:
        """Note that the following answers are of these models."""
        note_served(self._ledger, served)
        self._journal.note_facts(self._ledger.facts)

    def take_back(self, since: float) -> int:
        """Let the events that the models answered or refused since then (seconds since 1970) wait again.

        Return the number of results among them; results that are added later are removed.
        """
        self._taken_back = True
        former = self._ledger.take_back(since)
        done = [name for name, state in former.items() if state == "done"]
        self.done -= len(done)
        self.failed -= len(former) - len(done)
        self.forget(done)
        return len(done)

    def _count(self, result: Result) -> None:
        self.done += 1
        self.items += result.items
        self.members[result.member] += 1
        self.counts.update(result.counts)
        if self._ignored < self._ignore_first:
            self._ignored += 1
            return
        self.times.add(result.seconds)
        self._stages.add(result.stages)

    def fail(self, failed: Failed, *, attempts: int) -> None:
        """Note an event without a result; put it into quarantine if it would fail again."""
        self.failed += 1
        if failed.for_itself:
            place = self._ledger.place(self._folder, failed.event)
            file = {"file": str(place.path)} if place is not None else {}
            self._results.put_into_quarantine(failed, **file, server=self._server, version=self.version)
        self._ledger.fail(failed, attempts=attempts, retries=self._retries.pop(failed.event, 0))

    def forget(self, events: Iterable[str]) -> None:
        """Remove result files of these events that a dead worker wrote but did not report."""
        self._results.forget(events)

    def tally(self, *, in_flight: int, silence: Silence | None = None) -> Tally:
        """Return the current counts; `members` is a live view, which later events change."""
        return Tally(
            events=self.events,
            done=self.done,
            failed=self.failed,
            retries=self.retries,
            in_flight=in_flight,
            members=self.members,
            silence=silence,
        )

    def commit(self) -> None:
        """Write all noted outcomes to disk; if the journal cannot be written, those of the ledger are."""
        try:
            self._journal.flush()
        finally:
            self._ledger.commit()

    def close(self, stopped: str | None) -> None:
        """Write all noted outcomes and the end of the run to disk; `stopped` is the reason of an early end."""
        try:
            self._journal.close()
        finally:
            self._ledger.end_run(stopped)

    def report(self, *, model: str, mode: str, seconds: float, workers: tuple[int, ...], stopped: str | None) -> Report:
        """Return the figures so far; call `commit` before, because the failures are read from the ledger."""
        failed = self._ledger.failures(LISTED)
        return Report(
            server=self._server,
            model=model,
            mode=mode,
            version=self.version,
            events=self.events,
            done=self.done,
            done_before=self.done_before,
            failed=failed,
            more_failed=self.failed - len(failed),
            failed_before=self.failed_before,
            item=self._results.workload.item,
            items=self.items,
            counts=dict(self.counts),
            ignored_first=self._ignored,
            stages_ms=self._stages.means_ms(),
            seconds=seconds,
            latency_ms=self.times.latency(),
            retries=self.retries,
            workers=workers,
            members={member: number for member, number in sorted(self.members.items()) if member},
            stopped=stopped,
            units=self._ledger.facts.get("units", ""),
            versions=_several(self._ledger.versions()),
            empty=self._ledger.empty(),
            passed_over=json.loads(self._ledger.facts.get("passed_over", "{}")),
        )


def _several(versions: dict[str, int]) -> dict[str, int]:
    return versions if len(versions) > 1 else {}
