"""Common parts of all steps: options, events, output lines, and the device."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from exatrkx_hpc.tracking.constants import DEFAULT_SETTINGS, Float32
from exatrkx_hpc.tracking.devices import use_device
from exatrkx_hpc.tracking.pipeline import Pipeline, Stages
from exatrkx_hpc.tracking.simulation import synthetic

#: The settings of the neighbour search in every step.
WITHIN: dict[str, Any] = {"radius": DEFAULT_SETTINGS.radius, "max_neighbours": DEFAULT_SETTINGS.max_neighbours}
#: An event of this size is crowded: some of its hits have more neighbours than the search keeps.
CROWDED = 100_000
#: About the size of the reference events.
SMALL = 1_200


@dataclass(frozen=True, kw_only=True)
class Lane:
    """The options of a run: the torch device, a folder for data that steps share, and the model repository.

    `triton` is the packed server of `pack_triton.sh`, a tar file or the folder to which it was unpacked.
    """

    device: str
    quick: bool
    folder: Path
    repository: Path
    triton: Path | None = None

    @property
    def on_gpu(self) -> bool:
        """Whether the device is a GPU; `cpu` rehearses the steps without one."""
        return self.device.startswith("cuda")

    @property
    def sizes(self) -> tuple[int, ...]:
        """The numbers of hits at which results are compared and memory is measured."""
        return (1_000, 2_000) if self.quick else (1_000, 10_000, 50_000, CROWDED)

    @property
    def seconds(self) -> float:
        """The duration of one measurement of a rate (s)."""
        return 0.3 if self.quick else 5.0

    def use(self) -> None:
        """Make the device torch's current one; raises NoDevice with the reason when it cannot be used."""
        use_device(self.device)
        if not self.on_gpu:
            torch.set_num_threads(1)  # a rehearsal shares the machine

    def finish(self) -> None:
        """Wait until the device has finished all its work."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def there(self, array: Any) -> torch.Tensor:
        """Return an array as a tensor on the device."""
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def load(self, repository: Path | None = None) -> Pipeline:
        """Return the pipeline of a repository, the shipped one unless stated, on the device."""
        return Pipeline.load(repository or self.repository, device=self.device)


def say(step: str, **facts: Any) -> None:
    """Print one line of a step."""
    print(json.dumps({"step": step, **facts}, default=_plain), flush=True)


def event(hits: int, seed: int = 1) -> Float32:
    """Return a synthetic event of `hits` hits, float32 `[hits, 3]`."""
    rng = np.random.default_rng([seed, hits])
    # Tracks leave about ten hits each; a few more hits are made and cut off.
    made: Float32 = synthetic.generate_event(rng, n_tracks=hits // 9 + 2).hits
    if len(made) < hits:
        raise AssertionError(f"only {len(made)} of {hits} hits were made")
    return made[:hits]


def milliseconds(lane: Lane, function: Callable[[], Any]) -> float:
    """Return the time (ms) of `function`, until the device has finished."""
    lane.finish()
    start = time.perf_counter()
    function()
    lane.finish()
    return 1000 * (time.perf_counter() - start)


def rate(function: Callable[[Any], Any], inputs: list[Any], seconds: float) -> float:
    """Return calls per second: `function` takes the inputs in turn, for at least `seconds`."""
    start, done = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not done:
        function(inputs[done % len(inputs)])
        done += 1
    return done / passed


@functools.cache
def _pipeline_of_the_cpu(repository: Path) -> Pipeline:
    return Pipeline.load(repository)


def stages_of_the_cpu(lane: Lane, hits: int) -> Stages:
    """Return the stages of the CPU for `event(hits)`; computed once, and cached in the folder for other steps."""
    folder = lane.folder / f"stages-{hits}"
    if not folder.is_dir():
        aside = folder.with_suffix(".part")
        aside.mkdir()
        for name, array in vars(_pipeline_of_the_cpu(lane.repository).stages(event(hits))).items():
            np.save(aside / f"{name}.npy", array)
        aside.rename(folder)
    return Stages(**{name: np.load(folder / f"{name}.npy") for name in Stages.__dataclass_fields__})


def _plain(value: Any) -> Any:
    """Convert a NumPy scalar or array to a number or a list for JSON, and anything else to text."""
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)
