"""Run a TorchScript network as fast as possible without changing its output.

Each optimisation is tried on samples when the network is loaded. It is left out if it fails, changes an output by more
than rounding, or saves no time. At worst, a site's own weights run unchanged.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from exatrkx_hpc.tracking.constants import N_FEATURES
from exatrkx_hpc.tracking.devices import reason, require_device
from exatrkx_hpc.tracking.onnx_network import LFS_POINTER

Network = Callable[..., torch.Tensor]

#: Edges per block on a CPU, if that is faster, for an edge network that judges each edge alone: intermediate results
#: stay in the cache.
BLOCK = 16_384
#: Edges per block on a GPU, or if smaller blocks are not faster. It bounds the memory, which would otherwise grow with
#: the width of the network times the edges; an event of 100,000 hits has 14 million edges.
LARGE_BLOCK = 1 << 20
#: Tolerance for outputs: float32 sums in another order differ by less.
_ROUNDING = 1e-4

#: Hits and edges of the samples for timing: a small and a typical event. Blocks are timed on an event with several
#: blocks.
_TIMED, _TIMED_IN_BLOCKS = ((200, 800), (1_200, 8_000)), ((1_200, 3 * BLOCK),)
#: Number of timings of each network, in turns. The lowest CPU time counts, because other load only adds to it.
_TURNS = 5
#: An optimisation is worth its different rounding if its total time is below the first share of the plain network's
#: time. It counts as slower if its time for one sample is above the second share. Between the two is noise.
_FASTER, _SLOWER = 0.9, 1.05

#: A linear layer narrower than this on one side gains nothing from oneDNN, and may become slower.
_NARROW = 24
_ONE_DNN = """
graph(%x, %weight, %bias):
  %then : str = prim::Constant[value="{then}"]()
  %how : str = prim::Constant[value=""]()
  %numbers : Scalar?[] = prim::ListConstruct()
  %y = mkldnn::_linear_pointwise(%x, %weight, %bias, %then, %numbers, %how)
  return (%y)
