"""`status`, `logs`, `doctor`, `setup`, `clean`: inspect and maintain a site."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.errors import InputError, MissingComponent
from exatrkx_hpc.base.follow import Follower
from exatrkx_hpc.base.readable import duration
from exatrkx_hpc.cli.choice import JobId, chosen_job
from exatrkx_hpc.cli.news import teller
from exatrkx_hpc.cli.options import ConfigFile, EngineName, Json, RunRoot, SiteName, answer, console, resolved
from exatrkx_hpc.doctor import Finding, examine
from exatrkx_hpc.fleet.reasons import reasons_of
from exatrkx_hpc.launch.run_dir import FarmDir
from exatrkx_hpc.launch.run_dirs import parse_age
from exatrkx_hpc.prepare import plan


def doctor(
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    engine: EngineName = None,
    as_json: Json = False,
) -> None:
    """Check that everything the farm needs is available.

    Prints one line per check, and what to do if the check fails.

    Example: exatrkx-hpc doctor --site perlmutter
    """
    farm = resolved(config, site=site, run_root=run_root, server__engine=engine).farm
    findings = list(examine(farm, lambda: plan(farm, lay_out=False)))
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        table = Table("", "what", "found", "what to do")
        for finding in findings:
            table.add_row(_mark(finding), finding.what, finding.found, finding.remedy)
        console().print(table)
    missing = sum(not finding.ok for finding in findings)
    if missing:
        raise MissingComponent(f"{missing} check(s) failed; see the last column of the table for what to do")


def _mark(finding: Finding) -> str:
    if not finding.ok:
        return "NOT OK"
    return "warning" if finding.remedy else "ok"


def setup(
    bench: Annotated[bool, typer.Option("--bench", help="Also install perf_analyzer, which bench needs.")] = False,
    trust_run_root: Annotated[
        bool, typer.Option("--trust-run-root", help="Accept a run root that seems not to be shared with the nodes.")
    ] = False,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    engine: EngineName = None,
    package: Annotated[
        list[str] | None,
        typer.Option("--package", help="Additional package for the models' Python environment; repeatable."),
    ] = None,
    fused: Annotated[
        bool, typer.Option("--fused/--no-fused", help="Build the fused model; on a GPU it needs PyTorch and CuPy.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Pull the image and build the models; safe to repeat.

    Creates the folders, pulls the container image, fetches the models' Python packages and builds the models.

    Example: exatrkx-hpc setup --bench
    """
    farm = resolved(config, site=site, run_root=run_root, server__engine=engine).farm
    tell = teller(as_json=as_json)
    story.setup(farm, tell=tell, trust_run_root=trust_run_root, packages=tuple(package or ()), fused=fused)
    line, command = f"{farm.run_root} is ready; check the rest with 'exatrkx-hpc doctor'", []
    if bench:
        from exatrkx_hpc.measure.perf_analyzer_install import install

        analyzer = install(FarmDir.of(farm).perf_analyzer, tell)
        command = list(analyzer.command)
        line = f"perf_analyzer {analyzer.version}: {' '.join(command)}\n{line}"
    answer(line, as_json=as_json, run_root=farm.run_root, perf_analyzer=command)


def status(
    job: Annotated[str | None, typer.Argument(help="Job ID (default: all jobs of the run root).")] = None,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    as_json: Json = False,
) -> None:
    """Show the state of a job, its servers and its endpoint.

    Example: exatrkx-hpc status 4242
    """
    farm = resolved(config, site=site, run_root=run_root).farm
    tell = teller(as_json=as_json)
    found = [story.find_job(farm, job, tell=tell)] if job is not None else list(story.jobs(farm, tell=tell))
    views = story.statuses(found)
    if as_json:
        typer.echo(json.dumps([view.as_dict() for view in views], indent=2))
        return
    if not views:
        typer.echo(f"no jobs in {farm.run_root}; submit one with 'exatrkx-hpc deploy'")
        return
    jobs = Table("job", "state", "ready", "time left", "endpoint", "note")
    for view in views:
        jobs.add_row(
            f"{view.info.id};{view.info.cluster}" if view.info.cluster else view.info.id,
            view.info.state.value,
            f"{view.ready} of {len(view.servers)}",
            "" if view.info.time_left is None else duration(round(view.info.time_left)),
            view.endpoint,
            view.note,
        )
    console().print(jobs)
    if job is not None:
        servers = Table("server", "state", "address", "GPUs", "starts", "note")
        for member in views[0].servers:
            record = member.record
            servers.add_row(member.name, member.state, member.grpc, record.gpus, str(record.starts), member.note)
        console().print(servers)


def logs(
    job: JobId = None,
    server: Annotated[str | None, typer.Argument(help="Server name (default: all servers).")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow the logs until Ctrl-C.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of lines from the end of each log.")] = 20,
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object; with --follow, one more per new text.")
    ] = False,
) -> None:
    """Print the logs of a job and its servers, errors first.

    Example: exatrkx-hpc logs 4242 nid001234-0 -f
    """
    found = chosen_job(resolved(config, site=site, run_root=run_root).farm, job, tell=teller(as_json=as_json))
    files = found.run_dir.log_files(server)
    if not files:
        there = ", ".join(path.stem for path in found.run_dir.log_files()) or "none yet"
        raise InputError(f"job {found.id} has no log of {server or 'a server'}; available: {there}")
    # A log may grow meanwhile, so --follow continues from the bytes read here.
    raw = {path: path.read_bytes() for path in files}
    followed = [Follower(path, place=len(data)) for path, data in raw.items()]
    texts = {path: data.decode(errors="replace") for path, data in raw.items()}
    why = list(reasons_of({path.stem: text for path, text in texts.items()}))
    ends = {path: text.splitlines()[-lines:] if lines else [] for path, text in texts.items()}
    if as_json:
        shown = [{"file": str(path), "lines": end} for path, end in ends.items()]
        typer.echo(json.dumps({"job": found.id, "reasons": why, "logs": shown}))
    else:
        _print_logs(why, ends)
    while follow:
        time.sleep(0.5)
        for one in followed:
            if fresh := one.read():
                typer.echo(json.dumps({"file": str(one.path), "text": fresh}) if as_json else fresh, nl=as_json)


def _print_logs(why: Sequence[str], ends: Mapping[Path, Sequence[str]]) -> None:
    if why:
        typer.echo("\n".join(("==> what failed <==", *why)))
    for path, end in ends.items():
        typer.echo(f"==> {path} <==")
        typer.echo("\n".join(end))


def clean(
    older_than: Annotated[str, typer.Option("--older-than", help="Minimum age, such as 12h, 7d or 2w.")] = "7d",
    config: ConfigFile = None,
    site: SiteName = None,
    run_root: RunRoot = None,
    as_json: Json = False,
) -> None:
    """Remove the run directories and scripts of ended jobs that have not changed for --older-than.

    Example: exatrkx-hpc clean --older-than 7d
    """
    farm = resolved(config, site=site, run_root=run_root).farm
    removed = story.clean(farm, older_than=parse_age(older_than))
    line = f"{len(removed)} run directories removed{': ' + ', '.join(removed) if removed else ''}"
    answer(line, as_json=as_json, removed=list(removed))
