"""Results of many events as one Parquet table whose rows are a unit of the workload, such as tracks.

The column `event` names the event of each row. Each output is a column: a number or a list of fixed length for each
row, or a list of such entries if the output has several entries per row. The file's metadata lists the events with
their numbers of rows, because an event may have none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.workloads.base import Array, Tensor, Tensors, Workload

if TYPE_CHECKING:
    from pyarrow import Array as Column
    from pyarrow import DataType, Schema, Table

#: The key of the events in the file's metadata.
_EVENTS: Final = b"exatrkx_events"


def rows_table(workload: Workload, names: Sequence[str], results: Sequence[Tensors]) -> Table:
    """Return the results of these events as one table."""
    import pyarrow

    rows = [len(outputs[workload.lengths]) for outputs in results]
    lengths = np.concatenate([outputs[workload.lengths] for outputs in results])
    events = pyarrow.array(np.repeat(np.array(names, dtype=object), rows), pyarrow.string())
    columns = {
        spec.name: _column(workload, spec, np.concatenate([outputs[spec.name] for outputs in results]), lengths)
        for spec in workload.outputs
    }
    known = json.dumps(list(zip(names, rows, strict=True)))
    return pyarrow.table({"event": events, **columns}).replace_schema_metadata({_EVENTS: known})


def _column(workload: Workload, spec: Tensor, values: Array, lengths: Array) -> Column:
    import pyarrow

    entries = pyarrow.array(values.reshape(-1))
    if len(spec.shape) == 2:
        entries = pyarrow.FixedSizeListArray.from_arrays(entries, spec.shape[1])
    if spec.shape[0] == workload.rows:
        return entries
    ends = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pyarrow.ListArray.from_arrays(ends, entries)


def require_rows(workload: Workload, schema: Schema, path: Path) -> None:
    """Raise InputError unless the columns have the types of the workload."""
    for spec in workload.outputs:
        if (found := schema.field(spec.name).type) != (wanted := _type(workload, spec)):
            raise InputError(f"{path}: {spec.name} is {found}, not {wanted}; move the file elsewhere")


def _type(workload: Workload, spec: Tensor) -> DataType:
    import pyarrow

    kind = pyarrow.from_numpy_dtype(np.dtype(spec.dtype))
    if len(spec.shape) == 2:
        kind = pyarrow.list_(kind, spec.shape[1])
    return kind if spec.shape[0] == workload.rows else pyarrow.list_(kind)


def events_of_rows(schema: Schema, path: Path) -> dict[str, int]:
    """Return the events of a file and their numbers of rows; raise InputError if the file does not list them."""
    known = (schema.metadata or {}).get(_EVENTS)
    if known is None:
        raise InputError(f"{path} does not list its events; do them again")
    return {str(name): int(rows) for name, rows in json.loads(known)}


def read_rows(workload: Workload, table: Table, path: Path) -> Mapping[str, Tensors]:
    """Return the outputs of each event; raises InputError if the events do not have the rows of the table."""
    events = events_of_rows(table.schema, path)
    lengths = table.column(workload.lengths).to_numpy()
    if sum(events.values()) != len(lengths):
        raise InputError(f"{path} has {len(lengths)} rows for {sum(events.values())} of its events; do them again")
    if not events:
        return {}
    row_ends = np.cumsum(list(events.values()), dtype=np.int64)
    entry_ends = np.concatenate([[0], np.cumsum(lengths)])[row_ends]
    found: dict[str, dict[str, Array]] = {name: {} for name in events}
    for spec in workload.outputs:
        values = _values(workload, spec, table)
        ends = row_ends if spec.shape[0] == workload.rows else entry_ends
        for name, part in zip(events, np.split(values, ends[:-1]), strict=True):
            found[name][spec.name] = part
    return found


def _values(workload: Workload, spec: Tensor, table: Table) -> Array:
    """Return the entries of a column, one after the other."""
    column = table.column(spec.name)
    nested = (spec.shape[0] != workload.rows) + (len(spec.shape) == 2)
    chunks = [np.empty(0, dtype=spec.dtype)]
    for chunk in column.chunks:
        entries = chunk
        for _ in range(nested):
            entries = entries.flatten()
        chunks.append(entries.to_numpy(zero_copy_only=False))
    values: Array = np.concatenate(chunks)
    return values.reshape([axis if isinstance(axis, int) else -1 for axis in spec.shape])
