#!/usr/bin/env python3
"""A stand-in for the public service's client; see README.md."""

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput

parser = argparse.ArgumentParser()
parser.add_argument("-u", default="localhost:8001", help="url of server")
parser.add_argument("-m", default="exatrkx", help="triton model name")
parser.add_argument("-d", type=Path, required=True, help="input data/directory")
parser.add_argument("-t", type=int, default=1, help="number of threads")
parser.add_argument("-i", type=int, default=0, help="ignore first n events in the summary of times")
chosen = parser.parse_args()


def tracks_of(path: Path) -> int:
    values = [float(cell) for line in path.read_text().splitlines() for cell in line.split(",")]
    hits = np.array(values, dtype=np.float32).reshape(-1, 3)
    features = InferInput("FEATURES", list(hits.shape), "FP32")
    features.set_data_from_numpy(hits)
    answer = client.infer(chosen.m, [features], outputs=[InferRequestedOutput("LABELS")])
    labels = answer.as_numpy("LABELS")
    assert labels is not None and labels.dtype == np.int64
    return len({int(label) for label in labels[: len(hits)]})


files = sorted(path for path in chosen.d.iterdir() if path.is_file()) if chosen.d.is_dir() else [chosen.d]
with InferenceServerClient(chosen.u) as client, ThreadPoolExecutor(chosen.t) as pool:
    found = list(pool.map(tracks_of, files))
print(f"Total {sum(found)} tracks in {len(found)} events.")
