"""A LoRA adapter as a change of weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepseek.errors import CheckpointError, ConfigurationError
from deepseek.hub.checkpoint import Checkpoint, QuantizedMatrix, RawTensor
from deepseek.quant.plan import EMBEDDING, HEAD
from deepseek_tune.adapters import CONFIG, PREFIX, read_config, read_weights, refuse_mismatches

_PROMPTS = {"P_TUNING": "P-Tuning", "PROMPT_TUNING": "prompt tuning", "PREFIX_TUNING": "prefix tuning"}


@dataclass(frozen=True)
class Change:
    """What an adapter does to one matrix.

    Attributes:
        down, up: A [rank, inputs] and B [outputs, rank].
        magnitude: of DoRA, [outputs]; else None.
    """

    down: Tensor
    up: Tensor
    magnitude: Tensor | None


class LoRAAdapter:
    """The adapter in ``folder``, which fits the matrices of a base model.

    Attributes:
        base_name: the model it was made for, as its config says it; None if it does not.
        rank, scale: of all its matrices. The change is ``scale * B @ A``.
        changes: name of a weight (``model.layers.0.self_attn.q_proj.weight``) -> its change.

    Raises CheckpointError for files that are no LoRA adapter, and, all at once, for everything in which it does not fit
    ``shapes``; ConfigurationError for adapters that cannot be merged.
    """

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        refuse_prompts(folder)
        config = read_config(folder)
        if config.get("fan_in_fan_out"):
            raise CheckpointError(f"{folder / CONFIG}: fan_in_fan_out is not supported.")
        self.folder = folder
        self.base_name: str | None = config.get("base_model_name_or_path") or None
        self.rank: int = config["r"]
        self.dora: bool = config["use_dora"]
        self.scale = config["lora_alpha"] / (math.sqrt(self.rank) if config["use_rslora"] else self.rank)
        weights = read_weights(folder)
        linear = {
            name.removesuffix(".weight"): (shape[0], shape[1])
            for name, shape in shapes.items()
            if len(shape) == 2 and name.endswith(".weight") and name not in (EMBEDDING, HEAD)
        }
        refuse_mismatches(folder, config, {name: tuple(weight.shape) for name, weight in weights.items()}, linear)
        self.changes = _changes(weights)
        if missing := _missing(self.changes, config, linear, self.dora):
            raise CheckpointError(f"the adapter in {folder} is not complete:\n" + "\n".join(missing[:20]))

    def merged(self, name: str, weight: Tensor) -> Tensor:
        """``weight`` fp32 [outputs, inputs] with the change of ``name`` in it, where there is one.

        DoRA (Liu et al., 2024, arXiv:2402.09353) gives each row of the changed matrix its own length.
        """
        change = self.changes.get(name)
        if change is None:
            return weight
        result = torch.addmm(weight, change.up, change.down, alpha=self.scale)
        if change.magnitude is not None:
            result *= (change.magnitude / torch.linalg.vector_norm(result, dim=1))[:, None]
        return result


def refuse_prompts(folder: Path) -> None:
    """Raises ConfigurationError for an adapter that is a prompt: there is no weight that it could become a part of."""
    try:
        config = json.loads((folder / CONFIG).read_bytes())
    except (OSError, ValueError):
        return  # who reads the config says what is wrong with it
    kind = config.get("peft_type") if isinstance(config, dict) else None
    if kind in _PROMPTS:
        raise ConfigurationError(
            f"{folder} was made by {_PROMPTS[str(kind)]}: it stands before the prompt and changes no weight, so it "
            f"cannot be merged. Serve it as it is, as a cached prefix: deepseek serve BASE --adapter "
            f"{folder.name}={folder}"
        )


def _changes(weights: Mapping[str, Tensor]) -> dict[str, Change]:
    parts: dict[str, dict[str, Tensor]] = {}
    for name, weight in weights.items():
        layer, _, part = name.removeprefix(PREFIX).partition(".lora_")
        parts.setdefault(f"{layer}.weight", {})[part] = weight.float()
    empty = torch.empty(0)
    return {
        name: Change(found.get("A.weight", empty), found.get("B.weight", empty), found.get("magnitude_vector"))
        for name, found in parts.items()
    }


def _missing(
    changes: Mapping[str, Change], config: Mapping[str, Any], linear: Mapping[str, tuple[int, int]], dora: bool
) -> list[str]:
    """Weights that an adapter with this config must have and has not: one line each."""
    lines = []
    for name, change in sorted(changes.items()):
        there = {
            "A": change.down.numel(),
            "B": change.up.numel(),
            "magnitude": not dora or change.magnitude is not None,
        }
        lines += [f"  {name.removesuffix('.weight')}: no {part}" for part, found in there.items() if not found]
    if not config.get("exclude_modules"):
        ends = tuple(f".{target}" for target in config["target_modules"])
        lines += [
            f"  {layer}: no weights, and target_modules names it"
            for layer in linear
            if layer.endswith(ends) and ".experts." not in layer and f"{layer}.weight" not in changes
        ]
    return lines


class MergedCheckpoint:
    """Implements :class:`deepseek.hub.checkpoint.Checkpoint`: ``base`` with ``adapter`` in its weights, each matrix
    merged in fp32 when it is loaded."""

    def __init__(self, base: Checkpoint, adapter: LoRAAdapter) -> None:
        self._base, self._adapter = base, adapter
        self.config: Mapping[str, Any] = base.config
        self.shapes: Mapping[str, tuple[int, ...]] = base.shapes

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        if name not in self._adapter.changes:
            return self._base.load(name, dtype)
        return self._adapter.merged(name, self._base.load(name, torch.float32)).to(dtype)

    def quantized(self, name: str) -> RawTensor | QuantizedMatrix | None:
        return None if name in self._adapter.changes else self._base.quantized(name)

    def close(self) -> None:
        self._base.close()