"""


def load_network(path: Path, *, device: str = "cpu", columns: int = N_FEATURES) -> Network:
    """Return the TorchScript network of a file, on `device` (`cpu`, `cuda`, `cuda:1`), ready to run.

    Call it within `torch.inference_mode()`, with tensors on that device: hits float32 `[N, columns]` and, for an edge
    network, edges int64 `[2, E]`. Raises ValueError when the file cannot be read or does not fit into the GPU's memory,
    NoDevice (a ValueError) when there is no such GPU.
    """
    require_device(device)
    switch_fuser_off()
    try:
        with warnings.catch_warnings():
            # torch 2.9 and later deprecate TorchScript, but Triton's PyTorch backend reads it.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location=device).eval()
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{path} does not fit into the GPU's memory: {reason(error)}; run fewer instances") from error
    except (ValueError, RuntimeError, OSError) as error:
        if path.is_file() and path.read_bytes().startswith(LFS_POINTER):
            raise ValueError(f"{path} is a Git LFS pointer: fetch its content with 'git lfs pull'") from error
        raise ValueError(f"{path} is not a readable TorchScript file: {reason(error)}") from error
    return faster(module, device=device, columns=columns)


def switch_fuser_off() -> None:
    """Switch off TorchScript's fusion in this process: fused operations are recompiled for each new shape.

    Each event has another shape. On a GPU a compilation takes up to seconds; on a CPU torch does not fuse by default.
    """
    torch._C._jit_set_texpr_fuser_enabled(False)


def faster(module: Any, *, device: str = "cpu", columns: int = N_FEATURES) -> Network:  # noqa: ANN401 - torch's
    """Return a network with the output of `module` (TorchScript, evaluation mode) that takes less time or memory.

    On a CPU, linear layers run in oneDNN if that is faster here: it was twice as fast as the default on AMD with
    AVX-512, but slower on Intel for small events. An edge network that judges each edge alone gets its edges in blocks:
    small blocks if they are faster, else large ones. Hits have `columns` features.
    """
    plain: Network = module
    if not str(device).startswith("cpu"):
        return _in_blocks(plain, block=LARGE_BLOCK) if _judges_edges_alone(plain, device, columns) else plain
    network = _tried(_in_one_dnn, plain, columns)
    if not _judges_edges_alone(network, device, columns):
        return network
    small = _in_blocks(network, block=BLOCK)
    quick = takes_less_time(small, network, _TIMED_IN_BLOCKS, columns=columns)
    return small if quick else _in_blocks(network, block=LARGE_BLOCK)


def takes_less_time(
    one: Network, other: Network, sizes: Sequence[tuple[int, int]] = _TIMED, *, columns: int = N_FEATURES
) -> bool:
    """Return whether `one` is faster than `other` on events of `sizes` (hits, edges) on this CPU.

    `one` must be clearly faster in total, and must not be slower for any of the sizes.
    """
    spent = [_best_times(one, other, _sample(*size, columns)) for size in sizes]
    in_sum = [sum(times) for times in zip(*spent, strict=True)]
    return in_sum[0] < _FASTER * in_sum[1] and all(first < _SLOWER * second for first, second in spent)


def _best_times(one: Network, other: Network, sample: Sequence[torch.Tensor]) -> tuple[float, float]:
    """Return the lowest CPU times (s) of both for a sample, without the edges if the network takes none."""
    with torch.inference_mode():
        if _answer(other, sample) is None:
            sample = sample[:1]
        best = [float("inf"), float("inf")]
        for turn in range(1 + _TURNS):
            for place, network in enumerate((one, other)):
                began = time.process_time()
                _answer(network, sample)
                took = time.process_time() - began
                best[place] = min(best[place], took) if turn else best[place]  # the first turn warms up
    return best[0], best[1]


def _tried(change: Callable[[Any], Network], module: Network, columns: int = N_FEATURES) -> Network:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            changed = change(module)
    except (RuntimeError, AttributeError, TypeError):
        return module
    same = _same(changed, module, columns=columns)
    return changed if same and takes_less_time(changed, module, columns=columns) else module


def _in_one_dnn(module: Any) -> Network:  # noqa: ANN401 - as above
    """Return the module with its linear layers, and the ReLUs after them, in oneDNN. Uses private parts of torch."""
    frozen: Any = torch.jit.freeze(module)
    for linear in frozen.graph.findAllNodes("aten::linear"):
        weight = linear.inputsAt(1).toIValue()
        if weight is None or min(weight.shape) < _NARROW:
            continue
        users = [use.user for use in linear.output().uses()]
        relu = len(users) == 1 and users[0].kind() in ("aten::relu", "aten::relu_")
        layer = torch._C.parse_ir(_ONE_DNN.format(then="relu" if relu else "none"))
        with frozen.graph.insert_point_guard(linear):
            (output,) = frozen.graph.insertGraph(layer, list(linear.inputs()))
        replaced = users[0] if relu else linear
        replaced.output().replaceAllUsesWith(output)
        replaced.destroy()
        if relu:
            linear.destroy()
    network: Network = frozen
    return network


def _in_blocks(network: Network, *, block: int) -> Network:
    """Return an edge network that calls `network` with at most `block` edges at a time."""

    def run(hits: torch.Tensor, *edges: torch.Tensor) -> torch.Tensor:
        if not edges or edges[0].ndim != 2 or edges[0].shape[1] <= block:
            return network(hits, *edges)
        return torch.cat([network(hits, part) for part in edges[0].split(block, dim=1)])

    return run


def _judges_edges_alone(network: Network, device: str, columns: int) -> bool:
    """Return whether a network takes edges and gives the same output when it gets them in blocks."""
    with torch.inference_mode():
        takes_edges = _answer(network, _samples(device, columns)[1]) is not None
    return takes_edges and _same(_in_blocks(network, block=7), network, device, columns=columns)


def _same(one: Network, other: Network, device: str = "cpu", *, columns: int = N_FEATURES) -> bool:
    """Return whether two networks give the same output on samples, including empty ones; also warms up both.

    Returns False if the networks accept none of the samples.
    """
    answered = False
    with torch.inference_mode():
        for sample in _samples(device, columns):
            # TorchScript profiles its first run and compiles at the second; no event should wait for this.
            for _ in range(2):
                expected = _answer(other, sample)
                answer = _answer(one, sample)
                if not _close(answer, expected):
                    return False
                answered |= answer is not None
    return answered


def _close(answer: torch.Tensor | None, expected: torch.Tensor | None) -> bool:
    if answer is None or expected is None:
        return answer is expected
    if answer.shape != expected.shape or answer.dtype != expected.dtype:
        return False
    return bool(torch.allclose(answer, expected, rtol=_ROUNDING, atol=_ROUNDING, equal_nan=True))


def _answer(network: Network, sample: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """Return the output, or None if the network rejects the sample; some networks reject zero edges."""
    try:
        answer = network(*sample)
    except (RuntimeError, TypeError, IndexError, torch.jit.Error):
        return None
    return answer if isinstance(answer, torch.Tensor) else None


def _samples(device: str, columns: int) -> list[tuple[torch.Tensor, ...]]:
    """Return samples of several sizes, also empty: hits `[N, columns]` all over a detector, with and without edges."""
    samples: list[tuple[torch.Tensor, ...]] = []
    for n_hits, n_edges in itertools.product((40, 1, 0), (60, 1, 0)):
        if n_edges and not n_hits:
            continue
        hits, edges = (tensor.to(device) for tensor in _sample(n_hits, n_edges, columns))
        samples += [(hits,), (hits, edges)]
    return samples


def _sample(n_hits: int, n_edges: int, columns: int = N_FEATURES) -> tuple[torch.Tensor, torch.Tensor]:
    source = torch.Generator().manual_seed(n_hits + n_edges)
    hits = torch.rand(n_hits, N_FEATURES, generator=source) * torch.tensor([0.3, 2.0, 6.0])
    hits -= torch.tensor([0.0, 1.0, 3.0])
    if columns != N_FEATURES:
        hits = torch.cat([hits, torch.rand(n_hits, columns, generator=source)], dim=1)[:, :columns].contiguous()
    return hits, torch.randint(max(n_hits, 1), (2, n_edges), generator=source)
