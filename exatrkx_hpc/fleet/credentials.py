"""The credentials for a farm's endpoint, as files: clients on this machine and on the nodes read them there."""

from __future__ import annotations

from pathlib import Path

from exatrkx_hpc.base.credentials import CredentialFiles
from exatrkx_hpc.fleet.endpoint import EndpointRecord, read_endpoint
from exatrkx_hpc.launch.run_dir import LATEST, FarmDir


def credential_files(farm: FarmDir, record: EndpointRecord) -> CredentialFiles:
    """Return the files with the credentials for the endpoint `record` of `farm`."""
    return CredentialFiles(
        token=farm.token if record.access == "token" else None,
        certificate=Path(record.certificate) if record.certificate else None,
    )


def files_for(farm: FarmDir, server: str) -> CredentialFiles:
    """Return the files for the address `server`, `host:port`: those of `farm` if it is the address of its endpoint.

    Any other address gets none: a token must not go to a stranger.
    """
    for job in (LATEST, *reversed(farm.job_ids())):
        record = read_endpoint(farm.job(job))
        if record is not None and server in (record.grpc, record.http):
            return credential_files(farm, record)
    return CredentialFiles()
