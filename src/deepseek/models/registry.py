"""From a checkpoint to a model: which family it is, and building it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from deepseek.errors import BackendUnavailableError, CheckpointError, UnsupportedModelError
from deepseek.hub.checkpoint import Checkpoint
from deepseek.kernels.ops import Ops
from deepseek.kernels.registry import bind
from deepseek.models.decoder import Decoder
from deepseek.models.deepseek import build_deepseek, parse_deepseek_v2, parse_deepseek_v3
from deepseek.models.gemma import build_gemma3, parse_gemma3
from deepseek.models.gpu_weights import QuantizedWeights
from deepseek.models.llama import build_dense, parse_llama
from deepseek.models.native import NativeDecoder, check_cache_dtype, native_obstacle
from deepseek.models.native_weights import NativeWeights
from deepseek.models.qwen import build_qwen3_moe, parse_qwen2, parse_qwen3, parse_qwen3_moe
from deepseek.models.weights import LoadProgress, WeightSource


@dataclass(frozen=True)
class Family:
    """How one architecture's config is read and its model built."""

    parse: Callable[[Mapping[str, Any]], Any]
    build: Callable[[Any, WeightSource, Ops], Decoder]


FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(parse_llama, build_dense),
    "Qwen2ForCausalLM": Family(parse_qwen2, build_dense),
    "Qwen3ForCausalLM": Family(parse_qwen3, build_dense),
    "Qwen3MoeForCausalLM": Family(parse_qwen3_moe, build_qwen3_moe),
    "Gemma3ForCausalLM": Family(parse_gemma3, build_gemma3),
    "DeepseekV2ForCausalLM": Family(parse_deepseek_v2, build_deepseek),
    "DeepseekV3ForCausalLM": Family(parse_deepseek_v3, build_deepseek),
}

# For configs without ``architectures``.
MODEL_TYPES: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "deepseek_v2": "DeepseekV2ForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
}


def architecture_of(config: Mapping[str, Any]) -> str:
    """The architecture a config names. Raises UnsupportedModelError, naming it, when it is not implemented."""
    names = config.get("architectures") or []
    model_type = config.get("model_type")
    if not names and isinstance(model_type, str) and model_type in MODEL_TYPES:
        return MODEL_TYPES[model_type]
    if not names and model_type is None:
        raise CheckpointError("the checkpoint's config names neither 'architectures' nor 'model_type'.")
    for name in names:
        if (whole := re.sub("Model$", "ForCausalLM", str(name))) in FAMILIES:  # saved without its head, tied or not
            return whole
    unknown = ", ".join(map(str, names)) or str(model_type)
    raise UnsupportedModelError(f"architecture {unknown} is not supported; there are: {', '.join(FAMILIES)}.")


def parse_config(config: Mapping[str, Any]) -> Any:
    """A family's frozen config. Raises UnsupportedModelError for an architecture or key that is not implemented, and
    CheckpointError for a key that is missing or senseless."""
    return FAMILIES[architecture_of(config)].parse(config)


def load_model(
    checkpoint: Checkpoint,
    *,
    ops: Ops,
    dtype: torch.dtype,
    device: torch.device | str,
    bits: int | None = None,
    kv_dtype: str = "auto",
    indexed: bool = False,
    progress: LoadProgress | None = None,
) -> Decoder:
    """Build the checkpoint's model with weights of ``dtype`` on ``device``, or with matrices of 8 or 4 ``bits``, for
    which ``ops`` must be Triton's; its caches are of ``dtype``, or INT8 as ``kv_dtype`` says, and ``indexed`` for
    sparse attention. ``progress`` hears
    (tensors read, all tensors).

    Raises UnsupportedModelError (architecture, config key) and CheckpointError (tensor missing, misshapen, unused or
    not finite), naming what is at fault.
    """
    family = FAMILIES[architecture_of(checkpoint.config)]
    config = family.parse(checkpoint.config)
    device = torch.device(device)
    source = (
        WeightSource(checkpoint, dtype, device, ops.pack_linear, progress)
        if bits is None
        else QuantizedWeights(checkpoint, dtype, device, bits, progress)
    )
    decoder = family.build(config, source, ops)
    decoder.set_cache_dtype(kv_dtype)
    decoder.sparse = indexed
    return decoder


def load_native_model(
    checkpoint: Checkpoint,
    *,
    scheme: str,
    kv_dtype: str,
    threads: int,
    isa: str = "auto",
    indexed: bool = False,
    progress: LoadProgress | None = None,
) -> NativeDecoder:
    """Build the checkpoint's model for the native CPU kernels, with matrices as ``scheme`` says
    (:class:`deepseek.models.native_weights.NativeWeights`) and a cache of ``kv_dtype`` (fp16, int8), ``indexed`` for
    sparse attention.

    Raises as :func:`load_model`, BackendUnavailableError where native kernels cannot run, and ConfigurationError where
    the model has no cache of ``kv_dtype``.
    """
    family = FAMILIES[architecture_of(checkpoint.config)]
    config = family.parse(checkpoint.config)
    if (reason := native_obstacle(config)) is not None:
        raise BackendUnavailableError(f"native kernels cannot run this model: {reason}.")
    check_cache_dtype(config, kv_dtype)
    decoder = family.build(config, NativeWeights(checkpoint, scheme, progress), bind("cpu"))
    return NativeDecoder(decoder, threads=threads, kv_dtype=kv_dtype, isa=isa, indexed=indexed)
