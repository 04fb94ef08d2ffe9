#!/usr/bin/env python3
"""A stand-in for the public service's metrics script; see README.md."""

import argparse
import csv
import sys
import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

MODELS = ["embed", "frnn", "filter", "applyfilter", "gnn", "wcc", "exatrkx"]
COUNT = "nv_inference_request_success"
TIMES = {
    "request_time": "nv_inference_request_duration_us",
    "execution_time": "nv_inference_compute_infer_duration_us",
}

parser = argparse.ArgumentParser()
parser.add_argument("--ip", default="localhost:8002")
parser.add_argument("--timeout", type=int, default=20)
parser.add_argument("--freq", type=float, default=0.000001)
parser.add_argument("--outname", default="metrics")
chosen = parser.parse_args()

seen: dict[str, dict[str, list[float]]] = {name: {model: [] for model in MODELS} for name in (COUNT, *TIMES.values())}
print("<pulling data>", flush=True)
end = time.time() + chosen.timeout
while time.time() < end:
    with urllib.request.urlopen(f"http://{chosen.ip}/metrics") as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name in seen else ():
            seen[family.name][sample.labels["model"]].append(sample.value)  # a KeyError for an eighth model
    time.sleep(chosen.freq)

for model in MODELS:
    print(f"    - {model} - {seen[COUNT][model][-1] - seen[COUNT][model][0]:.0f}")
totals = seen[COUNT]["exatrkx"]
for name, counter in TIMES.items():
    at = {model: dict(zip(seen[COUNT][model], seen[counter][model], strict=True)) for model in MODELS}
    rows, before = [], totals[0]
    for now in sorted(set(totals))[1:]:
        if all(number in at[model] for model in MODELS for number in (before, now)):
            events = now - before
            spent = {model: (at[model][now] - at[model][before]) / 1e6 / events for model in MODELS}
            spent["filter"] += spent.pop("applyfilter")
            rows.append([*(f"{value:.4f}" for value in spent.values()), int(events)])
        before = now
    if not rows:
        sys.exit("no event is found in common among all models")
    with open(f"{chosen.outname}_{name}.csv", "w", newline="") as file:
        csv.writer(file).writerows([[*(model for model in MODELS if model != "applyfilter"), "num_evts"], *rows])
