"""Writing the compressed-tensors layout, which :mod:`deepseek.hub.compressed_tensors` and other engines read.

A tied embedding is one INT8 matrix of both modules: ``lm_head.weight`` is left out, as in every tied checkpoint, but
its scales are written for both, because a reader that quantizes module by module looks for them under both names.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.hub.compressed_tensors import METHOD, pack_int4
from deepseek.quant.plan import EMBEDDING, HEAD, ROUTER, Plan, Shapes
from deepseek.quant.schemes import GROUP, int8_group


def stored_tensors(name: str, matrix: QuantizedMatrix, scale_dtype: torch.dtype, *, tied: bool) -> dict[str, Tensor]:
    """What is written for ``name`` (``M.weight``); ``matrix`` is of one of our schemes."""
    module = name.removesuffix(".weight")
    scale = matrix.scale.to(scale_dtype)
    if matrix.bits == 8:
        tensors = {name: matrix.q, f"{module}.weight_scale": scale}
        if tied and name == EMBEDDING:
            tensors[HEAD.removesuffix("weight") + "weight_scale"] = scale.clone()
        return tensors
    assert matrix.minimum is not None
    zero = (matrix.minimum / matrix.scale).round().to(torch.uint8)
    return {
        f"{module}.weight_packed": pack_int4(matrix.q),
        f"{module}.weight_scale": scale,
        f"{module}.weight_zero_point": pack_int4(zero.T).T.contiguous(),
        f"{module}.weight_shape": torch.tensor(matrix.shape, dtype=torch.int64),
    }


def quantization_config(plan: Plan, shapes: Shapes, *, tied: bool) -> dict[str, Any]:
    """The ``quantization_config`` of config.json for a model quantized by ``plan``.

    INT8 layers get INT8 inputs, with a scale for each 32 of them, as this engine computes (a scale for a whole token
    would drown small values beside the few huge ones that language models have); a scale per token where a width is
    no multiple of 32.
    """
    modules = {bits: [] for bits in (4, 8, 16)}  # type: dict[int, list[str]]
    for name, bits in plan.bits.items():
        modules[bits].append(name.removesuffix(".weight"))
    vocabulary = [EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight")]
    by_row = [name for name in vocabulary if name in modules[8] or (tied and vocabulary[0] in modules[8])]
    groups: dict[str, dict[str, Any]] = {}
    if by_row:  # ids go in, not activations; and logits deserve exact inputs
        groups["vocabulary"] = {"targets": by_row, **_int8(shapes[EMBEDDING][1], inputs=False)}
    kinds: dict[str, tuple[dict[str, Any], list[str]]] = {}
    for bits in (8, 4):
        for module in modules[bits]:
            if module not in vocabulary:
                kind = _INT4 if bits == 4 else _int8(shapes[f"{module}.weight"][1])
                kinds.setdefault(json.dumps(kind), (kind, []))[1].append(module)
    for index, (kind, names) in enumerate(sorted(kinds.values(), key=lambda found: len(found[1]))):
        # Named layers come first: a layer gets the first group that fits it.
        last = index == len(kinds) - 1
        groups[f"group_{index}"] = {"targets": ["Linear"] if last else names, **kind}
    ignore = [*modules[16], *([vocabulary[1]] if tied and vocabulary[0] in modules[16] else [])]
    if any(name.endswith(ROUTER) for name in plan.floating):
        ignore.append("re:.*mlp\\.gate$")
    formats = {group["format"] for group in groups.values()}
    return {
        "quant_method": METHOD,
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "config_groups": groups,
        "ignore": ignore,
    }


_INTEGERS: dict[str, Any] = {"type": "int", "dynamic": False}
_INT4: dict[str, Any] = {
    "weights": {"num_bits": 4, **_INTEGERS, "symmetric": False, "strategy": "group", "group_size": GROUP},
    "format": "pack-quantized",
}


def _int8(columns: int, *, inputs: bool = True) -> dict[str, Any]:
    """INT8 layers of that width; ``inputs`` False: those stay as they are."""
    strategy = _strategy(columns, int8_group(columns), "channel")
    weights = {"num_bits": 8, **_INTEGERS, "symmetric": True, **strategy}
    kind: dict[str, Any] = {"weights": weights, "format": "int-quantized"}
    if inputs:
        strategy = _strategy(columns, columns if columns % GROUP else GROUP, "token")
        kind["input_activations"] = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, **strategy}
    return kind


def _strategy(columns: int, group: int, whole: str) -> dict[str, Any]:
    return {"strategy": whole} if group == columns else {"strategy": "group", "group_size": group}
