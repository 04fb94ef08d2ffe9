"""Check that an ensemble is consistent: follow its tensors from step to step, as Triton does on load."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

Fault = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class _Tensor:
    """A tensor's type, its shape (-1 is any size), and the place of its declaration in words."""

    dtype: int
    shape: tuple[int, ...]
    where: str

    def __str__(self) -> str:
        name: str = DataType.Name(self.dtype)
        return f"{name.removeprefix('TYPE_')} {list(self.shape)} ({self.where})"

    def meets(self, other: _Tensor) -> bool:
        return (
            self.dtype == other.dtype
            and len(self.shape) == len(other.shape)
            and all(-1 in pair or pair[0] == pair[1] for pair in zip(self.shape, other.shape, strict=True))
        )


@dataclass(frozen=True, kw_only=True)
class _Step:
    """One step of an ensemble: its model (`member`), and the ensemble tensor of each input and output."""

    member: str
    config: ModelConfig
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


def ensemble_faults(
    name: str, configs: Mapping[str, ModelConfig], *, unreadable: Collection[str] = ()
) -> tuple[Fault, ...]:
    """Return the faults of the ensemble `name` as pairs (what, remedy); empty for a consistent ensemble.

    `configs` are the readable models of the repository, by name. `unreadable` are models that exist, but whose
    configuration cannot be read. If a step is one of them, the flow of tensors is not checked.
    """
    ensemble = configs[name]
    steps = [
        _Step(
            member=step.model_name,
            config=configs.get(step.model_name),
            inputs=dict(step.input_map),
            outputs=dict(step.output_map),
        )
        for step in ensemble.ensemble_scheduling.step
    ]
    if not steps:
        return ((f"the ensemble {name} has no step", "add its steps to ensemble_scheduling"),)
    faults = [
        (
            f"the step {step.member} is not a model of this repository",
            f"add the model {step.member}, or correct the step",
        )
        for step in steps
        if step.config is None and step.member not in unreadable
    ]
    faults += _calls_itself(name, configs)
    known = [step for step in steps if step.config is not None]
    for step in known:
        faults += _map_faults(step)
    if len(known) == len(steps):
        faults += _flow_faults(ensemble, known)
    return tuple(faults)


def _map_faults(step: _Step) -> Iterator[Fault]:
    """Yield the mismatches between a step's maps and the inputs and outputs of its model."""
    fix = f"correct the maps of the step {step.member}"
    inputs = {entry.name: entry for entry in step.config.input}
    for unknown in sorted(step.inputs.keys() - inputs.keys()):
        yield f"the step {step.member} maps the input {unknown}, which {step.member} does not have", fix
    for unknown in sorted(step.outputs.keys() - {entry.name for entry in step.config.output}):
        yield f"the step {step.member} maps the output {unknown}, which {step.member} does not have", fix
    for name, entry in inputs.items():
        if name not in step.inputs and not entry.optional:
            yield f"the step {step.member} leaves out the input {name}, which {step.member} requires", fix


def _flow_faults(ensemble: ModelConfig, steps: list[_Step]) -> Iterator[Fault]:
    """Yield the faults in the flow of tensors from the ensemble's inputs through its steps to its outputs."""
    made: dict[str, _Tensor | None] = {
        entry.name: _tensor(ensemble, entry, "input of the ensemble") for entry in ensemble.input
    }
    for step in steps:
        for key, name in step.outputs.items():
            if name in made:
                yield f"the tensor {name} is produced twice", "give one of them another name"
            else:
                made[name] = _find(step.config, step.config.output, key, f"output {key} of {step.member}")
    wanted = [
        (name, _find(step.config, step.config.input, key, f"input {key} of {step.member}"))
        for step in steps
        for key, name in step.inputs.items()
    ]
    wanted += [(entry.name, _tensor(ensemble, entry, "output of the ensemble")) for entry in ensemble.output]
    for name, tensor in wanted:
        yield from _meeting_faults(name, made, tensor)
    for name in sorted(made.keys() - {name for name, _ in wanted}):
        yield f"nothing uses the tensor {name}", "leave it out of the ensemble, or correct the name"
    yield from _loop_faults(set(made), {entry.name for entry in ensemble.input}, steps)


def _meeting_faults(name: str, made: Mapping[str, _Tensor | None], tensor: _Tensor | None) -> Iterator[Fault]:
    """Yield a fault if `tensor` cannot take the ensemble tensor `name`; None, a wrong name in a map, is skipped."""
    if tensor is None:
        return
    if name not in made:
        yield f"nothing produces the tensor {name} ({tensor.where})", "correct the name, or add the step"
        return
    maker = made[name]
    if maker is not None and not maker.meets(tensor):
        yield f"the tensor {name} is {maker} but taken as {tensor}", "make the types and shapes meet"


def _loop_faults(made: set[str], ready: set[str], steps: list[_Step]) -> Iterator[Fault]:
    """Yield a fault if steps wait for each other: take every step that can run, and report the remaining ones."""
    waiting = list(steps)
    while runnable := [step for step in waiting if ready.issuperset(made.intersection(step.inputs.values()))]:
        for step in runnable:
            ready |= set(step.outputs.values())
        waiting = [step for step in waiting if step not in runnable]
    if waiting:
        names = ", ".join(step.member for step in waiting)
        yield f"the steps {names} wait for each other's tensors", "break the cycle in input_map or output_map"


def _calls_itself(name: str, configs: Mapping[str, ModelConfig]) -> list[Fault]:
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        config = configs.get(ahead.pop())
        members = {step.model_name for step in config.ensemble_scheduling.step} if config else set()
        if name in members:
            return [(f"the ensemble {name} is, by way of its steps, a step of itself", "remove that step")]
        ahead += sorted(members - seen)
        seen |= members
    return []


def _find(config: ModelConfig, entries: Iterable[ModelConfig], name: str, where: str) -> _Tensor | None:
    return next((_tensor(config, entry, where) for entry in entries if entry.name == name), None)


def _tensor(config: ModelConfig, entry: ModelConfig, where: str) -> _Tensor:
    batch = (-1,) if config.max_batch_size > 0 else ()
    return _Tensor(dtype=entry.data_type, shape=(*batch, *entry.dims), where=where)
