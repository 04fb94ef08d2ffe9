"""Send one request to any model of a server; CSV files become tensors according to the model's metadata."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from exatrkx_hpc.base.errors import InputError, ModelError, OutputError
from exatrkx_hpc.base.files import write_new
from exatrkx_hpc.base.readable import one_line
from exatrkx_hpc.work.inference.client import checked_address
from exatrkx_hpc.work.inference.ownership import require_ours
from exatrkx_hpc.work.inference.retry import CHANNEL_OPTIONS, RequestFailed, explain
from exatrkx_hpc.work.results.tables import Array, read_tensor, tensor_text

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A tensor as declared in the model's metadata: name, Triton's type, shape (-1 is any size), optional or not."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    optional: bool = False

    def __str__(self) -> str:
        sizes = ", ".join(map(str, self.shape))
        return f"{self.name} {self.datatype} [{sizes}]{' (optional)' if self.optional else ''}"


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A tensor sent to or received from the model: declared and actual shape, and its file, None without a file."""

    name: str
    datatype: str
    declared: tuple[int, ...]
    shape: tuple[int, ...]
    file: str | None


@dataclass(frozen=True, kw_only=True)
class ModelReply:
    """One request and its answer; `seconds` is the time of the request only, `values` has the outputs by name."""

    server: str
    model: str
    version: str
    seconds: float
    inputs: tuple[Sent, ...]
    outputs: tuple[Sent, ...]
    values: dict[str, Array]

    def to_dict(self) -> dict[str, object]:
        """Return all fields except the values, for JSON."""
        tensors = {"inputs": self.inputs, "outputs": self.outputs}
        facts = {"server": self.server, "model": self.model, "version": self.version, "seconds": self.seconds}
        return facts | {key: [asdict(tensor) for tensor in group] for key, group in tensors.items()}


def ask_model(
    server: str, model: str, files: Sequence[str], *, version: str = "", timeout: float = 60.0, identity: str = ""
) -> ModelReply:
    """Send the tensors of CSV files to `model` at `server` (`host:port`) and return the answer.

    `identity` is whose endpoint it should be, `FARM/JOB/INSTANCE`; another's gets no tensor. Empty accepts every one.

    `files` are paths in the order of the model's inputs, or `NAME=PATH`; optional inputs may be missing. `timeout` is
    in seconds. Raises ConfigError for an invalid address, EndpointError when there is no valid answer, ModelError when
    the model is unknown (with the known models) or fails, InputError for files that do not fit the inputs.
    """
    require_ours(checked_address(server), identity)
    with triton.InferenceServerClient(checked_address(server), channel_args=list(CHANNEL_OPTIONS)) as client:
        asking = _Asking(client=client, server=server, model=model, version=version, timeout=timeout)
        inputs, outputs, served = asking.declared()
        paths = _assign(model, inputs, files)
        chosen = [(tensor, paths[tensor.name]) for tensor in inputs if tensor.name in paths]
        tensors = [(one, path, read_tensor(path, datatype=one.datatype, shape=one.shape)) for one, path in chosen]
        request = [_input(one, tensor) for one, _, tensor in tensors]
        begin = time.monotonic()
        answer = asking.call(
            lambda: client.infer(model, request, model_version=version, client_timeout=timeout),
        )
        seconds = time.monotonic() - begin
    values, received = _received(model, answer, outputs)
    return ModelReply(
        server=server,
        model=model,
        version=served,
        seconds=seconds,
        inputs=tuple(_sent(one, tensor.shape, str(path)) for one, path, tensor in tensors),
        outputs=received,
        values=values,
    )


def save_outputs(reply: ModelReply, out: Path) -> ModelReply:
    """Write each output as CSV and return the reply with the names of the files.

    `out` is a file `NAME.csv` for a model with one output, else a folder for one `MODEL.OUTPUT.csv` per output. No
    file is replaced. Raises OutputError when a file cannot be written, and then removes the files written so far.
    """
    alone = out.suffix == ".csv"
    if alone and len(reply.outputs) != 1:
        raise OutputError(
            f"{reply.model} has {len(reply.outputs)} outputs, but {out} is a single file; set --out to a folder"
        )
    paths = [out] if alone else _paths(out, reply)
    written: list[Path] = []
    try:
        (out.parent if alone else out).mkdir(parents=True, exist_ok=True)
        for one, path in zip(reply.outputs, paths, strict=True):
            write_new(path, tensor_text(reply.values[one.name], datatype=one.datatype))
            written.append(path)
    except OSError as error:
        for path in written:
            path.unlink(missing_ok=True)
        if isinstance(error, FileExistsError) and paths[len(written)].exists():
            raise OutputError(f"{paths[len(written)]} exists; remove it, or choose another --out") from error
        raise OutputError(f"{out} cannot be written: {error.strerror}; choose another --out") from error
    named = zip(reply.outputs, written, strict=True)
    return replace(reply, outputs=tuple(replace(one, file=str(path)) for one, path in named))


def _paths(folder: Path, reply: ModelReply) -> list[Path]:
    """Return a file for each output; equal file names, after replacing special characters, get a number."""
    chosen: dict[str, Path] = {}
    for one in reply.outputs:
        # Both names come from a server and may contain slashes; some file systems ignore case.
        name = ".".join(re.sub(r"[^A-Za-z0-9_-]+", "_", part) for part in (reply.model, one.name))
        free = next(
            text for n in itertools.count(1) if (text := f"{name}-{n}" if n > 1 else name).lower() not in chosen
        )
        chosen[free.lower()] = folder / f"{free}.csv"
    return list(chosen.values())


