#!/usr/bin/env python3
"""A stand-in for the public service's converter; see README.md."""

import argparse
import csv
import json
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--input", type=Path, required=True)
source = parser.parse_args().input

data = []
for path in sorted(source.glob("*.csv")) if source.is_dir() else [source]:
    with path.open() as file:
        rows = [[float(cell) for cell in row] for row in csv.reader(file)]
    content = [value for row in rows for value in row]
    data.append({"FEATURES": {"content": content, "shape": [len(rows), 3]}})
(source.parent / f"{source.stem}.json").write_text(json.dumps({"data": data}, indent=4))
