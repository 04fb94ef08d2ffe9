"""One network as it is served, for a trial: NumPy arrays in and out, and checks of its invariance."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exatrkx_hpc.base.errors import ModelError
from exatrkx_hpc.models.network_file import load_network_file
from exatrkx_hpc.models.torchscript import reason
from exatrkx_hpc.tracking.constants import Float32, Int64
from exatrkx_hpc.tracking.features import DEFAULT_FEATURES, Features

if TYPE_CHECKING:
    import torch

#: Tolerance relative to the largest output: float32 sums in another order differ by less.
_ROUNDING = 1e-3


@dataclass(frozen=True, kw_only=True)
class Remark:
    """A finding about a network's output, in one sentence with the remedy, and whether the network is refused."""

    model: str
    what: str
    refused: bool


class Network:
    """One network as it is served: in evaluation mode, on the CPU, arrays in and out."""

    def __init__(self, name: str, file: Path, features: Features = DEFAULT_FEATURES) -> None:
        """Load the file; raises ModelError when it cannot be loaded."""
        self.name = name
        self.file = file
        self.features = features
        self._module = load_network_file(name, file, features=features)

    def __call__(self, *arrays: Any, module: Any = None) -> Float32:  # noqa: ANN401 - torch is optional
        """Return the output, float32 `[rows, D]`, one row per hit or edge; raises ModelError when the network fails."""
        import torch

        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        try:
            # Each event runs once or twice, so compiling would take longer than running.
            with torch.inference_mode(), torch.jit.optimized_execution(False):
                answer: torch.Tensor = (module or self._module)(*tensors)
        except (RuntimeError, ValueError, TypeError, IndexError, torch.jit.Error) as error:
            sizes = ", ".join(str(list(array.shape)) for array in arrays)
            raise ModelError(
                f"{self.name}: {self.file} fails on a sample event {sizes}: {reason(error)}; was it traced for "
                "another size? script it, or trace it with free sizes"
            ) from error
        rows = arrays[-1].shape[-1] if len(arrays) > 1 else len(arrays[0])
        if not isinstance(answer, torch.Tensor) or answer.numel() % max(rows, 1) or not answer.numel() >= rows:
            raise ModelError(
                f"{self.name}: {self.file} gives {list(getattr(answer, 'shape', []))} for {rows} rows; "
                "expected an answer for each: was it traced for another size?"
            )
        return np.asarray(answer.float().numpy()).reshape(rows, -1) if rows else np.empty((0, 1), dtype=np.float32)

    def as_saved(self, *arrays: Any) -> Float32:  # noqa: ANN401 - as above
        """Return the output in the mode in which the file was saved; Triton's PyTorch backend keeps that mode."""
        saved = load_network_file(self.name, self.file, features=self.features, evaluate=False)
        return self(*arrays, module=saved)


def behaviour(network: Network, hits: Float32, edges: Int64 | None) -> Iterator[Remark]:
    """Yield remarks if the output depends on repetition, on the saved mode, on other hits, or on the order."""

    def remark(what: str, *, refused: bool) -> Remark:
        return Remark(model=network.name, what=what, refused=refused)

    given = () if edges is None else (edges,)
    answer = network(hits, *given)
    if not _close(answer, network(hits, *given)):
        yield remark("answers the same event differently each time; is a dropout or noise left on?", refused=True)
        return
    if not _close(answer, network.as_saved(hits, *given)):
        what = "was saved in training mode and then answers differently (dropout, batch norm)"
        yield remark(f"{what}; save it after module.eval()", refused=True)
    order = np.random.default_rng(1).permutation(len(hits))
    place = np.argsort(order)
    if not given:
        other = network(hits[order])[place]
        if not _close(answer[: len(hits) // 2], network(hits[: len(hits) // 2])):
            yield remark("maps a hit depending on which other hits are in the event", refused=False)
    else:
        shuffled = np.random.default_rng(2).permutation(given[0].shape[1])
        other = network(hits[order], place[given[0]][:, shuffled])[np.argsort(shuffled)]
    if not _close(answer, other):
        yield remark("depends on the order of hits or edges, which has no meaning in an event file", refused=False)


def _close(first: Float32, second: Float32) -> bool:
    scale = float(np.abs(first).max(initial=0.0))
    return bool(np.allclose(first, second, rtol=_ROUNDING, atol=_ROUNDING * scale, equal_nan=True))
