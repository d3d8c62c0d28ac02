"""A checkpoint as a GGUF file: one tensor after another, so that memory holds the largest of them and no more.

The header is written first and read back by our own reader, which must see the same model; then the weights go to the
places that it names.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

from deepseek.errors import CheckpointError, ConfigurationError, UnsupportedModelError
from deepseek.export.gguf_metadata import architecture_name, config_metadata, rope_factors, same_model
from deepseek.hub.checkpoint import Checkpoint, RawTensor
from deepseek.hub.gguf_checkpoint import GGUFCheckpoint
from deepseek.hub.gguf_file import BLOCK_TYPES, GGUFFile
from deepseek.hub.gguf_names import Place, place_of
from deepseek.hub.output import check_space
from deepseek.models.registry import parse_config
from deepseek.quant.plan import HEAD
from deepseek.tokenizer.to_gguf import tokenizer_metadata

KINDS = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
"""Name of a precision -> the type of its matrices."""

_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32, "Q8_0": 7}
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_BLOCKS = {block.name: block for block in BLOCK_TYPES.values()}
_NOT_TAKEN = ("split.", "quantize.", "general.alignment", "general.file_type", "general.quantization_version")
_INV_FREQ = ".rotary_emb.inv_freq"
_ALIGNMENT = 32
_CHUNK = 1 << 22
"""Values that are converted at a time."""


@dataclass(frozen=True)
class _Stored:
    """One tensor of the file.

    Attributes:
        sources: the Hugging Face tensors that it holds, one after another.
        raw: their blocks are copied as the checkpoint stores them.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    sources: tuple[tuple[str, Place], ...]
    raw: bool = False

    @property
    def nbytes(self) -> int:
        block = _BLOCKS[self.type]
        return math.prod(self.shape) // block.elements * block.size


def write_gguf(checkpoint: Checkpoint, source: Path, name: str, path: Path, kind: str) -> None:
    """Write ``checkpoint`` to the file ``path``.

    Args:
        source: the folder or GGUF file that the tokenizer is from; of a GGUF file all metadata are taken over.
        name: of the model.
        kind: a key of :data:`KINDS`, the precision of matrices; vectors and routers are F32. With ``q8_0`` blocks that
            the checkpoint stores are copied where they are no larger.

    Raises UnsupportedModelError, TokenizerError for a model that GGUF has no words for, CheckpointError for values that
    are no numbers or out of the type's range, DiskSpaceError before anything is written, OSError.
    """
    if kind not in KINDS:
        raise ConfigurationError(f"matrices of a GGUF file can be {', '.join(KINDS)}, not {kind!r}.")
    parsed = parse_config(checkpoint.config)
    architecture = architecture_name(parsed)
    factors = rope_factors(parsed)
    stored = _plan(checkpoint, KINDS[kind])
    check_space(path.parent, sum(tensor.nbytes for tensor in stored))
    metadata = _metadata(parsed, source, name)
    _write_header(path, architecture, metadata, stored, factors, _FILE_TYPES[KINDS[kind]])
    places = _read_back(path, parsed)
    with path.open("r+b") as file:
        for tensor in stored:
            file.seek(places[tensor.name])
            for piece in _bytes(checkpoint, tensor):
                file.write(piece)
        file.flush()
        os.fsync(file.fileno())


def _plan(checkpoint: Checkpoint, matrix: str) -> list[_Stored]:
    config = checkpoint.config
    tied = config.get("tie_word_embeddings") is True
    grouped: dict[str, list[tuple[str, Place]]] = {}
    for name in checkpoint.shapes:
        if (tied and name == HEAD) or name.endswith(_INV_FREQ):
            continue
        place = place_of(name, config)
        if place is None:
            raise UnsupportedModelError(f"the tensor {name!r} has no place in a GGUF file: write safetensors.")
        grouped.setdefault(place.name, []).append((name, place))
    return [_stored(checkpoint, name, sources, matrix) for name, sources in grouped.items()]


def _stored(checkpoint: Checkpoint, name: str, sources: list[tuple[str, Place]], matrix: str) -> _Stored:
    sources.sort(key=lambda source: source[1].expert or 0)
    shape = checkpoint.shapes[sources[0][0]]
    if sources[0][1].expert is not None:
        shape = (len(sources), *shape)
    if len(shape) == 1 or name.endswith(("ffn_gate_inp.weight", "exp_probs_b.bias")):
        return _Stored(name, shape, "F32", tuple(sources))
    if matrix == "Q8_0":
        types = {raw.type if isinstance(raw, RawTensor) else "" for raw in map(checkpoint.quantized, dict(sources))}
        kept = types.pop() if len(types) == 1 else ""
        if kept and shape[-1] % _BLOCKS[kept].elements == 0 and _density(kept) <= _density(matrix):
            return _Stored(name, shape, kept, tuple(sources), raw=True)
        if shape[-1] % _BLOCKS[matrix].elements:
            matrix = "F16"
    return _Stored(name, shape, matrix, tuple(sources))


