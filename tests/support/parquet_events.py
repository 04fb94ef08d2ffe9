"""Events as Parquet files, as another program writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, events, *, type_=None, group=10, column="event") -> Path:
    """Write (name, hits) pairs to a Parquet file with row groups of `group` rows."""
    names = [name for name, values in events for _ in values]
    table = np.concatenate([values for _, values in events]) if events else np.empty((0, 3))
    columns = {column: pa.array(names, type=type_), **{name: table[:, at] for at, name in enumerate(("r", "phi", "z"))}}
    pq.write_table(pa.table({"other": pa.nulls(len(names)), **columns}), path, row_group_size=group)
    return path
