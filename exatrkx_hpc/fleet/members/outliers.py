"""Watch the answers of the servers: read their counters, try them, and carry out what the judge says."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Final, TypeAlias

from exatrkx_hpc.base.files import write_whole
from exatrkx_hpc.base.member_reports import MemberReports
from exatrkx_hpc.base.news import Tell
from exatrkx_hpc.config.schema import MonitorSection
from exatrkx_hpc.fleet.events import RestartAsked
from exatrkx_hpc.fleet.members.judge import Seen, Standing, Start, Work, judge, start_of
from exatrkx_hpc.fleet.members.kept import Answer, Connection, Kept
from exatrkx_hpc.fleet.members.reconcile import Member
from exatrkx_hpc.launch.run_dir import RunDir

Trial: TypeAlias = Callable[[Member], str]
"""Sends one real inference to a server; returns what is wrong with it, or ''."""

#: Trials at a time.
_TRIALS: Final = 16
#: The model name under which the reports of clients are judged.
_CLIENTS: Final = ""
_COUNTER: Final = re.compile(
    rb"^nv_inference_(request_success|request_failure|request_duration_us|pending_request_count)\{([^}\n]*)\} (\S+)$",
    re.MULTILINE,
)
_MODEL: Final = re.compile(rb'model="([^"]*)"')


class OutlierDetection:
    """Turns the members of each look into members by their answers, as the judge says; close it after use.

    Each `monitor.sample_interval` seconds, a look costs one more request per server, and its counters are read.
    """

    def __init__(self, run_dir: RunDir, settings: MonitorSection, *, trial: Trial | None = None, tell: Tell) -> None:
        """Judge the servers of a job; without `trial`, servers are not tried. Goes on where the last monitor was."""
        self._run_dir = run_dir
        self._settings = settings
        self._trials = _Trials(trial) if trial is not None and settings.trial else None
        self._tell = tell
        self._kept = Kept()
        self._reports = MemberReports(run_dir.reports)
        self._next_sample = 0.0
        self._standings: Mapping[str, Standing] = _read(run_dir)
        self._saved = _saved(self._standings)

    def __call__(self, members: tuple[Member, ...]) -> tuple[Member, ...]:
        """Return the members with the judge's states; try and restart servers as it says."""
        now = time.monotonic()
        trials = self._trials.ended() if self._trials is not None else {}
        verdict = judge(
            members,
            self._standings,
            Seen(samples=self._samples(members, now), trials=trials),
            rules=self._settings,
            trials=self._trials is not None,
            now=now,
        )
        self._standings = verdict.standings
        by_name = {member.name: member for member in members}
        if self._trials is not None:
            self._trials.start(by_name[name] for name in verdict.to_try)
        for name, why in verdict.to_restart.items():
            with contextlib.suppress(OSError):  # asked again after monitor.sick_after
                ask_server(self._run_dir, name, "restart", by="monitor")
                self._tell(RestartAsked(job=self._run_dir.job, server=name, reason=why))
        self._save()
        return verdict.members

    def adopt(self, members: Iterable[Member]) -> None:
        """Let servers that already take requests, under an earlier monitor, go on without a first trial."""
        known = dict(self._standings)
        for member in members:
            one = known.get(member.name)
            if one is None or one.starts != member.record.starts:
                one = Standing(starts=member.record.starts)
            known[member.name] = replace(one, passed=True)
        self._standings = known

    def close(self) -> None:
        """Close the connections; trials that still run are left to their timeout."""
        self._kept.close()

    def _samples(self, members: Iterable[Member], now: float) -> dict[str, dict[str, Work]]:
        if now < self._next_sample or not self._settings.eject:
            return {}
        self._next_sample = now + self._settings.sample_interval
        answering = {member.name: member for member in members if member.state == "ready"}
        addresses = {name: (member.record.address, member.record.metrics_port) for name, member in answering.items()}
        answers = self._kept.ask(addresses, metrics_of, timeout=self._settings.probe_timeout)
        reports = self._reports.totals()
        samples = {}
        for name, answer in answers.items():
            if answer is not None and answer.ok:
                samples[name] = parse_work(answer.body)
                if (told := reports.get(answering[name].grpc)) is not None:
                    samples[name][_CLIENTS] = Work(successes=told.answers, failures=told.failures)
        return samples

    def _save(self) -> None:
        if (now := _saved(self._standings)) != self._saved:
            with contextlib.suppress(OSError):  # written again at the next change
                write_whole(self._run_dir.standings, json.dumps(now) + "\n", mode=0o600)
                self._saved = now


