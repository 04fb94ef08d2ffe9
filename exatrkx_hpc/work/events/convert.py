"""Events of any format to another, or to the JSON of perf_analyzer (`--input-data`) and back; nothing is lost.

One event is in memory at a time. The JSON is `{"data": [{"FEATURES": {"content": [...], "shape": [N, 3]}}, ...]}`, or
with `"b64"`, the bytes of the float32 numbers, in the place of `"content"`. It has no room for the names of events:
some modes of perf_analyzer refuse any other member than `data` (its DataLoader::GetDatasetSize).
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

from exatrkx_hpc.base.errors import ConfigError, InputError, OutputError
from exatrkx_hpc.work.events.json_stream import array_elements
from exatrkx_hpc.work.events.perf_json import json_event, json_hits
from exatrkx_hpc.work.events.source import FORMATS, PARQUET, EventFile, Reader, find_events
from exatrkx_hpc.work.events.writing import Float32, event_writer
from exatrkx_hpc.work.workloads.exatrkx import HITS

#: Called as (stage, done, total) after each event; 0 for a total that is not known.
Progress = Callable[[str, int, int], None]
#: What becomes of the hits of each event before they are written.
Change = Callable[[Float32], Float32]
Target = Literal["json", "csv", "npy", "npz", "parquet"]
_KEY = "data"


def unchanged(hits: Float32) -> Float32:
    """Return hits as they are."""
    return hits


def holds_events(source: Path) -> bool:
    """Return whether `source` is a folder of events or a file that holds one or more, and no JSON."""
    return source.is_dir() or source.suffix[1:] in FORMATS


def events_of(source: Path) -> tuple[EventFile, ...]:
    """Return the events of a folder or a Parquet file, or the one of another file."""
    if source.is_dir() or source.suffix[1:] == PARQUET:
        return find_events(source)
    return (EventFile(name=source.stem, path=source),)


def direction(source: Path, to: Target | None) -> Target:
    """Return what `source` is to become: what `to` says, else JSON for events and events for a `*.json`.

    Raises ConfigError when that cannot be told, InputError when there is no source.
    """
    if not source.exists():
        raise InputError(f"{source} does not exist; choose a folder of events, an event file or a JSON file")
    found: Target | None = "json" if holds_events(source) else "csv" if source.suffix == ".json" else None
    if to is None and found is None:
        kinds = ", ".join(f"*.{form}" for form in FORMATS)
        raise ConfigError(f"{source} is neither a folder nor {kinds} or *.json; for JSON input, add --to csv")
    if to == "json" and not holds_events(source):
        raise ConfigError(f"{source} is not a folder of events or an event file; omit --to json")
    return to or found or "csv"


def events_to_json(
    folder: Path,
    out: Path,
    *,
    tensor: str,
    as_base64: bool = False,
    change: Change = unchanged,
    on_progress: Progress | None = None,
) -> int:
    """Write the events of `folder`, in natural order, as the tensor `tensor` of perf_analyzer's data; return how many.

    `folder` may be a file of events, too. `out` is written aside and renamed, so it is whole or as it was. Raises
    InputError for a folder or an event that cannot be read, OutputError when `out` cannot be written.
    """
    events = events_of(folder)
    with _whole_file(out) as file, contextlib.closing(Reader()) as reader:
        file.write(f'{{"{_KEY}":[')
        for number, event in enumerate(events):
            file.write(",\n" if number else "\n")
            file.write(json_event(change(reader.read(event).tensors[HITS]), tensor, as_base64=as_base64))
            if on_progress:
                on_progress("events", number + 1, len(events))
        file.write("\n]}\n")
    return len(events)


def events_to_events(
    source: Path, out: Path, *, form: str, change: Change = unchanged, on_progress: Progress | None = None
) -> int:
    """Write the events of `source` in another format to the new folder `out`; return how many.

    `out` must not hold anything; it appears as a whole at the end. Raises InputError for events that cannot be used,
    OutputError when `out` cannot be written, MissingComponent for Parquet without pyarrow.
    """
    events = events_of(source)
    with (
        _whole_folder(out) as folder,
        event_writer(folder, form) as write,
        contextlib.closing(Reader()) as reader,
    ):
        for number, event in enumerate(events, start=1):
            write(event.name, change(reader.read(event).tensors[HITS]))
            if on_progress:
                on_progress("events", number, len(events))
    return len(events)


def json_to_events(
    path: Path,
    out: Path,
    *,
    tensor: str,
    form: str = "csv",
    names: Sequence[str] | None = None,
    change: Change = unchanged,
    on_progress: Progress | None = None,
) -> int:
    """Write each event of perf_analyzer's data to the new folder `out`, in the format `form`; return how many.

    They are `evt_000000` and so on, or have the names of `names`, one an event. `out` must not hold anything;
    it appears as a whole at the end. Raises InputError for JSON or an event that cannot be used, OutputError when
    `out` cannot be written.
    """
    count = 0
    with _whole_folder(out) as folder, event_writer(folder, form) as write:
        for count, hits in enumerate(_events(path, tensor), start=1):
            if names is not None and count > len(names):
                break
            name = names[count - 1] if names is not None else f"evt_{count - 1:06d}"
            write(name, change(hits))
            if on_progress:
                on_progress("events", count, len(names or ()))
        if names is not None and count != len(names):
            more = "more" if count > len(names) else "fewer"
            raise InputError(
                f"{path} contains {more} events than the {len(names)} names of --names; choose the matching folder"
            )
        if not count:
            raise InputError(f"{path} contains no events")
    return count


def _events(path: Path, tensor: str) -> Iterator[Float32]:
    """Yield the hits of each event; an array in the place of an event is a sequence of them."""
    number = 0
    for element in array_elements(path, _KEY):
        for step in element if isinstance(element, list) else [element]:
            where = f"{path}: event {number}"
            if not isinstance(step, dict) or tensor not in step:
                found = ", ".join(map(str, step)) if isinstance(step, dict) and step else "none"
                raise InputError(f"{where} has no tensor {tensor} (it has: {found}); choose another with --tensor")
            yield json_hits(step[tensor], f"{where}: {tensor}")
            number += 1


@contextlib.contextmanager
def _whole_file(out: Path) -> Iterator[IO[str]]:
    """Give a file to write to; it takes the place of `out` when the block ends well."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=out.parent, prefix=f".{out.name}.")
        try:
            with os.fdopen(handle, "w", encoding="ascii") as file:
                yield file
            Path(aside).chmod(0o644)
            Path(aside).replace(out)
        except BaseException:
            Path(aside).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {error.strerror}; check permissions and free space, or choose another file"
        ) from error


@contextlib.contextmanager
def _whole_folder(out: Path) -> Iterator[Path]:
    """Give a folder to write to; it becomes `out` when the block ends well."""
    try:
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise OutputError(f"{out} exists and is not empty; remove it, or choose another folder")
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
            fresh = Path(aside) / "events"
            fresh.mkdir()
            yield fresh
            fresh.replace(out)
    except OSError as error:
        raise OutputError(
            f"{out} cannot be written: {error.strerror}; check permissions and free space, or choose another folder"
        ) from error
