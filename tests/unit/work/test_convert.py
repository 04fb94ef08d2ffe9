"""`events convert`: to perf_analyzer's JSON and back, nothing lost, one event in memory at a time."""

from __future__ import annotations

import json
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from command import complaint, exatrkx_hpc

from exatrkx_hpc.base.errors import ConfigError, InputError, OutputError
from exatrkx_hpc.work.events.convert import direction, events_to_events, events_to_json, json_to_events
from exatrkx_hpc.work.events.hits import read_hits
from exatrkx_hpc.work.events.json_stream import array_elements
from exatrkx_hpc.work.events.source import Reader, find_events, format_of


def hits(seed: int, n: int) -> np.ndarray:
    """Numbers of all sizes, each bit of which must survive."""
    rng = np.random.default_rng(seed)
    bits = rng.integers(0, 2**32, size=4 * 3 * n, dtype=np.uint32).view(np.float32)
    return bits[np.isfinite(bits)][: 3 * n].reshape(n, 3)


@pytest.fixture
def events(tmp_path: Path) -> Path:
    folder = tmp_path / "events"
    (folder / "truth").mkdir(parents=True)
    for name, n in (("evt_2", 300), ("evt_10", 1), ("evt_11", 0)):
        np.savetxt(folder / f"{name}.csv", hits(n, n), fmt="%.9g", delimiter=",")
    (folder / "evt_11.csv").write_text("\n")
    return folder


@pytest.mark.parametrize("as_base64", [False, True], ids=["numbers", "base64"])
def test_there_and_back_gives_every_bit_again(events: Path, tmp_path: Path, as_base64: bool) -> None:
    there, back = tmp_path / "deep" / "x.json", tmp_path / "back"
    assert events_to_json(events, there, tensor="FEATURES", as_base64=as_base64) == 3
    names = [event.name for event in find_events(events)]
    assert json_to_events(there, back, tensor="FEATURES", names=names) == 3
    assert [event.name for event in find_events(back)] == ["evt_2", "evt_10", "evt_11"]
    for event in find_events(events):
        assert read_hits(back / event.path.name).tobytes() == read_hits(event.path).tobytes()
    assert read_hits(back / "evt_2.csv").tobytes() == hits(300, 300).tobytes()


def test_the_json_is_that_of_perf_analyzer(events: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.json"
    events_to_json(events, out, tensor="INPUT__0")
    data = json.loads(out.read_text())
    assert list(data) == ["data"], "some modes of perf_analyzer refuse any other member"
    assert [list(step) for step in data["data"]] == [["INPUT__0"]] * 3
    tensors = [step["INPUT__0"] for step in data["data"]]
    assert [tensor["shape"] for tensor in tensors] == [[300, 3], [1, 3], [0, 3]]
    assert [len(tensor["content"]) for tensor in tensors] == [900, 3, 0]
    assert out.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "text",
    [
        '{"data":[{"X":[1,2,3]},{"X":[[4,5,6],[7,8,9]]}]}',
        '\ufeff {\n"data" : [ [ {"X": {"content":[1,2,3]}} ] ,\n'
        ' {"X":{"content":[4,5,6,7,8,9],"shape":[2,3]},"model":"m"}] }',
        '{"data":[{"X":{"content":{"b64":"AACAPwAAAEAAAEBA"}}},{"X":[4,5,6,7,8,9]}], "validation_data": []}',
    ],
)
def test_other_ways_to_write_it_are_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert json_to_events(tmp_path / "x.json", tmp_path / "out", tensor="X") == 2
    assert read_hits(tmp_path / "out" / "evt_000000.csv").tolist() == [[1, 2, 3]]
    assert read_hits(tmp_path / "out" / "evt_000001.csv").tolist() == [[4, 5, 6], [7, 8, 9]]


