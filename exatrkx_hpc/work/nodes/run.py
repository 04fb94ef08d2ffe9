"""A run in shards: assign shards to nodes, reassign those of lost nodes, and merge the figures."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Final, Protocol

from exatrkx_hpc.base.errors import ConfigError, ExatrkxError, IncompleteRun, LaunchError, OutputError
from exatrkx_hpc.base.news import Tell, untold
from exatrkx_hpc.work.events.source import event_key, format_of, scan_events
from exatrkx_hpc.work.inference.blocking import blocking
from exatrkx_hpc.work.ledger.ledger import Ledger
from exatrkx_hpc.work.ledger.open import ACCEPT, REMEDY, require_expected, require_served
from exatrkx_hpc.work.news import ShardsLost, lost
from exatrkx_hpc.work.nodes.merge import Merger, RunFacts, count_left, last_runs
from exatrkx_hpc.work.nodes.shard_task import run_shards
from exatrkx_hpc.work.nodes.state import ShardState, forget_state, read_state, together
from exatrkx_hpc.work.results.layout import Results
from exatrkx_hpc.work.results.shards import Shard, begin_sharding, forget_sharding, read_sharding
from exatrkx_hpc.work.run.progress import ShowProgress
from exatrkx_hpc.work.run.report import Report
from exatrkx_hpc.work.run.run import Settings, StoppedRun, check_endpoint, source_of

LOG: Final = "srun.log"
"""The log of all nodes' programs, in OUT/shards."""

ROUNDS: Final = 5
"""Maximum number of rounds, the first included; each further round needs progress in the round before."""


class Do(Protocol):
    """A function that runs shards, on this machine or on several nodes."""

    def __call__(self, settings: Settings, shards: Sequence[int], *, of: int, look: Callable[[], None]) -> str:
        """Run the shards, call `look` at intervals, and return the reason of an early stop, or "".

        When it returns, no program works on the shards any more; the state of each says how it ended. Raises
        LaunchError when they could not be started, or when a program that ran some of them failed.
        """
        ...


def here(tell: Tell) -> Do:
    """Return a function that runs shards on this machine, one after the other."""

    def do(settings: Settings, shards: Sequence[int], *, of: int, look: Callable[[], None]) -> str:
        with Results(settings.out).usable():
            run_shards(settings, shards, of=of, node=socket.gethostname(), look=look, tell=tell)
        return ""

    return do


def run_sharded(
    settings: Settings,
    do: Do,
    progress: ShowProgress | None = None,
    *,
    shards: int | None = None,
    tell: Tell = untold,
) -> Report:
    """Process every event as `run_clients` does, shard by shard, and return the report of all shards.

    A new OUT gets `shards` shards, at least 2; an existing OUT keeps its number. When it returns, every shard has
    ended. Raises the errors of `run_clients`, from the first shard that failed; OutputError for an OUT that was
    started without shards; LaunchError when no shard could be started; StoppedRun when the run was stopped, or when
    shards were lost repeatedly or without progress.
    """
    require_shardable(settings)
    require_expected(
        settings.events,
        settings.expect,
        form=format_of(settings.events),
        column=settings.event_column,
        workload=settings.kind,
    )
    results = Results(settings.out, workload=settings.kind)
    results.require_ours()
    with results.owned() as locks:
        of = _sharding(settings, results, shards)
        run = _Run(settings, results, of=of, locks=locks, show=progress or (lambda tally: None), tell=tell)
        return run.run(do)


def require_shardable(settings: Settings) -> None:
    """Raise InputError without events, OutputError for an OUT started without shards, ConfigError for -i."""
    if settings.ignore_first:
        raise ConfigError(f"-i is for a run without shards, but {settings.out} has shards; omit -i")
    format_of(settings.events)
    ledger = Results(settings.out).ledger
    if ledger.exists():
        raise OutputError(
            f"{ledger} belongs to a run without shards; resume without --srun and --sbatch, or choose another -o"
        )


def _sharding(settings: Settings, results: Results, shards: int | None) -> int:
    """Return the number of shards of OUT; a new or `fresh` OUT is cleared and gets its number here."""
    known = read_sharding(settings.out)
    results.require_ours()
    if known is None and not settings.fresh:
        results.require_ledger()
    if settings.fresh or known is None:
        if (number := shards or known) is None:
            raise ConfigError(f"{settings.out} has no shards; set the number of shards")
        blocking(lambda: check_endpoint(settings))  # first, so that a mistyped address does not delete results
        with results.usable():
            results.mark()
            results.clear()
            forget_sharding(settings.out)
            begin_sharding(settings.out, max(number, 2), fresh=settings.fresh)
        return max(number, 2)
    return known


