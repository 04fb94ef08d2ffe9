"""perf_analyzer: the words that start it, what it writes, where the latency goes, and what is said without it."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from exatrkx_hpc.base.errors import EndpointError, MissingComponent
from exatrkx_hpc.measure.metrics import ModelTimes
from exatrkx_hpc.measure.perf_analyzer import (
    Load,
    PerfAnalyzer,
    arguments,
    find,
    latency_split,
    measure,
    parse_csv,
    version_of,
    warm_up,
)
from exatrkx_hpc.measure.perf_analyzer_install import install

#: Written by perf_analyzer 2.60 at one server with the shipped ensemble.
CSV = """\
Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,Server Compute \
Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency,Avg latency,request/response,\
response wait
2,20.1273,7,26159,2,186,69800,2468,3,63091,246942,313765,345451,98630,10,98597
"""
VERSION = "Perf Analyzer Version 0.0.0 (commit 3a49a23)"


def program(folder: Path, text: str, name: str = "perf_analyzer") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def load(folder: Path, concurrency: int = 4) -> Load:
    data = folder / "events.json"
    return Load(server="127.0.0.1:1", model="exatrkx", data=data, concurrency=concurrency, window=3.0)


def fake(folder: Path, text: str) -> PerfAnalyzer:
    return PerfAnalyzer(command=(str(program(folder, text)),), version="2.60.0")


def times(model: str, successes: int, *, queue: float = 0.0, infer: float = 0.0) -> ModelTimes:
    return ModelTimes(
        model=model,
        successes=successes,
        failures=0,
        inferences=successes,
        executions=successes,
        request_ms=queue + infer + 0.3,
        queue_ms=queue,
        input_ms=0.1,
        infer_ms=infer,
        output_ms=0.2,
    )


def test_the_words_ask_for_one_concurrency_in_three_windows(tmp_path: Path):
    words = arguments(load(tmp_path), tmp_path / "out.csv")
    pairs = dict(zip(words[::2], words[1::2], strict=False))
    assert pairs["-u"] == "127.0.0.1:1"
    assert pairs["--concurrency-range"] == "4:4"
    assert (pairs["--measurement-interval"], pairs["--max-trials"]) == ("1000", "3")
    assert words[-3:] == ["--verbose-csv", "-f", str(tmp_path / "out.csv")]


@pytest.mark.parametrize(("calls", "words"), [("default", []), ("sync", ["--sync"]), ("async", ["--async"])])
def test_it_calls_as_it_is_told(tmp_path: Path, calls: str, words: list[str]):
    what = dataclasses.replace(load(tmp_path), calls=calls)
    assert [word for word in arguments(what, tmp_path / "out.csv") if "sync" in word] == words


def test_the_figures_are_read_in_milliseconds():
    figures = parse_csv(CSV, where="x.csv")
    assert figures.per_second == 20.1273
    assert (figures.mean_ms, figures.p50_ms, figures.p95_ms, figures.p99_ms) == (98.63, 63.091, 313.765, 345.451)


OTHER_FORMS = {
    "empty": "",
    "one row": CSV.splitlines()[0],
    "two rows": CSV + CSV.splitlines()[1],
    "a cell too few": CSV.replace(",10,98597", ",10"),
    "a cell too many": CSV.replace(",98597", ",98597,1"),
    "no such column": CSV.replace("p95 latency", "p94 latency"),
    "a column twice": CSV.replace("p90 latency", "p95 latency"),
    "NUL": CSV.replace("20.1273", "\x00"),
}


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_another_form_is_refused(form: str):
    with pytest.raises(EndpointError, match=r"x.csv is not what perf_analyzer 2.60 writes") as error:
        parse_csv(OTHER_FORMS[form], where="x.csv")
    assert "\n" not in str(error.value)


NO_FIGURES = [
    "",
    " ",
    "x",
    "nan",
    "NaN",
    "inf",
    "-inf",
    "1e400",
    "-20.1",
    "0",
    "20.1%",
    "20,1",
    "2_0",
    "0x10",
    "２０",
    "+5",
]


@pytest.mark.parametrize("text", NO_FIGURES)
@pytest.mark.parametrize("figure", ["20.1273", "98630", "345451"])
def test_what_is_no_figure_is_refused(text: str, figure: str):
    quoted = f'"{text}"' if "," in text else text
    with pytest.raises(EndpointError, match=r"x.csv is not what perf_analyzer 2.60 writes: [A-Z]?\w.* is '.*', not a"):
        parse_csv(CSV.replace(figure, quoted), where="x.csv")


def test_a_figure_may_be_a_round_one_or_a_small_one():
    assert parse_csv(CSV.replace("20.1273", "20"), where="x.csv").per_second == 20.0
    assert parse_csv(CSV.replace("20.1273", "2.5e-05"), where="x.csv").per_second == 2.5e-05


def test_the_parts_of_an_ensemble_are_those_of_its_members():
    counted = [times("exatrkx", 10), times("embed", 10, queue=1, infer=10), times("gnn", 10, queue=2, infer=20)]
    split = latency_split("exatrkx", 40.0, [*counted, times("idle", 0, queue=99)])
    assert (split.queue_ms, split.compute_ms) == (3.0, 30.0)
    assert (split.input_ms, split.output_ms) == (pytest.approx(0.2), pytest.approx(0.4))
    assert split.network_ms == pytest.approx(40 - 33.6)


def test_the_parts_of_a_single_model_are_its_own():
    split = latency_split("fused", 12.0, [times("fused", 10, queue=1, infer=10)])
    assert (split.queue_ms, split.compute_ms) == (1.0, 10.0)
    assert split.network_ms == pytest.approx(0.7)


def test_the_parts_never_add_up_to_more_than_the_latency():
    split = latency_split("fused", 5.65, [times("fused", 10, queue=1, infer=10)])
    assert split.compute_ms == pytest.approx(5.0)
    assert sum(vars(split).values()) == pytest.approx(5.65)
    assert vars(latency_split("fused", 5.0, [])) == {
        "queue_ms": 0.0, "input_ms": 0.0, "compute_ms": 0.0, "output_ms": 0.0, "network_ms": 5.0
    }  # fmt: skip


def test_a_failure_says_the_last_error_in_one_line(tmp_path: Path):
    analyzer = fake(tmp_path, "echo 'Batch size: 1'; echo 'error: failed to get model metadata: no such' >&2; exit 99")
    with pytest.raises(EndpointError, match=r"at concurrency 4 \(exit 99\): error: failed to get .* no such; check"):
        measure(analyzer, load(tmp_path), tmp_path / "out.csv")


def test_an_exit_status_of_0_without_figures_is_a_failure(tmp_path: Path):
    (tmp_path / "out.csv").write_text(CSV)  # of an earlier repetition
    with pytest.raises(EndpointError, match=r"measured nothing .*\(exit 0\)"):
        measure(fake(tmp_path, "exit 0"), load(tmp_path), tmp_path / "out.csv")


@pytest.mark.slow
def test_a_warm_up_is_tried_again_and_leaves_nothing(tmp_path: Path):
    text = f'[ -e "{tmp_path}/once" ] || {{ touch "{tmp_path}/once"; exit 99; }}\n'
    text += f'for word; do out=$word; done\ncat >"$out" <<"END"\n{CSV}END'
    figures = warm_up(fake(tmp_path, text), load(tmp_path), tmp_path / "out.csv")
    assert figures.per_second == 20.1273
    assert not (tmp_path / "out.csv").exists()


@pytest.fixture
def empty_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_it_is_found_by_its_command_then_on_path_then_where_it_was_installed(tmp_path: Path, empty_path: Path):
    place = tmp_path / "place"
    with pytest.raises(MissingComponent, match=r"install it with 'exatrkx-hpc setup --bench'"):
        find(place)
    installed = program(place / "bin", f"echo '{VERSION}'")
    assert find(place) == PerfAnalyzer(command=(str(installed),), version="2.60.0")
    on_path = program(empty_path, "echo 'Perf Analyzer Version 2.70.1 (commit abc)'")
    assert find(place) == PerfAnalyzer(command=(str(on_path),), version="2.70.1 (abc)")
    wrapper = program(tmp_path, f"shift; echo '{VERSION}'", "in-a-container")
    assert find(place, [str(wrapper), "image"]).command == (str(wrapper), "image")


def test_one_that_does_not_run_is_refused(tmp_path: Path):
    broken = program(tmp_path, "echo 'version `GLIBC_2.38 not found' >&2; exit 1")
    with pytest.raises(MissingComponent, match=r"does not run here .*GLIBC_2.38 not found.*setup --bench"):
        version_of([str(broken)])


@pytest.mark.slow
def test_what_cannot_be_installed_names_the_other_ways(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_CONFIG_FILE", os.devnull)):
        monkeypatch.setenv(name, value)
    lines: list[str] = []
    with pytest.raises(
        MissingComponent, match=r"cannot be installed here: .*bench.perf_analyzer in farm.toml"
    ) as error:
        install(tmp_path / "place", lines.append)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "place" / "bin").exists()
    assert not list((tmp_path / "place").glob(".download*"))


def test_what_is_installed_and_runs_is_left_as_it_is(tmp_path: Path):
    installed = program(tmp_path / "bin", f"echo '{VERSION}'")
    lines: list[str] = []
    assert install(tmp_path, lines.append) == PerfAnalyzer(command=(str(installed),), version="2.60.0")
    assert lines == []