WRONG = {
    "": "does not begin with",
    '{"x":[]}': 'does not begin with {"data": [',
    '{"data":{"X":[1,2,3]}}': "does not begin with",
    '{"data":[]}': "contains no events",
    '{"data":[': "event 0 is not an object; the file is truncated",
    '{"data":[{"X":[1,2,3]},]}': "event 1 is not an object",
    '{"data":[{"X":[1,2,3]} {"X":[1,2,3]}]}': "neither a comma nor ] after event 0",
    '{"data":[{"X":[1,2,3]}]': "without a }: the file is truncated",
    '{"data":[{"X":[1,2,3': "ends within event 0: the file is truncated",
    '{"data":[{"X":"\\"': "ends within event 0",
    '{"data":[{"X":[1,2 3]}]}': "event 0 is not valid JSON: Expecting ',' delimiter",
    '{"data":[{"X":[1,2,3}]}': "event 0 is not valid JSON",
    '{"data":[7]}': "event 0 is not an object",
    '{"data":[{"Y":[1,2,3]}]}': "event 0 has no tensor X (it has: Y)",
    '{"data":[[7]]}': "event 0 has no tensor X (it has: none)",
    '{"data":[{"X":[1,2,3]},{"X":[1,2,"z"]}]}': "event 1: X: 'z' in content, in hit 0, is not a number",
    '{"data":[{"X":[1,2,true]}]}': "'True' in content, in hit 0, is not a number",
    '{"data":[{"X":[1,2,3,1,2,null]}]}': "'None' in content, in hit 1, is not a number",
    '{"data":[{"X":[[1,2,3],[1,2,"3"]]}]}': "'3' in content, in hit 1, is not a number",
    '{"data":[{"X":[1,2,3,{},2,3]}]}': "'{}' in content, in hit 1, is not a number",
    '{"data":[{"X":[1,2,3,1,2,NaN]}]}': "X has a NaN or an infinity in hit 1",
    '{"data":[{"X":[1,2,-Infinity]}]}': "X has a NaN or an infinity in hit 0",
    '{"data":[{"X":[1,2,1e39]}]}': "X has a NaN or an infinity in hit 0",
    '{"data":[{"X":[1,2,1e400]}]}': "X has a NaN or an infinity in hit 0",
    '{"data":[{"X":[[1,0.01,0.5,-0.2],[2,0.03,0.4,-0.6],[3,0.1,0.1,0.1]]}]}': "X: row 0 has 4 values, not 3 (is this",
    '{"data":[{"X":[[1,0.01,0.5,-0.2],[2,0.03,0.4,-0.6]]}]}': "X: row 0 has 4 values, not 3; expected [N, 3]",
    '{"data":[{"X":[[1,2,3,4],[5,6,7,8],[9,10,11,12]]}]}': "row 0 has 4 values, not 3 (is this [3, N], with all r",
    '{"data":[{"X":[[1],[2],[3]]}]}': "row 0 has 1 values, not 3 (is this [3, N]",
    '{"data":[{"X":[[0.1,0.2],[0.3,0.4,0.5,0.6]]}]}': "X: row 0 has 2 values, not 3; expected [N, 3]",
    '{"data":[{"X":[[1,2,3]]},{"X":[[1,2,3],[4,5]]}]}': "event 1: X: row 1 has 2 values, not 3",
    '{"data":[{"X":[[1,2,3],[]]}]}': "row 1 has 0 values",
    '{"data":[{"X":[[]]}]}': "row 0 has 0 values",
    '{"data":[{"X":[[[1,2,3]]]}]}': "row 0 holds lists",
    '{"data":[{"X":[[1,2,[3]]]}]}': "row 0 holds lists",
    '{"data":[{"X":[[1,2,3],4,5,6]}]}': "row 1 is '4', among rows that are lists",
    '{"data":[{"X":[1,2,3,[4,5,6]]}]}': "row 0 is '1', among rows that are lists",
    '{"data":[{"X":{"content":[[1,2,3,4],[5,6,7,8],[9,1,2,3]],"shape":[4,3]}}]}': "row 0 has 4 values, not 3",
    '{"data":[{"X":{"content":[1,2,3,4,5,6],"shape":[3,2]}}]}': "has the shape [3, 2] but 6 numbers",
    '{"data":[{"X":{"content":[1,2,3,4,5,6],"shape":[1,2,3]}}]}': "has the shape [1, 2, 3] but 6 numbers",
    '{"data":[{"X":{"content":[1,2,3],"b64":"AACAPwAAAEAAAEBA"}}]}': "has both content and b64",
    '{"data":[{"X":[1,2,3],"X":[4,5,6]}]}': "event 0 is not valid JSON: the key 'X' appears twice",
    '{"data":[{"X":{"content":[1,2,3],"content":[4,5,6]}}]}': "the key 'content' appears twice",
    '{"data":[' + "[" * 100_000 + "]" * 100_000 + "]}": "event 0 is not valid JSON: maximum recursion depth",
    '{"data":[{"X":[1,2,' + "1" * 5000 + "]}]}": "event 0 is not valid JSON: Exceeds the limit",
    '{"data":[{"X":[1,2,1' + "0" * 400 + "]}]}": "content has a number that is not finite",
    '{"data":[{"X":[1,2,3,4]}]}': "4 numbers, which is not a multiple of 3",
    '{"data":[{"X":{"content":[1,2,3],"shape":[3,1]}}]}': "has the shape [3, 1] but 3 numbers",
    '{"data":[{"X":{"content":[1,2,3],"shape":"big"}}]}': "has the shape big",
    '{"data":[{"X":{"shape":[1,3]}}]}': "has neither content, a list of numbers, nor b64",
    '{"data":[{"X":{"b64":7}}]}': "b64 is not a string",
    '{"data":[{"X":{"b64":"*"}}]}': "b64 is not valid base64",
    '{"data":[{"X":{"b64":"AAAAAA=="}}]}': "is not a multiple of 3",
    '{"data":[{"X":{"b64":"AAA="}}]}': "b64 has 2 bytes",
}


