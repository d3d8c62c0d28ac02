"""Reading the compressed-tensors layout: integer weights beside their scales, described in config.json.

Per quantized module ``M`` there is either ``M.weight`` (int8) and ``M.weight_scale`` (format ``int-quantized``), or
``M.weight_packed`` (int32, columns packed from the lowest bits up), ``M.weight_scale`` and ``M.weight_shape`` (format
``pack-quantized``, here 4 bits), both with ``M.weight_zero_point`` where they are asymmetric.
Layout: https://github.com/vllm-project/compressed-tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.hub.safetensors_file import TensorEntry

if TYPE_CHECKING:
    from torch import Tensor

METHOD = "compressed-tensors"
FORMATS = ("int-quantized", "naive-quantized", "pack-quantized")

PACKED = 8
"""4-bit integers in an int32."""

_PARTS = (".weight_packed", ".weight_scale", ".weight_zero_point", ".weight_shape")
_UNREAD = (".weight_g_idx", ".weight_global_scale", ".input_scale", ".input_zero_point", ".input_global_scale")
_SCALES = ("F16", "BF16", "F32")

ReadTensor = Callable[[str], "Tensor"]


@dataclass(frozen=True, slots=True)
class QuantizedEntry:
    """A quantized matrix of a file.

    Attributes:
        module: its name without ``.weight``.
        bits: 8 or 4.
        shape: rows and columns of the matrix.
        group: columns that share a scale.
        zero_point: whether there is a ``weight_zero_point``.
    """

    module: str
    bits: int
    shape: tuple[int, int]
    group: int
    zero_point: bool


def is_compressed(config: Mapping[str, Any]) -> bool:
    """Whether ``config.json`` says that its weights are in this layout."""
    found = config.get("quantization_config")
    return isinstance(found, Mapping) and found.get("quant_method") == METHOD


def check_config(settings: Mapping[str, Any], where: str) -> None:
    """Refuse, by name, what would change the computation and is not implemented. Raises UnsupportedModelError."""

    def refuse(key: str, value: Any, why: str) -> UnsupportedModelError:
        return UnsupportedModelError(
            f"{where}: quantization_config {key} = {str(value)[:80]!r} is not supported: {why}."
        )

    status = settings.get("quantization_status", "compressed")
    if status != "compressed":
        raise refuse("quantization_status", status, "only compressed checkpoints are read")
    for key in ("kv_cache_scheme", "transform_config", "sparsity_config"):
        value = settings.get(key)
        if value and not (isinstance(value, Mapping) and value.get("format") == "dense"):
            raise refuse(key, value, "it changes the computation")
    groups = settings.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise CheckpointError(f"{where}: quantization_config has no config_groups.")
    for name, group in groups.items():
        if not isinstance(group, Mapping) or not isinstance(group.get("weights"), Mapping):
            raise refuse(f"config_groups.{name}", group, "it does not describe weights")
        kind = group.get("format") or settings.get("format")
        if kind not in FORMATS:
            raise refuse(f"config_groups.{name}.format", kind, f"implemented: {', '.join(FORMATS)}")
        _check_group(f"config_groups.{name}", group, kind, refuse)


def _check_group(
    name: str, group: Mapping[str, Any], kind: str, refuse: Callable[[str, Any, str], UnsupportedModelError]
) -> None:
    weights = group["weights"]
    if weights.get("type", "int") != "int" or weights.get("num_bits", 8) not in (4, 8):
        found = f"{weights.get('type', 'int')}{weights.get('num_bits')}"
        raise refuse(f"{name}.weights", found, "only integers of 8 and 4 bits are implemented")
    if weights.get("num_bits", 8) == 8 and kind == "pack-quantized":
        raise refuse(f"{name}.format", kind, "packed integers of 8 bits are not implemented, int-quantized is")
    if weights.get("strategy") not in ("channel", "group", "tensor"):
        raise refuse(f"{name}.weights.strategy", weights.get("strategy"), "implemented: channel, group, tensor")
    if weights.get("actorder") not in (None, False, "weight", "static"):
        raise refuse(f"{name}.weights.actorder", weights["actorder"], "columns would be in another order")
    if weights.get("dynamic"):
        raise refuse(f"{name}.weights.dynamic", weights["dynamic"], "weights have stored scales")
    if group.get("output_activations"):
        raise refuse(f"{name}.output_activations", group["output_activations"], "outputs stay floating")
    inputs = group.get("input_activations")
    if inputs and not (isinstance(inputs, Mapping) and inputs.get("dynamic") is True):
        raise refuse(f"{name}.input_activations", inputs, "only dynamic quantization of activations is implemented")
    if inputs and (inputs.get("type", "int"), inputs.get("num_bits")) != ("int", 8):
        raise refuse(f"{name}.input_activations", inputs, "only 8-bit integers are implemented")


def find_quantized(entries: Mapping[str, TensorEntry], where: str) -> dict[str, QuantizedEntry]:
    """``M.weight`` -> what is stored for it, for every quantized matrix among the tensors of a checkpoint.

    Raises CheckpointError for parts that are missing or do not fit each other.
    """
    found: dict[str, QuantizedEntry] = {}
    for name in entries:
        for suffix in _UNREAD:
            if name.endswith(suffix):
                raise UnsupportedModelError(f"{where}: tensor {name!r} belongs to a scheme that is not implemented.")
        module, _, part = name.rpartition(".")
        if part == "weight_packed" or (part == "weight" and entries[name].dtype == "I8"):
            found[f"{module}.weight"] = _entry(module, entries, where)
    return found


def hidden_names(entries: Mapping[str, TensorEntry]) -> set[str]:
    """Tensors that are parts of quantized matrices and no weights by themselves."""
    return {name for name in entries if name.endswith(_PARTS)}


def _entry(module: str, entries: Mapping[str, TensorEntry], where: str) -> QuantizedEntry:
    def fail(what: str) -> CheckpointError:
        return CheckpointError(f"{where}: the quantized matrix {module!r} is damaged: {what}.")

    scale, zero = entries.get(f"{module}.weight_scale"), entries.get(f"{module}.weight_zero_point")
    if scale is None or scale.dtype not in _SCALES:
        raise fail("it has no floating weight_scale")
    packed = entries.get(f"{module}.weight_packed")
    stored = packed or entries[f"{module}.weight"]
    if len(stored.shape) != 2 or 0 in stored.shape:
        raise fail(f"its integers have the shape {list(stored.shape)}")
    rows, columns = stored.shape
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    one_for_all = scale.shape in ((), (1,), (1, 1))
    if not one_for_all and (len(scale.shape) not in (1, 2) or scale.shape[0] != rows or groups < 1):
        raise fail(f"weight_scale has the shape {list(scale.shape)} for {rows} rows")
    if packed is not None:
        if packed.dtype != "I32" or f"{module}.weight_shape" not in entries:
            raise fail("weight_packed is not I32, or weight_shape is missing")
        columns *= PACKED
    if columns % groups:
        raise fail(f"{groups} groups do not divide its {columns} columns")
    bits = 4 if packed is not None else 8
    return QuantizedEntry(module, bits, (rows, columns), columns // groups, zero is not None)


def read_quantized(entry: QuantizedEntry, read: ReadTensor, where: str) -> QuantizedMatrix:
    """The integers and scales of ``entry``; ``read`` gives a stored tensor by its name.

    Raises CheckpointError for parts that contradict each other, and for scales that are NaN, infinite or negative.
    """
    import torch

    def fail(what: str) -> CheckpointError:
        return CheckpointError(f"{where}: the quantized matrix {entry.module!r} is damaged: {what}.")

    rows, columns = entry.shape
    groups = columns // entry.group
    scale = read(f"{entry.module}.weight_scale").float()
    scale = scale.reshape(-1, groups).expand(rows, groups).contiguous()
    if not bool(torch.isfinite(scale).all()) or bool((scale < 0).any()):
        raise fail("a scale is NaN, infinite or negative")
    if entry.bits == 8:
        q = read(f"{entry.module}.weight")
        zero = read(f"{entry.module}.weight_zero_point") if entry.zero_point else None
        if zero is not None and (zero.dtype != torch.int8 or zero.numel() not in (1, rows * groups)):
            raise fail(f"weight_zero_point is {zero.dtype} of shape {list(zero.shape)}")
        minimum = None if zero is None else zero.float().reshape(-1, groups).expand(rows, groups) * scale
        return QuantizedMatrix(8, entry.group, q, scale, minimum)
    declared = read(f"{entry.module}.weight_shape").tolist()
    if declared != [rows, columns]:
        raise fail(f"weight_shape says {declared}, the packed integers are {[rows, columns]}")
    q = unpack_int4(read(f"{entry.module}.weight_packed"))
    if not entry.zero_point:  # stored with an offset of 8, which is the zero point of the symmetric kind
        return QuantizedMatrix(4, entry.group, q, scale, scale * 8.0)
    packed_zero = read(f"{entry.module}.weight_zero_point")
    if packed_zero.dtype != torch.int32 or tuple(packed_zero.shape) != (-(-rows // PACKED), groups):
        raise fail(f"weight_zero_point is {packed_zero.dtype} of shape {list(packed_zero.shape)}")
    zero = unpack_int4(packed_zero.T.contiguous()).T[:rows]
    return QuantizedMatrix(4, entry.group, q, scale, zero.float() * scale)


def unpack_int4(words: Tensor) -> Tensor:
    """int32 [rows, words] -> uint8 [rows, words * 8], 0 to 15, the lowest four bits of a word first."""
    import torch

    data = words.contiguous().view(torch.uint8)
    return torch.stack((data & 15, data >> 4), dim=-1).view(words.shape[0], -1)


def pack_int4(values: Tensor) -> Tensor:
    """The reverse: uint8 [rows, columns] -> int32 [rows, ceil(columns / 8)], padded with zeros."""
    import torch
    import torch.nn.functional as F

    padded = F.pad(values, (0, -values.shape[1] % PACKED))
    packed = padded[:, 0::2] | (padded[:, 1::2] << 4)
    return packed.reshape(-1).view(torch.int32).view(len(values), -1)  # flat: a single row may have any stride
