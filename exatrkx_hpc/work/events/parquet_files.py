"""Parquet files with many events: one column names the event of each row, the others are the workload's inputs.

The rows of an event are contiguous and in order. At most one row group is read at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from exatrkx_hpc.base.errors import InputError, MissingComponent
from exatrkx_hpc.base.parsing import parse_errors
from exatrkx_hpc.work.events.values import Stamp, UnreadableEvent
from exatrkx_hpc.work.workloads.base import Workload

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

EVENT: Final = "event"
"""The default name of the column that names the event."""

BATCH: Final = 1 << 16
"""Rows in memory at a time while a file is indexed."""


def require_pyarrow() -> None:
    """Raise MissingComponent, which names the package to install, unless pyarrow can be imported."""
    try:
        import pyarrow.compute
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise MissingComponent(f"Parquet needs pyarrow ({error}); pip install 'exatrkx-hpc[parquet]'") from error


def index(path: Path, workload: Workload, *, column: str = EVENT, file: str = "") -> Iterator[Stamp]:
    """Yield the events of a Parquet file in file order, with `BATCH` rows in memory at a time.

    `file` is the file's name in the stamps. An event whose rows are not contiguous comes more than once. Raises
    InputError for a damaged file, for missing columns or wrong column types, and for a name that cannot name a label
    file; also raises the errors of `opened`.
    """
    name, first, end = None, 0, 0
    with opened(path) as parquet:
        mtime_ns = path.stat().st_mtime_ns
        _require_columns(path, parquet, column, workload)
        for value, rows in _runs(path, parquet, column, longest=workload.longest_name):
            if value != name:
                if name is not None:
                    yield Stamp(name, end - first, mtime_ns, file, first)
                name, first = value, end
            end += rows
    if name is not None:
        yield Stamp(name, end - first, mtime_ns, file, first)


def _runs(path: Path, parquet: ParquetFile, column: str, *, longest: int) -> Iterator[tuple[str, int]]:
    """Yield the name and length of each run of equal values in the column; the end of a batch splits a run."""
    from pyarrow import compute, types

    for batch in parquet.iter_batches(batch_size=BATCH, columns=[column], use_threads=False):
        values = batch.column(0)
        if types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if values.null_count:
            raise InputError(f"{path}: rows without a value in '{column}'; give each row its event")
        runs = compute.run_end_encode(values)
        lengths = np.diff(runs.run_ends.to_numpy(), prepend=0).tolist()
        for value, length in zip(runs.values.to_pylist(), lengths, strict=True):
            yield _name(path, value, column, longest), length


def _name(path: Path, value: int | str, column: str, longest: int) -> str:
    name = str(value)
    fault = (
        "is empty"
        if not name
        else "begins with a dot"
        if name[0] == "."
        else "holds a / or a NUL"
        if "/" in name or "\0" in name
        else f"is longer than {longest} bytes"
        if len(os.fsencode(name)) > longest
        else None
    )
    if fault:
        raise InputError(f"{path}: the event {name[:40]!r} in '{column}' {fault}; label files are named after events")
    return name


def _require_columns(path: Path, parquet: ParquetFile, column: str, workload: Workload) -> None:
    from pyarrow import types

    schema = parquet.schema_arrow
    for spec in workload.inputs:
        if len(spec.columns) != (spec.shape[1] if len(spec.shape) == 2 else 1):
            raise InputError(
                f"{path}: workload {workload.name} does not name the columns of {spec.name}; give it columns, or give "
                "the events as .npz"
            )
    kinds = {name: np.dtype(spec.dtype).kind for spec in workload.inputs for name in spec.columns}
    for name in (column, *kinds):
        if len(schema.get_all_field_indices(name)) != 1:
            held = ", ".join(schema.names)
            other = (
                "; choose another with --event-column"
                if name == column
                else f"; workload {workload.name} has the columns {', '.join(kinds)}"
            )
            raise InputError(f"{path} has no column '{name}' (it has: {held[:200]}){other}")
        kind = schema.field(name).type
        if kinds.get(name) == "f":
            right = types.is_float32(kind) or types.is_float64(kind)
            wanted = "float or double"
        elif name in kinds:
            right, wanted = types.is_integer(kind), "an integer"
        else:
            plain = kind.value_type if types.is_dictionary(kind) else kind
            right = types.is_integer(plain) or types.is_string(plain) or types.is_large_string(plain)
            wanted = "an integer or a string"
        if not right:
            raise InputError(f"{path}: the column '{name}' is {kind}, not {wanted}; convert the column")


@contextlib.contextmanager
def opened(path: Path) -> Iterator[ParquetFile]:
    """Open a Parquet file inside the block; raises MissingComponent, and errors as for `parquet_errors`."""
    require_pyarrow()
    from pyarrow.parquet import ParquetFile

    with parquet_errors(path), path.open("rb") as file, ParquetFile(file, pre_buffer=False) as parquet:
        yield parquet


@contextlib.contextmanager
def parquet_errors(path: Path) -> Iterator[None]:
    """Turn errors inside the block into one line: UnreadableEvent for file access, InputError for invalid content."""
    with parse_errors(path, "Parquet"):
        try:
            yield
        except OSError as error:
            # For a damaged page, pyarrow also raises OSError, but without errno.
            if error.errno is None:
                raise
            raise UnreadableEvent(f"cannot read {path}: {error.strerror}") from error
