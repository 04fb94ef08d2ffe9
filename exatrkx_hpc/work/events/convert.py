"""Convert events between formats, and to and from the JSON of perf_analyzer (`--input-data`), without loss.

One event is in memory at a time. The JSON is `{"data": [{"FEATURES": {"content": [...], "shape": [N, 3]}}, ...]}`.
`"b64"`, the bytes of the float32 numbers, may replace `"content"`. The JSON does not store the names of events: some
modes of perf_analyzer refuse members other than `data` (DataLoader::GetDatasetSize).
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

#: Called as (stage, done, total) after each event; the total is 0 if it is unknown.
Progress = Callable[[str, int, int], None]
#: Changes the hits of each event before they are written.
Change = Callable[[Float32], Float32]
Target = Literal["json", "csv", "npy", "npz", "parquet"]
_KEY = "data"


def unchanged(hits: Float32) -> Float32:
    """Return the hits unchanged."""
    return hits


def holds_events(source: Path) -> bool:
    """Return whether `source` is a folder of events or an event file; a JSON file is neither."""
    return source.is_dir() or source.suffix[1:] in FORMATS


def events_of(source: Path) -> tuple[EventFile, ...]:
    """Return the events of a folder or a Parquet file; any other file is one event."""
    if source.is_dir() or source.suffix[1:] == PARQUET:
        return find_events(source)
    return (EventFile(name=source.stem, path=source),)


def direction(source: Path, to: Target | None) -> Target:
    """Return the target format: `to` if it is set, else `json` for events and `csv` for a `*.json` file.

    Raises ConfigError when the format cannot be derived or does not fit, InputError when `source` does not exist.
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

    `folder` may also be an event file. A temporary file replaces `out` at the end, so `out` is complete or unchanged.
    Raises InputError for a folder or an event that cannot be read, OutputError when `out` cannot be written.
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

    `out` must be empty or missing; it appears complete at the end. Raises InputError for invalid events, OutputError
    when `out` cannot be written, MissingComponent for Parquet without pyarrow.
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

    `names` has one name per event; without `names` the events are `evt_000000` and so on. `out` must be empty or
    missing; it appears complete at the end. Raises InputError for invalid JSON, an invalid event or a wrong number of
    names, OutputError when `out` cannot be written.
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
    """Yield the hits of each event; an array in place of an event is a sequence of events."""
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
    """Yield a temporary file; it replaces `out` when the block succeeds."""
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
    """Yield a temporary folder; it becomes `out` when the block succeeds."""
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