def _density(kind: str) -> float:
    """Bytes per value."""
    return _BLOCKS[kind].size / _BLOCKS[kind].elements


def _metadata(parsed: Any, source: Path, name: str) -> dict[str, tuple[Any, int | None, int | None]]:
    """Key -> (value, type, type of elements); a type of None is that of the Python value."""
    if source.is_dir():
        base = parsed.dense if hasattr(parsed, "dense") else parsed
        keys = config_metadata(parsed, name) | tokenizer_metadata(source, base.vocab_size)
        return {key: (value, None, None) for key, value in keys.items()}
    file = GGUFFile(source)
    try:
        return {
            key: (value, *file.types[key])
            for key, value in file.metadata.items()
            if not key.startswith(_NOT_TAKEN) and value != []
        }
    finally:
        file.close()


def _write_header(
    path: Path,
    architecture: str,
    metadata: Mapping[str, tuple[Any, int | None, int | None]],
    stored: list[_Stored],
    factors: Tensor | None,
    file_type: int,
) -> None:
    """Everything before the weights; the file gets its whole length."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, (value, kind, element) in metadata.items():
        if key == "general.architecture":
            continue
        of_value = gguf.GGUFValueType.get_type(value) if kind is None else gguf.GGUFValueType(kind)
        if kind is None and type(value) is int:
            of_value = gguf.GGUFValueType.UINT32
        writer.add_key_value(key, value, of_value, None if element is None else gguf.GGUFValueType(element))
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    sizes = []
    if factors is not None:
        writer.add_tensor_info("rope_freqs.weight", tuple(factors.shape), np.dtype(np.float32), 4 * len(factors))
        sizes.append(4 * len(factors))
    for tensor in stored:
        raw_type = gguf.GGMLQuantizationType[tensor.type]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_type)
        sizes.append(tensor.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    start = _aligned(path.stat().st_size)
    os.truncate(path, start + sum(map(_aligned, sizes)))
    if factors is not None:  # the first tensor; readers take it for a part of the config
        with path.open("r+b") as file:
            file.seek(start)
            file.write(factors.float().numpy().tobytes())


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _read_back(path: Path, parsed: Any) -> dict[str, int]:
    """Tensor -> its place, bytes from the start of the file. Raises UnsupportedModelError if the file would be read as
    another model."""
    checkpoint = GGUFCheckpoint(path)
    try:
        if not same_model(parsed, back := parse_config(checkpoint.config)):
            raise UnsupportedModelError(
                f"GGUF files cannot say all of this model's config (it would be read as {back}, and is {parsed}): "
                "write safetensors."
            )
    finally:
        checkpoint.close()
    file = GGUFFile(path)
    try:
        return {name: tensor.offset for name, tensor in file.tensors.items()}
    finally:
        file.close()


def _bytes(checkpoint: Checkpoint, tensor: _Stored) -> Iterator[bytes]:
    for name, place in tensor.sources:
        if tensor.raw:
            raw = checkpoint.quantized(name)
            assert isinstance(raw, RawTensor)
            yield interleaved(raw.data, place.rope_heads).contiguous().numpy().tobytes()
            continue
        values = checkpoint.load(name, torch.float32 if place.plus_one else _TORCH.get(tensor.type, torch.float32))
        if place.plus_one:
            values = values + 1.0
        yield from _converted(interleaved(values, place.rope_heads), tensor.type, name)


def interleaved(rows: Tensor, heads: int) -> Tensor:
    """Rows of a query or key in the order of rotary pairs, as Llama's conversion to GGUF has them."""
    if not heads:
        return rows
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).transpose(1, 2).reshape(rows.shape)


def _converted(values: Tensor, kind: str, name: str) -> Iterator[bytes]:
    rows = values.reshape(-1, values.shape[-1])
    step = max(1, _CHUNK // rows.shape[1])
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step]
        if kind in _TORCH:
            chunk = chunk.to(_TORCH[kind])
        if not bool(torch.isfinite(chunk).all()):
            raise CheckpointError(f"tensor {name!r} holds NaN, infinity, or values beyond the range of {kind}.")
        if kind in _TORCH:
            yield chunk.contiguous().view(torch.uint8).numpy().tobytes()
        else:
            yield gguf.quants.quantize(chunk.float().numpy(), gguf.GGMLQuantizationType[kind]).tobytes()
