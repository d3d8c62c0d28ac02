"""Contexts longer than a model was trained for, by YaRN (Peng et al. 2023, arXiv:2309.00071).

A static factor changes the rotations of short texts too, so a model is stretched only as far as it is asked to be: its
factor is the context wanted over the context trained. Publishers document this for some families; for others it works
in the sense that there is an answer, and how good one depends on the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import Checkpoint, QuantizedMatrix, RawTensor
from deepseek.layers.rotary import RopeConfig
from deepseek.models.registry import architecture_of, parse_config

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Published:
    """What a family's publishers document: ``factor`` times ``context`` tokens, from training with ``context``."""

    context: int
    factor: float


_QWEN = Published(32_768, 4.0)
PUBLISHED: Mapping[str, Published] = {
    "Qwen2ForCausalLM": _QWEN,
    "Qwen3ForCausalLM": _QWEN,
    "Qwen3MoeForCausalLM": _QWEN,
}


class StretchedCheckpoint:
    """A checkpoint under another config."""

    def __init__(self, checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
        self.config = config
        self.shapes = checkpoint.shapes
        self._checkpoint = checkpoint

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        return self._checkpoint.load(name, dtype)

    def quantized(self, name: str) -> RawTensor | QuantizedMatrix | None:
        return self._checkpoint.quantized(name)

    def close(self) -> None:
        self._checkpoint.close()


def stretched(checkpoint: Checkpoint, name: str, max_context: int | None, how: str) -> Checkpoint:
    """The checkpoint as it is if its model takes ``max_context`` tokens, else with rotations that do.

    Args:
        checkpoint: of a decoder.
        name: of the model, for errors.
        max_context: tokens wanted; None takes what there is.
        how: ``auto``, ``none`` or ``yarn``, as in :class:`deepseek.config.EngineConfig`.

    Raises ConfigurationError where ``how`` forbids it, or the model has a scaling of its own that is not YaRN.
    """
    parsed = parse_config(checkpoint.config)
    trained: int = parsed.max_context
    if max_context is None or max_context <= trained:
        return checkpoint
    beyond = f"max_context {max_context} is beyond the {trained} tokens that {name} was made for"
    if how == "none":
        raise ConfigurationError(f"{beyond}, and rope_scaling is none. Choose a smaller max_context.")
    rope = _rope(parsed)
    published = PUBLISHED.get(architecture_of(checkpoint.config))
    original = (
        rope.original_context if rope.kind == "yarn" else min(trained, published.context if published else trained)
    )
    if how == "auto":
        documented = published is not None and rope.kind == "default"
        limit = int(original * published.factor) if published is not None and documented else trained
        if max_context > limit:
            most = f"at most {limit} are documented for its family" if documented else "no way further is documented"
            raise ConfigurationError(
                f"{beyond}, and {most}. Choose a smaller max_context, or stretch it all the same with rope_scaling "
                "yarn: the quality of answers beyond is then not promised."
            )
    if rope.kind not in ("default", "yarn"):
        raise ConfigurationError(
            f"{beyond}, with rope scaling {rope.kind!r} of its own, which YaRN cannot stretch further. Choose a "
            "smaller max_context."
        )
    return StretchedCheckpoint(checkpoint, _with_yarn(checkpoint.config, max_context, original))


def _rope(parsed: Any) -> RopeConfig:
    """The rotation of the layers that see the whole context."""
    rope: RopeConfig = parsed.global_rope if hasattr(parsed, "global_rope") else parsed.rope
    return rope


def _with_yarn(config: Mapping[str, Any], context: int, original: int) -> dict[str, Any]:
    """The config with YaRN from ``original`` to ``context`` tokens, where its other rope keys are."""
    changed = {**config, "max_position_embeddings": context}
    changed.pop("original_max_position_embeddings", None)
    parameters = config.get("rope_parameters") or {}
    flat = parameters and not config.get("rope_scaling") and "full_attention" not in parameters
    key = "rope_parameters" if flat else "rope_scaling"
    kept = {name: value for name, value in (config.get(key) or {}).items() if name != "type"}
    yarn = {"rope_type": "yarn", "factor": context / original, "original_max_position_embeddings": original}
    return {**changed, key: {**kept, **yarn}}