class _Run:
    """One run over all shards of OUT, which the caller has locked."""

    def __init__(
        self, settings: Settings, results: Results, *, of: int, locks: bool, show: ShowProgress, tell: Tell
    ) -> None:
        # Absolute paths, for programs in other folders. Not `fresh`: OUT is already cleared, and only once.
        self._settings = dataclasses.replace(
            settings, events=settings.events.absolute(), out=settings.out.absolute(), fresh=False, expect=None
        )
        self._results, self._of, self._locks = results, of, locks
        self._show, self._tell = show, tell
        self._before: dict[int, int] = {}
        self._done: Counter[int] = Counter()
        self._nodes: Counter[str] = Counter()

    def run(self, do: Do) -> Report:
        with self._ledgers() as ledgers:
            self._before = last_runs(ledgers)
            self._done.update({shard: ledger.counts().done for shard, ledger in ledgers.items()})
            if ledgers and (len(ledgers) < self._of or count_left(ledgers.values())):
                self._require_version(ledgers.values())
        stopped, error = self._rounds(do)
        return self._end(stopped, error)

    @contextlib.contextmanager
    def _ledgers(self) -> Iterator[dict[int, Ledger]]:
        """Open the existing ledgers, by shard; raises OutputError when one is damaged or in use."""
        with contextlib.ExitStack() as stack:
            paths = {shard: Results(self._settings.out, Shard(shard, self._of)).ledger for shard in range(self._of)}
            yield {
                shard: stack.enter_context(Ledger(path, locks=self._locks))
                for shard, path in paths.items()
                if path.exists()
            }

    def _require_version(self, ledgers: Iterable[Ledger]) -> None:
        """Refuse another model version; a shard without a ledger would accept any version."""
        served = blocking(lambda: check_endpoint(self._settings))
        accept = self._settings.accept_model_change
        for number, ledger in enumerate(ledgers):
            tell = untold if number else self._tell  # once, not for each shard
            server = source_of(self._settings)
            require_served(ledger, served, server=server, remedy=REMEDY + ACCEPT, accept=accept, tell=tell)

    def _rounds(self, do: Do) -> tuple[str, ExatrkxError | None]:
        """Run all shards, lost ones again; return the reason of a stop, and the error that ended a shard."""
        left: list[int] = list(range(self._of))
        log = self._settings.out / "shards" / LOG
        for turn in range(ROUNDS):
            stopped = self._round(do, left, first=not turn)
            states, more = self._states(), self._count()
            error = next((state.error for state in states.values() if state.error is not None), None)
            ended = [shard for shard in left if shard in states and states[shard].code is not None]
            left = [shard for shard in left if shard not in ended]
            if stopped or error or not left:
                return stopped, error
            if not more and not ended:
                return f"{lost(left)}, and no further event was done; see {log}", None
            if turn + 1 < ROUNDS:
                self._tell(ShardsLost(shards=tuple(left)))
        return f"{lost(left)} repeatedly; see {log}", None

    def _round(self, do: Do, shards: Sequence[int], *, first: bool) -> str:
        """Run the shards once; return the reason of a stop, or ""."""
        with self._results.usable():
            for shard in shards:
                forget_state(self._settings.out, shard)
        stopped = ""
        try:
            stopped = do(self._settings, shards, of=self._of, look=self._look)
        except LaunchError as refused:
            if not self._states().keys() & set(shards):  # none was started
                if first:
                    raise
                stopped = str(refused)
        self._look()
        return stopped

    def _states(self) -> dict[int, ShardState]:
        found = {shard: read_state(self._settings.out, shard) for shard in range(self._of)}
        return {shard: state for shard, state in found.items() if state is not None}

    def _look(self) -> None:
        if (tally := together(self._states(), self._of)) is not None:
            self._show(tally)

    def _count(self) -> int:
        """Add the events that were done since the last count to each shard's node; return their total."""
        states, more = self._states(), 0
        with self._ledgers() as ledgers:
            for shard in states.keys() & ledgers.keys():
                done = ledgers[shard].counts().done
                self._nodes[states[shard].node] += max(done - self._done[shard], 0)
                more += done - self._done[shard]
                self._done[shard] = done
        return more

    def _end(self, stopped: str, error: ExatrkxError | None) -> Report:
        """Write the report of all shards and return it, or raise the error that ended the run."""
        if isinstance(error, IncompleteRun):
            stopped, error = stopped or str(error), None
        report, idle = self._report(stopped or (str(error) if error else None))
        if error is not None:
            with contextlib.suppress(ExatrkxError):  # the disk may be the problem
                self._results.write_report(report.to_json())
            raise error
        if not idle or not self._results.report.exists():  # a run without work has no figures
            self._results.write_report(report.to_json())
        if report.stopped is not None:
            raise StoppedRun.of(report, self._results.report)
        return report

    def _report(self, stopped: str | None) -> tuple[Report, bool]:
        merger, settings = Merger(), self._settings
        with self._ledgers() as ledgers:
            for shard, ledger in ledgers.items():
                merger.add(ledger, before=self._before.get(shard, 0))
            unknown = self._count_events(set(range(self._of)) - ledgers.keys())
        facts = RunFacts(
            server=source_of(settings),
            model=settings.models,
            mode=settings.mode,
            item=settings.kind.item,
            unknown=unknown,
            nodes=self._nodes,
            stopped=stopped,
        )
        return merger.report(facts), merger.idle

    def _count_events(self, shards: Collection[int]) -> int:
        """Count the events of shards that have no ledger yet."""
        if not shards:
            return 0
        source, column = self._settings.events, self._settings.event_column
        ours = [Shard(shard, self._of) for shard in shards]
        keys = (
            event_key(stamp.name)
            for stamp in scan_events(source, format_of(source), column=column, workload=self._settings.kind)
        )
        return sum(1 for key in keys if any(shard.owns(key) for shard in ours))
