"""Run a TorchScript network as fast as this machine can, without changing what it answers.

Each shortcut is tried on a sample when the network is loaded. One that fails there, or changes an answer by more
than rounding does, is left out: a site's own weights run as they are, at worst.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from exatrkx_hpc.tracking.constants import N_FEATURES

Network = Callable[..., torch.Tensor]
_Samples = list[tuple[torch.Tensor, ...]]

#: An edge network that judges each edge alone gets so many at a time: what it makes of them stays in the cache,
#: and the memory of an event no longer grows with the width of the network times its edges.
BLOCK = 16_384
#: How the text begins that Git LFS leaves in the place of a file; this room imports nothing of the rest.
_LFS_POINTER = b"version https://git-lfs"
#: Answers may differ by so much, as float32 does when sums are taken in another order.
_ROUNDING = 1e-4

#: A linear layer narrower than this on one side gains nothing from oneDNN, and may lose.
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

    It is called with tensors on that device: hits float32 `[N, 3]` and, for an edge network, edges int64
    `[2, E]`; hits have `columns` features where those are not the usual three. Use it within
    `torch.inference_mode()`. Raises ValueError when the file cannot be read.
    """
    try:
        with warnings.catch_warnings():
            # torch 2.9 and later advise against TorchScript, which is what Triton's PyTorch backend reads.
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(str(path), map_location=device).eval()
    except (ValueError, RuntimeError, OSError) as error:
        if path.is_file() and path.read_bytes().startswith(_LFS_POINTER):
            raise ValueError(f"{path} is a Git LFS pointer: fetch its content with 'git lfs pull'") from error
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"{path} is no TorchScript file that can be read: {reason}") from error
    return faster(module, device=device, columns=columns)


def faster(module: Any, *, device: str = "cpu", columns: int = N_FEATURES) -> Network:  # noqa: ANN401 - torch's
    """Return what answers as `module` does, a TorchScript module in evaluation mode, and takes less time.

    On a CPU, linear layers run in oneDNN, which was twice as fast as the default on AMD with AVX-512, and an edge
    network that judges each edge alone gets its edges in blocks. Hits have `columns` features.
    """
    plain: Network = module
    if not str(device).startswith("cpu"):
        return plain
    samples = _samples(columns)
    network = _tried(_in_one_dnn, plain, samples)
    return _in_blocks(network, block=BLOCK) if _judges_edges_alone(network, samples) else network


def _tried(change: Callable[[Any], Network], module: Network, samples: _Samples) -> Network:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            changed = change(module)
    except (RuntimeError, AttributeError, TypeError):
        return module
    return changed if _same(changed, module, samples) else module


def _in_one_dnn(module: Any) -> Network:  # noqa: ANN401 - as above
    """Return the module with its linear layers, and the ReLU behind them, in oneDNN. Private parts of torch."""
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
    """Return the edge network that gives `network` at most `block` edges at a time."""

    def run(hits: torch.Tensor, *edges: torch.Tensor) -> torch.Tensor:
        if not edges or edges[0].ndim != 2 or edges[0].shape[1] <= block:
            return network(hits, *edges)
        return torch.cat([network(hits, part) for part in edges[0].split(block, dim=1)])

    return run


def _judges_edges_alone(network: Network, samples: _Samples) -> bool:
    """Say whether a network takes edges and answers the same when it gets them in blocks."""
    with torch.inference_mode():
        takes_edges = _answer(network, samples[1]) is not None
    return takes_edges and _same(_in_blocks(network, block=7), network, samples)


def _same(one: Network, other: Network, samples: _Samples) -> bool:
    """Say whether two networks answer the same on samples, empty ones among them; both have run then.

    Two that take none of them are not known to.
    """
    answered = False
    with torch.inference_mode():
        for sample in samples:
            # TorchScript watches its first run and compiles at the second: no event is to wait for it.
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
    """Return the answer, or None when the network does not take the sample: not every one takes no edges."""
    try:
        answer = network(*sample)
    except (RuntimeError, TypeError, IndexError, torch.jit.Error):
        return None
    return answer if isinstance(answer, torch.Tensor) else None


def _samples(columns: int) -> _Samples:
    """Return hits `[N, columns]` all over a detector and edges among them, of several sizes, as any may be given."""
    source = torch.Generator().manual_seed(0)
    samples: _Samples = []
    for n_hits, n_edges in itertools.product((40, 1, 0), (60, 1, 0)):
        if n_edges and not n_hits:
            continue
        hits = torch.rand(n_hits, N_FEATURES, generator=source) * torch.tensor([0.3, 2.0, 6.0])
        hits -= torch.tensor([0.0, 1.0, 3.0])
        more = torch.rand(n_hits, max(columns - N_FEATURES, 0), generator=source)
        hits = torch.cat([hits, more], dim=1)[:, :columns].contiguous()
        edges = torch.randint(max(n_hits, 1), (2, n_edges), generator=source)
        samples += [(hits,), (hits, edges)]
    return samples
