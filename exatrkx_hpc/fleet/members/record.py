"""The records that servers write about themselves, one JSON file each in the run directory."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from exatrkx_hpc.launch.run_dir import RunDir


class ServerRecord(BaseModel):
    """The state of a server as its own script writes it.

    `instance` is the ID that its Triton reports. `starts` counts its starts. `updated` is in
    seconds since the epoch. The ports are those of this start: the node chooses free ones.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    server: str
    instance: str
    job: str
    node: str
    address: str
    http_port: int
    grpc_port: int
    metrics_port: int
    gpus: str
    pid: int
    starts: int
    state: Literal["starting", "draining", "gone"]
    note: str
    updated: int


#: Is called with a file or folder that could not be read, and why.
Unreadable = Callable[[Path, str], None]


def read_records(
    run_dir: RunDir, known: Iterable[ServerRecord] = (), *, unreadable: Unreadable = lambda path, why: None
) -> tuple[ServerRecord, ...]:
    """Return the records of a run directory, sorted by file name.

    `known` are the records of the last time. A file or folder that cannot be read now keeps its last known records: a
    file system that fails for a moment says nothing about the servers. A file that was removed has no record; a folder
    that was removed may be an evicted mount. Without a known record, what cannot be read is skipped.
    """
    last = {record.server: record for record in known}
    try:
        # Not glob(): it takes a folder that must not be read for an empty one.
        paths = sorted(path for path in run_dir.records.iterdir() if path.suffix == ".json" and path.name[0] != ".")
    except OSError as error:
        if last or not isinstance(error, FileNotFoundError):
            unreadable(run_dir.records, error.strerror or str(error))
        return tuple(last.values())
    records = []
    for path in paths:
        record, why = _read(path)
        if why:
            unreadable(path, why)
            record = last.get(path.stem)
        if record is not None:
            records.append(record)
    return tuple(records)


def _read(path: Path) -> tuple[ServerRecord | None, str]:
    """Return the record of a file, or why it cannot be read; neither if the file is gone."""
    try:
        return ServerRecord.model_validate_json(path.read_bytes()), ""
    except FileNotFoundError:
        return None, ""
    except OSError as error:
        return None, error.strerror or str(error)
    except ValidationError:
        # Servers write a record aside and rename it, so a reader never sees a part; a full disk may leave one.
        return None, "it is not a record"
