"""A decoder as its device runs it best."""

from __future__ import annotations

from deepseek.kernels.ops import Ops
from deepseek.models.base import Model
from deepseek.models.decoder import Decoder


def on_device(model: Decoder, ops: Ops) -> Model:
    """On a GPU with Triton's kernels, in CUDA graphs; else the model itself."""
    if model.device.type != "cuda" or any(binding.backend != "triton" for binding in ops.bindings.values()):
        return model
    from deepseek.models.graphed import GraphedDecoder, cuda_recorder

    return GraphedDecoder(model, cuda_recorder(model.device))
