"""Checks of Slurm: its commands, its controller, whether it accepts the job, and the time left to drain."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from exatrkx_hpc.base.errors import LaunchError
from exatrkx_hpc.base.process import find_program
from exatrkx_hpc.config.schema import Farm
from exatrkx_hpc.config.values import EARLY_SIGNAL, limit_seconds, signal_lead
from exatrkx_hpc.doctor.finding import Finding, asked
from exatrkx_hpc.launch.plan import FarmPlan
from exatrkx_hpc.launch.render import render_job
from exatrkx_hpc.launch.slurm.refusals import next_step, own_words
from exatrkx_hpc.launch.slurm.scheduler import ask
from exatrkx_hpc.launch.slurm.submit import would_start

_PROGRAMS = ("sbatch", "squeue", "scancel", "sacct", "scontrol")
#: Seconds beyond drain and exit timeout: the servers check for a stop request once per second, then write records.
_MARGIN = 5


def slurm_findings(farm: Farm, plan: Callable[[], FarmPlan]) -> Iterator[Finding]:
    """Yield the findings on the time limit, Slurm's commands, and Slurm's answers; omit checks that cannot run."""
    yield _time_limit(farm)
    remedy = "run this on a machine with Slurm's commands, such as a login node"
    programs = [asked(name, lambda name=name: find_program(name, remedy=remedy)) for name in _PROGRAMS]  # type: ignore[misc]
    yield from programs
    if not all(finding.ok for finding in programs):
        return
    settings: dict[str, str] = {}
    yield asked("slurm", lambda: _controller(settings))
    if settings:
        yield asked("job", lambda: _test_only(plan()))
        yield _drain_time(farm, settings.get("KillWait", ""))


def _controller(settings: dict[str, str]) -> str:
    """Fill in the cluster's settings; return its name and Slurm's version. Raises LaunchError without an answer."""
    done = ask(["scontrol", "show", "config"])
    if done.returncode:
        said = done.stderr.strip() or done.stdout
        step = next_step(said, otherwise="check Slurm's controller with 'scontrol ping'")
        raise LaunchError(f"no answer: {own_words(said).replace('; ', ', ')}; {step}")
    settings.update(re.findall(r"^(\w+)\s*= (.*?)\s*$", done.stdout, re.MULTILINE))
    return f"cluster {settings.get('ClusterName', '')}, Slurm {settings.get('SLURM_VERSION', '')}"


def _test_only(plan: FarmPlan) -> str:
    """Return Slurm's answer to a test of the job, without submitting it; raises LaunchError if refused."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "farm.sbatch")
        path.write_text(render_job(plan))
        return would_start(path, options=plan.extra_directives)


def _time_limit(farm: Farm) -> Finding:
    """Check that the job has time to serve before Slurm signals its end."""
    seconds, lead = limit_seconds(farm.job.time), signal_lead(farm.job.signal)
    found = f"job.time {farm.job.time}"
    if lead is None or seconds > lead + EARLY_SIGNAL:
        return Finding(what="time limit", ok=True, found=found)
    found += f": Slurm signals the job {lead} to {lead + EARLY_SIGNAL} s before that (job.signal)"
    return Finding(what="time limit", ok=False, found=found, remedy="increase job.time")


def _drain_time(farm: Farm, kill_wait: str) -> Finding:
    """Check the time to drain at the time limit: the lead of job.signal, or KillWait without such a signal."""
    need = farm.server.drain + farm.server.exit_timeout + _MARGIN
    lead, source = signal_lead(farm.job.signal, drains=True), f"job.signal {farm.job.signal}"
    after_cancel = int(re.sub(r"\D.*", "", kill_wait) or 0)
    if lead is None:
        lead, source = after_cancel, "job.signal does not drain the servers, so Slurm's KillWait"
    found = f"a server needs {need} s to stop; before the time limit it has {lead} s ({source})"
    if lead < need:
        remedy = f"set job.signal to B:TERM@{need}, or lower server.drain or server.exit_timeout"
        return Finding(what="drain time", ok=False, found=found, remedy=remedy)
    return Finding(what="drain time", ok=True, found=f"{found}; after a plain scancel {after_cancel} s (KillWait)")
