"""The header of a safetensors file, checked before anything is mapped.

Format: https://huggingface.co/docs/safetensors (8 bytes of header length, JSON, then the tensors without holes).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from deepseek.errors import CheckpointError

MAX_HEADER = 100_000_000  # the format's own limit
MAX_DIMS = 8
MAX_DIM = 1 << 48

DTYPE_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2, "I32": 4,
    "U32": 4, "F32": 4, "F64": 8, "I64": 8, "U64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """One tensor of a file: its stored type (``BF16``) and its shape."""

    dtype: str
    shape: tuple[int, ...]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Name -> entry for every tensor of the file.

    Raises CheckpointError naming file and tensor if the file is missing, truncated, or its header contradicts it.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) == 8 and length <= min(MAX_HEADER, size - 8):
                text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error
    if len(start) < 8 or length > size - 8:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file: its header claims {length} bytes, the file has {size}."
        )
    if length > MAX_HEADER:
        raise CheckpointError(f"{path} is not valid: its header of {length} bytes is over {MAX_HEADER}.")
    header = parse_json(text, str(path))
    header.pop("__metadata__", None)
    entries: dict[str, TensorEntry] = {}
    spans: list[tuple[int, int, str]] = []
    for name, fields in header.items():
        entry, begin, end = _entry(path, name, fields)
        entries[name] = entry
        spans.append((begin, end, name))
    _check_spans(path, spans, size - 8 - length)
    return entries


def parse_json(text: bytes, where: str) -> dict[str, Any]:
    """A JSON object without duplicate keys. Raises CheckpointError."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise ValueError("a key appears twice")
        return result

    try:
        value = json.loads(text.decode(), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deeply"
        raise CheckpointError(f"{where} does not hold valid JSON: {reason[:200]}. Download it again.") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{where} holds a JSON {type(value).__name__}, not an object.")
    return value


def _is_size(value: Any, limit: int) -> bool:
    return type(value) is int and 0 <= value <= limit


def _entry(path: Path, name: str, fields: Any) -> tuple[TensorEntry, int, int]:
    def fail(what: str) -> CheckpointError:
        return CheckpointError(f"{path}: the header entry of tensor {name[:200]!r} is wrong: {what}.")

    if not isinstance(fields, dict):
        raise fail("it is not an object")
    dtype, shape, offsets = fields.get("dtype"), fields.get("shape"), fields.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BYTES:
        raise fail(f"the dtype {str(dtype)[:40]!r} is unknown")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(_is_size(dim, MAX_DIM) for dim in shape):
        raise fail(f"the shape {str(shape)[:80]} is not a list of up to {MAX_DIMS} sizes")
    limit = 1 << 63
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_size(offset, limit) for offset in offsets):
        raise fail(f"data_offsets is {str(offsets)[:80]}, not two offsets")
    needed = prod(shape) * DTYPE_BYTES[dtype]
    if offsets[1] - offsets[0] != needed:
        raise fail(f"shape {shape} of {dtype} takes {needed} bytes, its offsets span {offsets[1] - offsets[0]}")
    return TensorEntry(dtype, tuple(shape)), offsets[0], offsets[1]


def _check_spans(path: Path, spans: list[tuple[int, int, str]], size: int) -> None:
    """The tensors must fill the data section from its start to its end."""
    position = 0
    for begin, end, name in sorted(spans):
        if end > size:
            raise CheckpointError(
                f"{path} is truncated: tensor {name[:200]!r} ends at byte {end} of the data, which has {size}. "
                "Download it again."
            )
        if begin != position:
            what = "overlaps the one before it" if begin < position else "leaves a hole before it"
            raise CheckpointError(f"{path} is damaged: tensor {name[:200]!r} {what} (bytes {begin} and {position}).")
        position = end
    if position != size:
        raise CheckpointError(f"{path} is damaged: {size - position} bytes follow the last tensor.")
