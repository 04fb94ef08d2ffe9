"""Events in perf_analyzer's JSON: `{"content": [...], "shape": [N, 3]}`, or one of its variants."""

from __future__ import annotations

import base64
import binascii
from typing import Final

import numpy as np

from exatrkx_hpc.base.errors import InputError
from exatrkx_hpc.work.events.writing import DIGITS, Float32
from exatrkx_hpc.work.workloads.hits_numpy import COLUMNS

_ROWS: Final = f"expected [N, {COLUMNS}], one row per hit"


def json_event(hits: Float32, tensor: str, *, as_base64: bool) -> str:
    """Return an event as JSON, with its hits as the tensor `tensor`, bit-exact."""
    shape = f'"shape":[{len(hits)},{COLUMNS}]'
    if as_base64:
        text = base64.b64encode(hits.astype("<f4").tobytes()).decode()
        return f'{{"{tensor}":{{"b64":"{text}",{shape}}}}}'
    content = ",".join([DIGITS] * hits.size) % tuple(hits.ravel().tolist())
    return f'{{"{tensor}":{{"content":[{content}],{shape}}}}}'


def json_hits(tensor: object, where: str) -> Float32:
    """Return the hits of one tensor, float32 `[N, 3]`, finite; raise InputError if the tensor is invalid."""
    held = tensor if isinstance(tensor, dict) else {"content": tensor}
    content = held.get("content")
    if isinstance(content, dict):  # an older variant
        held = {**held, **content}
        content = content.get("content")
    if "b64" in held and content is not None:
        raise InputError(f"{where} has both content and b64; remove one")
    values = _decoded(held["b64"], where) if "b64" in held else _numbers(content, where)
    hits = values.size // COLUMNS
    shape = held.get("shape", [hits, COLUMNS])
    if shape != [hits, COLUMNS]:
        shown = str(shape)[:60]
        raise InputError(f"{where} has the shape {shown} but {values.size} numbers; expected [N, {COLUMNS}]")
    if values.size % COLUMNS:
        raise InputError(f"{where} has {values.size} numbers, which is not a multiple of {COLUMNS}")
    hits_found = values.reshape(-1, COLUMNS)
    finite = np.isfinite(hits_found).all(axis=1)
    if not finite.all():
        raise InputError(
            f"{where} has a NaN or an infinity in hit {np.argmin(finite)}; a hit is three finite numbers of single "
            "precision"
        )
    return hits_found


def _decoded(text: object, where: str) -> Float32:
    if not isinstance(text, str):
        raise InputError(f"{where}: b64 is not a string")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InputError(f"{where}: b64 is not valid base64: {error}") from error
    if len(data) % 4:
        raise InputError(f"{where}: b64 has {len(data)} bytes, which is not a multiple of 4 (float32)")
    return np.frombuffer(data, dtype="<f4").astype(np.float32)


def _numbers(content: object, where: str) -> Float32:
    """Return the numbers of a flat list or of a list of hits, flattened."""
    if not isinstance(content, list):
        raise InputError(f"{where} has neither content, a list of numbers, nor b64")
    nested = any(isinstance(part, list) for part in content)
    if nested:
        _require_rows(content, where)
    flat = [value for row in content for value in row] if nested else content
    for place, value in enumerate(flat):
        if type(value) not in (int, float):  # isinstance would accept True as an int
            raise InputError(f"{where}: {str(value)[:40]!r} in content, in hit {place // COLUMNS}, is not a number")
    try:
        with np.errstate(over="ignore"):  # 1e39 becomes an infinity and is refused later
            return np.array(flat, dtype=np.float32)
    except OverflowError as error:  # an integer of hundreds of digits
        raise InputError(f"{where}: content has a number that is not finite in single precision") from error


def _require_rows(content: list[object], where: str) -> None:
    """Raise InputError unless each element is a list of three: reshaping other rows would mix r, phi and z."""
    for number, row in enumerate(content):
        if not isinstance(row, list):
            raise InputError(f"{where}: row {number} is {str(row)[:40]!r}, among rows that are lists; {_ROWS}")
        if any(isinstance(value, list) for value in row):
            raise InputError(f"{where}: row {number} holds lists; {_ROWS}")
        if len(row) != COLUMNS:
            turned = len(content) == COLUMNS and len({len(one) for one in content if isinstance(one, list)}) == 1
            how = f" (is this [{COLUMNS}, N], with all r first? Transpose it)" if turned else ""
            raise InputError(f"{where}: row {number} has {len(row)} values, not {COLUMNS}{how}; {_ROWS}")
