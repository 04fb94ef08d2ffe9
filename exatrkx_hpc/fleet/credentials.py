"""How a client reaches an endpoint of a farm: whose answers it accepts, and the files with the credentials."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exatrkx_hpc.base.credentials import NO_FILES, CredentialFiles
from exatrkx_hpc.fleet.endpoint import EndpointRecord, health_of, read_endpoint
from exatrkx_hpc.launch.run_dir import FarmDir


@dataclass(frozen=True, kw_only=True)
class EndpointAccess:
    """The way to an endpoint: its address, `host:port`, its identity, its job, and the files with the credentials.

    Clients on this machine and on the nodes read the files. Identity and job are empty for an address that is not an
    endpoint of the farm; then every answer is accepted.
    """

    address: str
    identity: str = ""
    job: str = ""
    files: CredentialFiles = NO_FILES


def credential_files(farm: FarmDir, record: EndpointRecord) -> CredentialFiles:
    """Return the files with the credentials for the endpoint `record` of `farm`."""
    return CredentialFiles(
        token=farm.token if record.access == "token" else None,
        certificate=Path(record.certificate) if record.certificate else None,
    )


def endpoint_at(farm: FarmDir, server: str) -> EndpointRecord | None:
    """Return the endpoint of `farm` at the address `server`, `host:port`; None for any other address.

    A record alone is not enough: a token must not go to a stranger who took the port after an endpoint had ended.
    """
    records = (read_endpoint(farm.job(job)) for job in reversed(farm.job_ids()))
    there = (record for record in records if record is not None and server in (record.grpc, record.http))
    return next((record for record in there if health_of(record).usable), None)