def reply_table(reply: ModelReply) -> Table:
    """Return the tensors of a request and its answer as a table."""
    from rich.table import Table

    title = f"{reply.model} version {reply.version} at {reply.server}: {1000 * reply.seconds:.1f} ms"
    table = Table(title=title, title_justify="left")
    for column in ("", "tensor", "type", "declared", "shape", "file"):
        table.add_column(column)
    for way, group in (("in", reply.inputs), ("out", reply.outputs)):
        for one in group:
            shapes = [str(list(one.declared)), str(list(one.shape))]
            table.add_row(way, one.name, one.datatype, *shapes, one.file or "")
    return table


@dataclass(frozen=True, kw_only=True)
class _Asking:
    """The common arguments of all calls about one model."""

    client: Any
    server: str
    model: str
    version: str
    timeout: float

    def declared(self) -> tuple[tuple[Declared, ...], tuple[Declared, ...], str]:
        """Return the declared inputs and outputs, and the version that the server will use."""
        words = {"model_name": self.model, "model_version": self.version, "client_timeout": self.timeout}
        found = self.call(lambda: self.client.get_model_metadata(**words))
        try:
            config = self.client.get_model_config(**words).config
            optional = {entry.name for entry in config.input if entry.optional}
        except InferenceServerException:  # a site may restrict this call; then all inputs are required
            optional = set()
        inputs = tuple(_declared(entry, entry.name in optional) for entry in found.inputs)
        served = self.version or max(found.versions, key=lambda one: int(one) if one.isdigit() else 0, default="")
        return inputs, tuple(_declared(entry, False) for entry in found.outputs), served

    def call(self, what: Callable[[], T]) -> T:
        """Return the result of a call; turn its failure into the error that the user sees."""
        try:
            return what()
        except InferenceServerException as error:
            status = (error.status() or "UNKNOWN").removeprefix("StatusCode.")
            raise self._explained(RequestFailed(status, error.message() or "no reason given")) from None

    def _explained(self, failure: RequestFailed) -> Exception:
        gone = failure.status in {"NOT_FOUND", "UNAVAILABLE"} and "unknown model" in failure.message.lower()
        if gone or (failure.status == "NOT_FOUND" and "is not found" in failure.message):
            return ModelError(
                f"{self.server} does not serve {self.model} ({failure.message}); it serves: {self._served()}"
            )
        return explain(failure, server=self.server, model=self.model)

    def _served(self) -> str:
        try:
            index = self.client.get_model_repository_index(client_timeout=5.0)
        except InferenceServerException:  # a site may restrict this call; the list is only a help
            return "unknown"
        states = {entry.name: entry.state for entry in index.models}
        return ", ".join(
            f"{name}{'' if state == 'READY' else ' (not ready)'}" for name, state in sorted(states.items())
        )


def _declared(entry: Any, optional: bool) -> Declared:  # noqa: ANN401 - a protobuf message
    return Declared(
        name=entry.name, datatype=entry.datatype, shape=tuple(int(size) for size in entry.shape), optional=optional
    )


def _assign(model: str, inputs: tuple[Declared, ...], files: Sequence[str]) -> dict[str, Path]:
    """Return the file of each input; raise InputError unless the files fit the inputs."""
    names = [tensor.name for tensor in inputs]
    wanted = ", ".join(map(str, inputs))
    given: dict[str, Path] = {}
    for place, file in enumerate(files):
        name, found, path = file.partition("=")
        if not (found and name in names):
            if place >= len(names):
                raise InputError(f"{model} takes {len(names)} input(s), not {len(files)}: {wanted}")
            name, path = names[place], file
        if name in given:
            raise InputError(f"{name} of {model} is given twice; give each input once: {wanted}")
        given[name] = Path(path)
    missing = [tensor.name for tensor in inputs if not tensor.optional and tensor.name not in given]
    if missing:
        raise InputError(f"{model} also needs a file for {', '.join(missing)}; its inputs are {wanted}")
    return given


def _input(declared: Declared, tensor: Array) -> triton.InferInput:
    made = triton.InferInput(declared.name, list(tensor.shape), declared.datatype)
    return made.set_data_from_numpy(tensor)


def _received(
    model: str,
    answer: Any,  # noqa: ANN401 - tritonclient has no types
    outputs: tuple[Declared, ...],
) -> tuple[dict[str, Array], tuple[Sent, ...]]:
    known = {tensor.name: tensor for tensor in outputs}
    values: dict[str, Array] = {}
    sent = []
    for entry in answer.get_response().outputs:
        shape = tuple(int(size) for size in entry.shape)
        try:
            value = answer.as_numpy(entry.name)
        except ValueError as error:  # the bytes do not match the shape
            raise ModelError(f"{model} sent an invalid {entry.name}: {one_line(str(error))}") from error
        if value is None or value.shape != shape:
            raise ModelError(f"{model} sent no data for {entry.name} {list(shape)}; see the server's log")
        values[entry.name] = value
        declared = known.get(entry.name) or Declared(name=entry.name, datatype=entry.datatype, shape=shape)
        sent.append(_sent(declared, shape, None))
    return values, tuple(sent)


def _sent(declared: Declared, shape: Sequence[int], file: str | None) -> Sent:
    return Sent(name=declared.name, datatype=declared.datatype, declared=declared.shape, shape=tuple(shape), file=file)
