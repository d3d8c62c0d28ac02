"""One protocol over the weight formats: safetensors and GGUF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Checkpoint(Protocol):
    """A model's config and weights under Hugging Face names, whatever the file format.

    Attributes:
        config: the keys of a Hugging Face ``config.json`` (GGUF metadata is translated to it).
        shapes: tensor name (``model.layers.0.self_attn.q_proj.weight``) -> shape.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        """The tensor in row-major Hugging Face layout, dequantized and converted to ``dtype``, in fresh or mapped
        memory. Raises CheckpointError for a missing name."""
        ...

    def close(self) -> None:
        """Release the mapping."""
        ...
