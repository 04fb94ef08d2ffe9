"""`workload list` and `workload check`."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated

import typer
from rich.table import Table

from exatrkx_hpc import farm as story
from exatrkx_hpc.base.credentials import CredentialFiles
from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.cli.options import Certificate, ConfigFile, Json, TokenFile, console, resolved
from exatrkx_hpc.fleet.credentials import EndpointAccess
from exatrkx_hpc.work.inference.check_workload import check_workload
from exatrkx_hpc.work.workloads.base import Workload
from exatrkx_hpc.work.workloads.table import names, workload

workload_app = typer.Typer(help="List and check workloads: kinds of events, with their inputs and outputs.")

Folder = Annotated[
    str | None, typer.Option("--workloads", help="Folder of your own workloads (default: clients.workloads).")
]


@workload_app.command("list")
def list_workloads(workloads: Folder = None, as_json: Json = False, config: ConfigFile = None) -> None:
    """List the workloads with their inputs and outputs."""
    folder = resolved(config, clients__workloads=workloads).farm.clients.workloads
    found = [workload(name, folder) for name in names(folder)]
    if as_json:
        typer.echo(json.dumps([_facts(one) for one in found], indent=2))
        return
    table = Table("workload", "model", "inputs", "outputs", "modes")
    for one in found:
        inputs, outputs = (
            "\n".join(f"{spec.name}: {spec.shown}" for spec in specs) for specs in (one.inputs, one.outputs)
        )
        table.add_row(one.name, one.model, inputs, outputs, "\n".join(one.mode_names))
    console().print(table)


@workload_app.command(epilog="Example: exatrkx-hpc workload check echo --server 127.0.0.1:9191")
def check(
    name: Annotated[str, typer.Argument(help="Workload name.")],
    server: Annotated[str, typer.Option("--server", "-s", help="Endpoint, HOST:PORT, to send the sample to.")] = "",
    token_file: TokenFile = None,
    certificate: Certificate = None,
    workloads: Folder = None,
    as_json: Json = False,
    config: ConfigFile = None,
) -> None:
    """Check a workload: names, types, sample and results on disk.

    With --server, the sample is also sent to the endpoint.
    """
    farm = resolved(config, clients__workloads=workloads).farm
    folder = farm.clients.workloads
    access = EndpointAccess(address="", files=CredentialFiles(token=token_file, certificate=certificate))
    if server:
        access = story.endpoint_access(farm, server, given=access.files)
    checks = check_workload(
        workload(name, folder), server=server, identity=access.identity, credentials=access.files.read()
    )
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(one) for one in checks], indent=2))
    else:
        for one in checks:
            typer.echo(f"{'ERROR' if one.fault else 'ok':<6}{one.what}{f': {one.fault}' if one.fault else ''}")
    if faults := [one.fault for one in checks if one.fault]:
        raise ModelError(f"workload {name} has {len(faults)} error(s): {faults[0]}")


def _facts(one: Workload) -> dict[str, object]:
    return {
        "name": one.name,
        "item": one.item,
        "model": one.model,
        "inputs": {spec.name: spec.shown for spec in one.inputs},
        "outputs": {spec.name: spec.shown for spec in one.outputs},
        "modes": list(one.mode_names),
    }
