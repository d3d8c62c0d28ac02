"""``adapter_config.json``: what of peft's settings changes a computation, and is it implemented?

Keys are those of peft 0.21. What is only needed for training is ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.adapters.adapter import Kind
from deepseek.errors import AdapterError, CheckpointError
from deepseek.hub.safetensors_checkpoint import read_json

CONFIG = "adapter_config.json"
KINDS: Mapping[str, Kind] = {
    "LORA": "lora",
    "P_TUNING": "prompt",
    "PROMPT_TUNING": "prompt",
    "PREFIX_TUNING": "prefix",
}
MAX_RANK = 1024
MAX_TOKENS = 4096  # before a prompt

# Settings of LoRA that change what is computed, and the values under which they do not.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "bias": ("none", None),
    "lora_bias": (False, None),
    "modules_to_save": (None, []),
    "fan_in_fan_out": (False, None),
    "layer_replication": (None, []),
    "megatron_config": (None,),
    "trainable_token_indices": (None, [], {}),
    "target_parameters": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_qalora": (False, None),
}


@dataclass(frozen=True)
class AdapterSettings:
    """The settings of one adapter.

    Attributes:
        kind: what it does.
        base_model: what it was trained on; may be empty.
        rank, alpha: of LoRA, and by patterns of layer names where they differ.
        rslora: the scale is alpha / sqrt(rank) (Kalajdzievski 2023, arXiv:2312.03732), else alpha / rank.
        dora: each layer has a vector of magnitudes too.
        tokens: that stand before a prompt.
    """

    kind: Kind
    base_model: str
    rank: int = 0
    alpha: float = 0.0
    rank_pattern: Mapping[str, int] | None = None
    alpha_pattern: Mapping[str, float] | None = None
    rslora: bool = False
    dora: bool = False
    tokens: int = 0

    def rank_of(self, layer: str) -> int:
        return int(_by_pattern(self.rank_pattern, layer, self.rank))

    def scale_of(self, layer: str) -> float:
        rank = self.rank_of(layer)
        alpha = float(_by_pattern(self.alpha_pattern, layer, self.alpha))
        return alpha / math.sqrt(rank) if self.rslora else alpha / rank


def read_settings(folder: Path) -> AdapterSettings:
    """The settings in ``folder``. Raises AdapterError with everything that cannot be served."""
    path = folder / CONFIG
    if not path.is_file():
        raise AdapterError(f"{folder} is not an adapter: it has no {CONFIG}. Give the folder that peft wrote.")
    try:
        raw = read_json(path)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    kind = KINDS.get(str(raw.get("peft_type")))
    if kind is None:
        raise AdapterError(
            f"{path}: peft_type {str(raw.get('peft_type'))[:40]!r} cannot be served; there are {', '.join(KINDS)}."
        )
    base = str(raw.get("base_model_name_or_path") or "")
    settings, problems = _read_lora(raw, base) if kind == "lora" else _read_tokens(raw, kind, base)
    if (task := raw.get("task_type")) not in (None, "CAUSAL_LM"):
        problems.append(f"task_type is {task!r}: only adapters of language models (CAUSAL_LM) are served")
    if problems:
        raise AdapterError(f"the adapter in {folder} cannot be served", problems)
    return settings


def _read_lora(raw: Mapping[str, Any], base: str) -> tuple[AdapterSettings, list[str]]:
    problems = [
        f"{key} is {str(raw[key])[:60]!r}: {_REASONS.get(key, 'that is not implemented')}"
        for key, neutral in _NEUTRAL.items()
        if key in raw and raw[key] not in neutral
    ]
    rank, alpha = raw.get("r"), raw.get("lora_alpha")
    if not _is_rank(rank):
        problems.append(f"r must be a whole number from 1 to {MAX_RANK}, not {str(rank)[:40]}")
    if not _is_number(alpha):
        problems.append(f"lora_alpha must be a number, not {str(alpha)[:40]}")
    ranks, alphas = raw.get("rank_pattern") or {}, raw.get("alpha_pattern") or {}
    for name, patterns, fits in (("rank_pattern", ranks, _is_rank), ("alpha_pattern", alphas, _is_number)):
        if not isinstance(patterns, dict) or not all(fits(value) for value in patterns.values()):
            problems.append(f"{name} must give a number for each pattern")
        elif bad := [pattern for pattern in patterns if not _compiles(pattern)]:
            problems.append(f"{name} has patterns that are no regular expressions: {', '.join(map(repr, bad))}")
    if problems:
        return AdapterSettings("lora", base), problems
    settings = AdapterSettings(
        kind="lora",
        base_model=base,
        rank=int(raw["r"]),
        alpha=float(raw["lora_alpha"]),
        rank_pattern=ranks,
        alpha_pattern=alphas,
        rslora=bool(raw.get("use_rslora")),
        dora=bool(raw.get("use_dora")),
    )
    return settings, problems


_REASONS = {
    "modules_to_save": "whole layers are not adapters; merge it first (deepseek tune merge)",
    "bias": "adapters that train biases are not served; merge it first (deepseek tune merge)",
}


def _read_tokens(raw: Mapping[str, Any], kind: Kind, base: str) -> tuple[AdapterSettings, list[str]]:
    tokens = raw.get("num_virtual_tokens")
    if type(tokens) is not int or not 1 <= tokens <= MAX_TOKENS:
        return AdapterSettings(kind, base), [f"num_virtual_tokens must be 1 to {MAX_TOKENS}, not {str(tokens)[:40]}"]
    if raw.get("num_transformer_submodules") not in (None, 1):
        return AdapterSettings(kind, base), ["num_transformer_submodules is not 1: the base is no decoder alone"]
    return AdapterSettings(kind, base, tokens=tokens), []


def _by_pattern(patterns: Mapping[str, Any] | None, layer: str, otherwise: Any) -> Any:
    """The value of the first pattern that a layer's name ends in, as peft looks it up."""
    for pattern, value in (patterns or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer):
            return value
    return otherwise


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_RANK


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True
