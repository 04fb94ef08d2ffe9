"""`models test` asks any model of a real Triton: CSV in, CSV out, and what is wrong when it cannot be."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc
from repositories import small_repository
from triton_helper import RunningTriton, running_triton

from exatrkx_hpc.base.errors import EndpointError, InputError, ModelError, OutputError
from exatrkx_hpc.base.ports import free_port
from exatrkx_hpc.base.process import Completed
from exatrkx_hpc.work.inference.probe import ModelReply, Sent, ask_model, save_outputs

#: A model of no pipeline of ours: many types, an input that may be left out, and tensors back as they came.
ECHO = """
name: "echo" backend: "python" max_batch_size: 0
input [
  { name: "WORDS" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "SMALL" data_type: TYPE_UINT8 dims: [ 2, -1 ] },
  { name: "EXTRA" data_type: TYPE_FP64 dims: [ -1, 2 ] optional: true }
]
output [
  { name: "WORDS_OUT" data_type: TYPE_STRING dims: [ -1 ] },
  { name: "layer/out:0" data_type: TYPE_UINT8 dims: [ 2, -1 ] },
  { name: "GIVEN" data_type: TYPE_BOOL dims: [ 1 ] }
]
instance_group [ { count: 1 kind: KIND_CPU } ]
"""
ECHO_CODE = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            get = lambda name: pb_utils.get_input_tensor_by_name(request, name)
            if get("SMALL").as_numpy().max() == 13:
                answers.append(pb_utils.InferenceResponse(error=pb_utils.TritonError("SMALL holds 13")))
                continue
            answers.append(pb_utils.InferenceResponse(output_tensors=[
                pb_utils.Tensor("WORDS_OUT", get("WORDS").as_numpy()),
                pb_utils.Tensor("layer/out:0", get("SMALL").as_numpy()),
                pb_utils.Tensor("GIVEN", np.array([get("EXTRA") is not None])),
            ]))
        return answers
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, triton: None) -> Iterator[RunningTriton]:
    folder = tmp_path_factory.mktemp("ask")
    repository = folder / "models"
    repository.mkdir()
    small_repository(repository)
    (repository / "echo" / "1").mkdir(parents=True)
    (repository / "echo" / "config.pbtxt").write_text(ECHO)
    (repository / "echo" / "1" / "model.py").write_text(ECHO_CODE)
    with running_triton(repository, folder) as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "place.csv").write_text("".join(f"{n * 0.1},0,0,0,0,0,0,0\n" for n in range(4)))
    (tmp_path / "words.csv").write_text('track\n"a, b"\n')
    (tmp_path / "small.csv").write_text("1,2,3\n4,5,6\n")
    (tmp_path / "extra.csv").write_text("0.5,1\n")
    return tmp_path


def test_a_stage_of_the_pipeline(server: RunningTriton, files: Path) -> None:
    asked = ask_model(server.grpc, "frnn", [str(files / "place.csv")])
    assert asked.values["OUTPUT0"].dtype == np.int64 and asked.values["OUTPUT0"].shape == (2, 6)
    (given,), (received,) = asked.inputs, asked.outputs
    assert (given.name, given.datatype, given.declared, given.shape) == ("INPUT0", "FP32", (-1, 8), (4, 8))
    assert (received.declared, received.shape, asked.version) == ((2, -1), (2, 6), "1")
    saved = save_outputs(asked, files / "edges.csv")
    assert saved.outputs[0].file == str(files / "edges.csv")
    np.testing.assert_array_equal(np.loadtxt(files / "edges.csv", delimiter=","), asked.values["OUTPUT0"])


def test_an_empty_file_is_an_empty_tensor(server: RunningTriton, files: Path) -> None:
    (files / "none.csv").write_text("")
    asked = ask_model(server.grpc, "frnn", [str(files / "none.csv")])
    assert asked.inputs[0].shape == (0, 8) and asked.values["OUTPUT0"].shape == (2, 0)


def test_a_model_of_many_types_whose_last_input_may_be_left_out(server: RunningTriton, files: Path) -> None:
    both = [str(files / "words.csv"), str(files / "small.csv")]
    asked = ask_model(server.grpc, "echo", both)
    assert asked.values["WORDS_OUT"].tolist() == [b"track", b"a, b"]
    assert asked.values["GIVEN"].tolist() == [False]
    named = [f"EXTRA={files / 'extra.csv'}", f"SMALL={both[1]}", f"WORDS={both[0]}"]
    asked = ask_model(server.grpc, "echo", named)
    assert asked.values["GIVEN"].tolist() == [True]
    saved = save_outputs(asked, files / "out")
    assert sorted(path.name for path in (files / "out").iterdir()) == [
        "echo.GIVEN.csv",
        "echo.WORDS_OUT.csv",
        "echo.layer_out_0.csv",
    ]
    assert (files / "out" / "echo.WORDS_OUT.csv").read_text() == (files / "words.csv").read_text()
    assert (files / "out" / "echo.layer_out_0.csv").read_text() == (files / "small.csv").read_text()
    assert [tensor.file for tensor in saved.outputs] == [
        str(files / "out" / f"echo.{name}.csv") for name in ("WORDS_OUT", "layer_out_0", "GIVEN")
    ]
    with pytest.raises(OutputError, match=r"has 3 outputs, but .* is a single file"):
        save_outputs(asked, files / "all.csv")


def answer(model: str, *names: str) -> ModelReply:
    outputs = tuple(Sent(name=name, datatype="INT64", declared=(-1,), shape=(1,), file=None) for name in names)
    values = {name: np.array([number], dtype=np.int64) for number, name in enumerate(names)}
    return ModelReply(server="", model=model, version="1", seconds=0.0, inputs=(), outputs=outputs, values=values)


def test_a_second_model_leaves_the_files_of_the_first(tmp_path: Path) -> None:
    for model in ("filter", "gnn", "a/b"):
        save_outputs(answer(model, "OUTPUT__0"), tmp_path / "out")
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert sorted(names) == ["a_b.OUTPUT__0.csv", "filter.OUTPUT__0.csv", "gnn.OUTPUT__0.csv"]


def test_each_tensor_has_a_file_of_its_own(tmp_path: Path) -> None:
    save_outputs(answer("m", "layer/out", "layer.out", "LAYER_OUT", "x"), tmp_path / "out")
    found = {path.name: path.read_text() for path in (tmp_path / "out").iterdir()}
    assert found == {
        "m.layer_out.csv": "0\n",
        "m.layer_out-2.csv": "1\n",
        "m.LAYER_OUT-3.csv": "2\n",
        "m.x.csv": "3\n",
    }


@pytest.mark.parametrize("out", ["out", "out/m.b.csv"])
def test_no_file_is_replaced_and_no_half_is_left(tmp_path: Path, out: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.b.csv").write_text("mine")
    with pytest.raises(OutputError, match=r"out/m\.b\.csv exists; remove it, or choose another --out"):
        save_outputs(answer("m", "b") if out.endswith("csv") else answer("m", "a", "b"), tmp_path / out)
    assert {path.name: path.read_text() for path in (tmp_path / "out").iterdir()} == {"m.b.csv": "mine"}


def test_what_does_not_fit_names_what_was_expected(server: RunningTriton, files: Path) -> None:
    words, small, place = (str(files / f"{name}.csv") for name in ("words", "small", "place"))
    with pytest.raises(InputError, match=r"echo also needs a file for SMALL; its inputs are WORDS BYTES \[-1\], SMALL"):
        ask_model(server.grpc, "echo", [words])
    with pytest.raises(InputError, match=r"frnn takes 1 input\(s\), not 2: INPUT0 FP32 \[-1, 8\]"):
        ask_model(server.grpc, "frnn", [place, place])
    with pytest.raises(InputError, match="WORDS of echo is given twice"):
        ask_model(server.grpc, "echo", [words, f"WORDS={words}"])
    with pytest.raises(InputError, match="3 columns; the model expects 8"):
        ask_model(server.grpc, "frnn", [small])
    (files / "two.csv").write_text("track,1\n2,3\n")
    with pytest.raises(InputError, match="'track' is not a valid UINT8"):
        ask_model(server.grpc, "echo", [words, str(files / "two.csv")])


def test_a_model_that_is_not_there_or_fails(server: RunningTriton, files: Path) -> None:
    words, place = str(files / "words.csv"), str(files / "place.csv")
    with pytest.raises(ModelError, match=r"does not serve gnn .*; it serves: applyfilter, echo, frnn, pair"):
        ask_model(server.grpc, "gnn", [place])
    with pytest.raises(ModelError, match=r"does not serve frnn .*version 7"):
        ask_model(server.grpc, "frnn", [place], version="7")
    (files / "bad.csv").write_text("13,1\n0,0\n")
    with pytest.raises(ModelError, match="SMALL holds 13"):
        ask_model(server.grpc, "echo", [words, str(files / "bad.csv")])
    (files / "nan.csv").write_text("nan,0,0,0,0,0,0,0\n")
    with pytest.raises(ModelError, match="frnn: INPUT0 has a NaN or an infinity in row 0"):
        ask_model(server.grpc, "frnn", [str(files / "nan.csv")])


def test_a_server_that_is_not_there(files: Path) -> None:
    with pytest.raises(EndpointError, match="nothing answers at"):
        ask_model(f"127.0.0.1:{free_port('127.0.0.1')}", "frnn", [str(files / "place.csv")])


def call(folder: Path, *words: object) -> Completed:
    return exatrkx_hpc("models", "test", *words, cwd=folder)


def test_the_command(server: RunningTriton, files: Path) -> None:
    done = call(files, "frnn", "place.csv", "--server", server.grpc, "--out", "edges.csv")
    assert done.returncode == 0, done.stderr
    for part in ("frnn version 1", "INPUT0", "[4, 8]", "OUTPUT0", "INT64", "[2, 6]", "edges.csv"):
        assert part in done.stdout
    assert (files / "edges.csv").read_text().count("\n") == 2
    facts = json.loads(call(files, "frnn", "place.csv", "--server", server.grpc, "--json").stdout)
    assert facts["outputs"] == [
        {"name": "OUTPUT0", "datatype": "INT64", "declared": [2, -1], "shape": [2, 6], "file": None}
    ]
    assert "no monitor is running" in complaint(call(files, "frnn", "place.csv"), 5)