@pytest.mark.parametrize("text", WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_with_the_json_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError) as caught:
        json_to_events(tmp_path / "x.json", tmp_path / "out", tensor="X")
    message = str(caught.value)
    assert message.startswith(str(tmp_path / "x.json")) and WRONG[text] in message and "\n" not in message
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"], "something was left behind"


def test_names_must_be_as_many_as_events(events: Path, tmp_path: Path) -> None:
    events_to_json(events, tmp_path / "x.json", tensor="X")
    for names, says in ((["a", "b"], "more events than the 2"), (list("abcd"), "fewer events than the 4")):
        with pytest.raises(InputError, match=says):
            json_to_events(tmp_path / "x.json", tmp_path / "out", tensor="X", names=names)
    assert not (tmp_path / "out").exists()


def test_a_bad_event_leaves_an_earlier_json_as_it_was(events: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("earlier")
    (events / "evt_3.csv").write_text("1,2\n")
    with pytest.raises(InputError, match=r"evt_3\.csv:1: 2 columns"):
        events_to_json(events, tmp_path / "x.json", tensor="X")
    assert (tmp_path / "x.json").read_text() == "earlier"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["events", "x.json"]


def test_a_folder_that_holds_something_is_left_alone(events: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"data":[{"X":[1,2,3]}]}')
    with pytest.raises(OutputError, match="is not empty"):
        json_to_events(tmp_path / "x.json", events, tensor="X")
    (tmp_path / "new").mkdir()
    assert json_to_events(tmp_path / "x.json", tmp_path / "new", tensor="X") == 1


def test_a_full_disk_is_one_line(events: Path, tmp_path: Path, full_disk: Callable[[], None]) -> None:
    full_disk()
    with pytest.raises(OutputError, match=r"x\.json cannot be written: File too large"):
        events_to_json(events, tmp_path / "x.json", tensor="X")
    assert not (tmp_path / "x.json").exists()


@pytest.fixture
def full_disk():
    """No file may grow beyond 100 bytes, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_an_event_larger_than_any_is_refused_before_it_fills_the_memory(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text('{"data":[{"X":[' + "1," * (2 << 20))
    with pytest.raises(InputError, match="check that its brackets match"):
        list(array_elements(tmp_path / "x.json", "data", longest=1 << 20))


def test_the_elements_of_a_long_file_are_read_one_by_one(tmp_path: Path) -> None:
    """What is behind the first elements may be anything: it is not read yet."""
    text = ", ".join('{"s": "a]}\\"' + "x" * 100_000 + '"}' for _ in range(60))
    (tmp_path / "x.json").write_text('{"data": [' + text + ", nonsense")
    elements = array_elements(tmp_path / "x.json", "data")
    assert all(len(next(elements)["s"]) == 100_004 for _ in range(60))
    with pytest.raises(InputError, match="event 60 is not an object"):
        next(elements)


@pytest.mark.parametrize("form", ["csv", "npy", "npz", "parquet"])
def test_events_go_from_any_format_to_any_other_bit_by_bit(events: Path, tmp_path: Path, form: str) -> None:
    pytest.importorskip("pyarrow")
    (events / "evt_11.csv").unlink()  # it has no hits
    assert events_to_events(events, tmp_path / form, form=form) == 2 and format_of(tmp_path / form) == form
    assert events_to_events(tmp_path / form, tmp_path / "back", form="npz") == 2
    for before, after in zip(find_events(events), find_events(tmp_path / "back"), strict=True):
        assert (
            before.name == after.name
            and Reader().read(after).tensors["hits"].tobytes() == read_hits(before.path).tobytes()
        )


def test_the_command_line_makes_and_converts_any_format(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    given = ("events", "generate", "--events", 2, "--tracks", 5)
    for form, out in (("parquet", "p"), ("csv", "c")):
        assert exatrkx_hpc(*given, "--format", form, "-o", out, cwd=tmp_path).returncode == 0
    assert sorted(file.name for file in (tmp_path / "p" / "truth").iterdir()) == ["evt_000000.csv", "evt_000001.csv"]
    assert exatrkx_hpc("events", "convert", "p/events.parquet", "back", "--to", "csv", cwd=tmp_path).returncode == 0
    for name in ("evt_000000.csv", "evt_000001.csv"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()
    refused = exatrkx_hpc(*given, "--format", "npy", "-o", "p", cwd=tmp_path)
    assert "holds 1 events already" in complaint(refused, 8)


def test_an_event_of_no_hits_has_no_place_in_parquet(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "a.csv").write_text("\n")
    with pytest.raises(
        InputError, match="a has no hits, and Parquet cannot store an event without rows; choose another format"
    ):
        events_to_events(tmp_path / "events", tmp_path / "out", form="parquet")
    assert not (tmp_path / "out").exists() and [path.name for path in tmp_path.iterdir()] == ["events"]


def test_the_direction_comes_from_the_source(events: Path, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("")
    (tmp_path / "x.txt").write_text("")
    assert direction(events, None) == direction(events, "json") == "json"
    assert direction(tmp_path / "x.json", None) == direction(tmp_path / "x.txt", "csv") == "csv"
    for source, to, says in (("x.txt", None, r"or \*.json; for JSON input"), ("x.txt", "json", "omit --to json")):
        with pytest.raises(ConfigError, match=says):
            direction(tmp_path / source, to)
    with pytest.raises(InputError, match="does not exist"):
        direction(tmp_path / "nowhere", None)


@pytest.mark.parametrize("form", ["csv", "npy", "npz"])
@pytest.mark.parametrize("words", [[], ["--to", "json"], ["--base64"]])
def test_one_file_is_an_event(events: Path, tmp_path: Path, form: str, words: list[str]) -> None:
    events_to_events(events, tmp_path / "others", form=form)
    (first, *_) = find_events(events)
    source = f"others/{first.name}.{form}"
    done = exatrkx_hpc("events", "convert", source, "x.json", *words, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "1 events in x.json\n"), done.stderr
    ((name, element),) = json.loads((tmp_path / "x.json").read_text())["data"][0].items()
    assert name == "FEATURES" and element["shape"] == [len(read_hits(first.path)), 3]
    assert json_to_events(tmp_path / "x.json", tmp_path / "again", tensor="FEATURES") == 1
    np.testing.assert_array_equal(read_hits(tmp_path / "again/evt_000000.csv"), read_hits(first.path))


def test_a_file_that_is_no_event_leaves_an_earlier_json_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("mine")
    (tmp_path / "x.txt").write_text("0.1,0.2,0.3\n")
    (tmp_path / "words.csv").write_text("r,phi,z\n")
    says = {
        "x.txt": (2, "x.txt is neither a folder nor *.csv"),
        "words.csv": (6, "words.csv:1"),
        "no.csv": (6, "no.csv does not exist"),
    }
    for source, (status, message) in says.items():
        done = exatrkx_hpc("events", "convert", source, "x.json", cwd=tmp_path)
        assert message in complaint(done, status)
    assert (tmp_path / "x.json").read_text() == "mine"


def test_the_command(events: Path, tmp_path: Path) -> None:
    done = exatrkx_hpc("events", "convert", "events", "x.json", "--tensor", "X", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "3 events in x.json\n"), done.stderr
    back = exatrkx_hpc("events", "convert", "x.json", "back", "--tensor", "X", "--names", "events", cwd=tmp_path)
    assert back.returncode == 0 and (tmp_path / "back" / "evt_10.csv").is_file()
    wrong = exatrkx_hpc("events", "convert", "x.json", "again", cwd=tmp_path)
    assert "event 0 has no tensor FEATURES (it has: X)" in complaint(wrong, 6)