def ask_server(run_dir: RunDir, server: str, word: str, *, by: str) -> None:
    """Ask the script of one server to `restart`, `drain` or `halt`; its script hears it within seconds.

    Raises OSError.
    """
    file = run_dir.word(server)
    file.parent.mkdir(mode=0o700, exist_ok=True)
    write_whole(file, f"{word}\n{by}\n", mode=0o600)


def read_ejected(run_dir: RunDir) -> dict[tuple[str, int], str]:
    """Return the faults of the servers that the job's monitor has ejected, by name and start."""
    standings = _read(run_dir)
    tried = any(one.passed for one in standings.values())
    faults = {
        (name, one.starts): one.fault or (f"its trial failed: {one.trial_fault}" if tried and one.trial_fault else "")
        for name, one in standings.items()
    }
    return {key: fault for key, fault in faults.items() if fault}


def parse_work(text: bytes) -> dict[str, Work]:
    """Return the work of each model in Triton's metrics; requests that the client cancelled are no failures."""
    found: dict[str, dict[bytes, float]] = {}
    for counter, labels, value in _COUNTER.findall(text):
        match = _MODEL.search(labels)
        if match is not None and b'reason="CANCELED"' not in labels:
            counts = found.setdefault(match[1].decode(errors="replace"), {})
            counts[counter] = counts.get(counter, 0.0) + float(value)
    return {
        model: Work(
            successes=int(counts.get(b"request_success", 0)),
            failures=int(counts.get(b"request_failure", 0)),
            seconds=counts.get(b"request_duration_us", 0) / 1e6,
            pending=int(counts.get(b"pending_request_count", 0)),
        )
        for model, counts in found.items()
    }


async def metrics_of(_: str, connection: Connection) -> Answer:
    """Return the answer of a server's metrics port; see Kept.ask."""
    return await connection.get("/metrics")


class _Trials:
    """Trials in threads that end with the program, because a trial may last as long as its timeout.

    A trial is that of one start of a server: a server that has started again is tried anew, and at once.
    """

    def __init__(self, trial: Trial) -> None:
        self._trial = trial
        self._running: dict[Start, threading.Thread] = {}
        self._results: dict[Start, str] = {}

    def start(self, members: Iterable[Member]) -> None:
        """Start the trials of these servers, except those that run already; 16 at most run at a time."""
        for member in members:
            if len(self._running) >= _TRIALS:
                return
            if start_of(member) in self._running:
                continue
            thread = threading.Thread(target=self._try, args=(member,), name="exatrkx-trial", daemon=True)
            with contextlib.suppress(RuntimeError):  # no thread to be had now; tried at the next look
                thread.start()
                self._running[start_of(member)] = thread

    def ended(self) -> dict[Start, str]:
        """Return the results of the trials that have ended since the last time."""
        over = [start for start, thread in self._running.items() if not thread.is_alive()]
        for start in over:
            del self._running[start]
        return {start: self._results.pop(start) for start in over if start in self._results}

    def _try(self, member: Member) -> None:
        try:
            fault = self._trial(member)
        except (OSError, RuntimeError, MemoryError):
            return  # no file, thread or memory is left on this machine: no result, and tried again at the next look
        except ImportError:  # no trial can be made here
            fault = ""
        except Exception as error:
            fault = f"{type(error).__name__}: {error}"
        self._results[start_of(member)] = fault


def _saved(standings: Mapping[str, Standing]) -> dict[str, dict[str, object]]:
    """Return what a later monitor, and `status`, need of the standings."""
    return {
        name: {
            "starts": one.starts,
            "passed": one.passed,
            "trial_fault": one.trial_fault,
            "fault": one.fault,
            "ejections": one.ejections,
        }
        for name, one in standings.items()
        if one.passed or one.fault or one.trial_fault
    }


def _read(run_dir: RunDir) -> dict[str, Standing]:
    try:
        kept = json.loads(run_dir.standings.read_bytes())
        return {
            name: Standing(
                starts=int(one["starts"]),
                passed=bool(one["passed"]),
                trial_fault=str(one["trial_fault"]),
                fault=str(one["fault"]),
                ejections=int(one["ejections"]),
            )
            for name, one in kept.items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
