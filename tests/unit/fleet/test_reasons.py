"""The lines of a log that say why a server failed: those of a real Triton, and of the programs around it."""

from __future__ import annotations

from pathlib import Path

import pytest
from repositories import edit, small_repository
from triton_helper import DidNotStart, running_triton

from exatrkx_hpc.fleet.reasons import reasons, reasons_of, with_remedy


@pytest.mark.triton
def test_a_real_server_says_why(tmp_path: Path) -> None:
    small_repository(tmp_path / "models")
    edit(tmp_path / "models", "applyfilter", lambda config: _set(config, "cut", "a quarter"))
    with pytest.raises(DidNotStart), running_triton(tmp_path / "models", tmp_path):
        pass
    (log,) = tmp_path.glob("*.log")
    found = reasons(log.read_text())
    assert len(found) == 1 and found[0].startswith("failed to load 'applyfilter' version 1"), found
    assert "could not convert string to float: 'a quarter'" in found[0]


def _set(config, name: str, value: str) -> None:
    config.parameters[name].string_value = value


@pytest.mark.parametrize(
    "line",
    [
        "tritonserver: error while loading shared libraries: libcuda.so.1: cannot open shared object file",
        "/run/server.sh: line 12: tritonserver: command not found",
        "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=42.0. Some of the step tasks have been OOM Killed.",
        "slurmstepd: error: *** JOB 42 ON nid001 CANCELLED AT 2026-01-01T00:00:00 DUE TO TIME LIMIT ***",
        "srun: error: nid001: task 0: Exited with exit code 1",
        "Error: short-name resolution enforced but cannot prompt without a TTY",
        "FATAL:   could not open image model.sif: no such file or directory",
        "nginx: [emerg] bind() to 127.0.0.1:9191 failed (98: Address already in use)",
        "ModuleNotFoundError: No module named 'scipy'",
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "error: creating server: Internal - failed to load all models",
        "bash: /nowhere/tritonserver: No such file or directory",
        "E1126 11:18:47.928879 31048 model_lifecycle.cc:642] \"failed to load 'gnn' version 1: Internal: no\"",
    ],
)
def test_a_line_that_says_why_is_found(line: str) -> None:
    others = "\n".join(HARMLESS)
    (found,) = reasons(f"{others}\n{line}\n{others}\n{line}\n")
    assert found in line


HARMLESS = (
    'I1126 11:18:47.932275 31048 metrics.cc:770] "Collecting CPU metrics"',
    'W1126 11:17:49.888251 31048 pinned_memory_manager.cc:273] "Unable to allocate pinned system memory"',
    'E1126 11:17:49.888436 31048 server.cc:241] "CudaDriverHelper has not been initialized."',
    "I1126 11:18:50.005866 31048 model_lifecycle.cc:624] \"successfully unloaded 'applyfilter' version 1\"",
    "| gnn     | 1       | UNAVAILABLE: Internal: ValueError: gnn: error: bad",
    "+---------+---------+",
    "",
    "server 1 of 4 starts, errors are in the log",
)


def test_what_follows_from_another_failure_is_left_out() -> None:
    cause = "E1126 11:18:47.928879 31048 model_lifecycle.cc:642] \"failed to load 'gnn' version 1: Internal: no\""
    after = (
        "E1126 11:18:47.931810 31048 model_repository_manager.cc:703] \"Invalid argument: ensemble 'exatrkx' depends on"
    )
    assert reasons(f"{cause}\n{after} 'gnn'") == ("failed to load 'gnn' version 1: Internal: no",)
    assert len(reasons(f"{after} 'gnn'")) == 1


def test_the_same_reason_of_many_servers_comes_once() -> None:
    texts = {f"n{number}": "error: no space\n" for number in range(3)} | {"n3": "error: other\n"}
    assert list(reasons_of(texts)) == ["n0 and 2 more: error: no space", "n3: error: other"]
    many = {"n0": "".join(f"error: {number}\n" for number in range(12))}
    assert list(reasons_of(many))[-1] == "and 2 more" and len(list(reasons_of(many))) == 11


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (
            "failed to load 'gnn' version 1: Invalid argument: unable to find backend library for backend 'x'",
            "image with",
        ),
        ("failed to load 'gnn' version 1: Internal: No module named 'torch'", "'exatrkx-hpc models check'"),
        ("failed to load 'gnn' version 1: Internal: CUDA error: out of memory", "lower server.instances"),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0", "raise job.memory"),
        ("Error: docker.io/x:1: manifest unknown", "'exatrkx-hpc setup'"),
        ("no three free ports from 8000 up", "server.base_port"),
        ("server.sh: line 9: tritonserver: command not found", "server.triton"),
        ("tritonserver: unrecognized option '--modle-repository'", "server.extra_arguments"),
        ("something else", ""),
    ],
)
def test_a_known_end_has_a_remedy(error, remedy):
    note = f"ended with status 1: {error}; starts again in 4 s"
    said = with_remedy(note)
    assert said.startswith(note) and remedy in said
    assert (said != note) == bool(remedy)
