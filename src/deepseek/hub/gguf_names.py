"""Where each Hugging Face tensor lies in a GGUF file, and what its conversion changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.hub.gguf_file import GGUFFile, GGUFTensor


@dataclass(frozen=True, slots=True)
class Source:
    """One Hugging Face tensor.

    Attributes:
        tensor: what holds it.
        shape: the Hugging Face shape.
        expert: the slice of a merged expert tensor, or None.
        rope_heads: heads whose rows were permuted for interleaved rotary pairs, or 0.
        plus_one: one was added to the values (Gemma's norms).
        value_up: for ``kv_b_proj`` stored in two halves: ``tensor`` is attn_k_b, this is attn_v_b.
    """

    tensor: GGUFTensor
    shape: tuple[int, ...]
    expert: int | None = None
    rope_heads: int = 0
    plus_one: bool = False
    value_up: GGUFTensor | None = None


_TOP = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output.weight": "lm_head.weight",
    "output_norm.weight": "model.norm.weight",
}
_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_q_a": "self_attn.q_a_proj",
    "attn_q_a_norm": "self_attn.q_a_layernorm",
    "attn_q_b": "self_attn.q_b_proj",
    "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
    "attn_kv_a_norm": "self_attn.kv_a_layernorm",
    "attn_kv_b": "self_attn.kv_b_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_shexp": "mlp.shared_experts.gate_proj",
    "ffn_up_shexp": "mlp.shared_experts.up_proj",
    "ffn_down_shexp": "mlp.shared_experts.down_proj",
}
_GEMMA_BLOCK = _BLOCK | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_EXPERTS = {"ffn_gate_exps": "gate_proj", "ffn_up_exps": "up_proj", "ffn_down_exps": "down_proj"}
_IN_CONFIG = {"rope_freqs.weight"}
_BLOCK_NAME = re.compile(r"blk\.(0|[1-9]\d{0,5})\.([a-z0-9_]+)\.(weight|bias)")


def locate(file: GGUFFile, config: Mapping[str, Any]) -> dict[str, Source]:
    """Hugging Face name -> source, for every tensor of ``file``. ``config`` is the translated one.

    Raises UnsupportedModelError for a tensor that has no place in these families, CheckpointError for shapes that
    contradict the config.
    """
    sources: dict[str, Source] = {}
    for tensor in file.tensors.values():
        if tensor.name in _IN_CONFIG:
            continue
        if tensor.name in _TOP:
            plus_one = config["model_type"] == "gemma3_text" and tensor.name == "output_norm.weight"
            sources[_TOP[tensor.name]] = Source(tensor, tensor.shape, plus_one=plus_one)
            continue
        match = _BLOCK_NAME.fullmatch(tensor.name)
        if match is None or int(match[1]) >= config["num_hidden_layers"]:
            raise UnsupportedModelError(f"{file.path}: the tensor {tensor.name!r} is not supported.")
        _locate_in_block(file, config, tensor, match, sources)
    return sources


def _locate_in_block(
    file: GGUFFile, config: Mapping[str, Any], tensor: GGUFTensor, match: re.Match[str], sources: dict[str, Source]
) -> None:
    layer, kind, suffix = match.groups()
    prefix = f"model.layers.{layer}."
    gemma = config["model_type"] == "gemma3_text"
    if kind == "exp_probs_b":
        sources[prefix + "mlp.gate.e_score_correction_bias"] = Source(tensor, tensor.shape)
    elif kind == "attn_k_b":
        sources[prefix + "self_attn.kv_b_proj.weight"] = _split_kv_b(file, config, tensor, layer)
    elif kind == "attn_v_b":
        if f"blk.{layer}.attn_k_b.weight" not in file.tensors:
            raise CheckpointError(f"{file.path}: {tensor.name!r} comes without its attn_k_b.")
    elif kind in _EXPERTS:
        experts = config.get("num_experts", config.get("n_routed_experts"))
        if len(tensor.shape) != 3 or tensor.shape[0] != experts:
            raise CheckpointError(f"{file.path}: {tensor.name!r} has shape {tensor.shape}, expected {experts} experts.")
        for expert in range(tensor.shape[0]):
            name = f"{prefix}mlp.experts.{expert}.{_EXPERTS[kind]}.{suffix}"
            sources[name] = Source(tensor, tensor.shape[1:], expert=expert)
    else:
        name = (_GEMMA_BLOCK if gemma else _BLOCK).get(kind, "")
        if not name:
            raise UnsupportedModelError(f"{file.path}: the tensor {tensor.name!r} is not supported.")
        heads = _rope_heads(file, config, tensor, kind)
        plus_one = gemma and name.endswith("norm") and suffix == "weight"
        sources[f"{prefix}{name}.{suffix}"] = Source(tensor, tensor.shape, rope_heads=heads, plus_one=plus_one)


def _rope_heads(file: GGUFFile, config: Mapping[str, Any], tensor: GGUFTensor, kind: str) -> int:
    """Conversion permutes the rows of Llama's query and key, so that pairs (i, i + half) become neighbours."""
    if config["model_type"] != "llama" or kind not in ("attn_q", "attn_k"):
        return 0
    heads: int = config["num_attention_heads" if kind == "attn_q" else "num_key_value_heads"]
    if tensor.shape[0] % (2 * heads):
        raise CheckpointError(f"{file.path}: {tensor.name!r} of shape {tensor.shape} has no {heads} even heads.")
    return heads


def _split_kv_b(file: GGUFFile, config: Mapping[str, Any], key_up: GGUFTensor, layer: str) -> Source:
    """attn_k_b [heads, rank, nope] (transposed) and attn_v_b [heads, v, rank] -> [heads * (nope + v), rank]."""
    value_up = file.tensors.get(f"blk.{layer}.attn_v_b.weight")
    if value_up is None:
        raise CheckpointError(f"{file.path}: {key_up.name!r} comes without its attn_v_b.")
    if f"blk.{layer}.attn_kv_b.weight" in file.tensors:
        raise CheckpointError(f"{file.path}: layer {layer} has both attn_kv_b and its halves.")
    heads, rank = config.get("num_attention_heads"), config.get("kv_lora_rank")
    nope, value_dim = config.get("qk_nope_head_dim"), config.get("v_head_dim")
    if key_up.shape != (heads, rank, nope) or value_up.shape != (heads, value_dim, rank):
        raise CheckpointError(
            f"{file.path}: {key_up.name!r} has shape {key_up.shape} and {value_up.name!r} {value_up.shape}, "
            f"expected {(heads, rank, nope)} and {(heads, value_dim, rank)}."
        )
    rows = key_up.shape[0] * (key_up.shape[2] + value_up.shape[1])
    return Source(key_up, (rows, key_up.shape[1]), value_up=value_up)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a Hugging Face tensor goes in a GGUF file.

    Attributes:
        name: of the GGUF tensor.
        expert: the slice of a merged expert tensor, or None.
        rope_heads, plus_one: as in :class:`Source`.
    """

    name: str
    expert: int | None = None
    rope_heads: int = 0
    plus_one: bool = False


_PARTS = re.compile(r"model\.layers\.(\d+)\.(.+)\.(weight|bias)")
_EXPERT = re.compile(r"mlp\.experts\.(\d+)\.(gate_proj|up_proj|down_proj)")


def place_of(name: str, config: Mapping[str, Any]) -> Place | None:
    """The reverse of :func:`locate`: where ``name`` of a model with this config goes; None if it has no place."""
    gemma = config["model_type"] == "gemma3_text"
    for theirs, ours in _TOP.items():
        if name == ours:
            return Place(theirs, plus_one=gemma and theirs == "output_norm.weight")
    match = _PARTS.fullmatch(name)
    if match is None:
        return None
    layer, part, suffix = match.groups()
    if expert := _EXPERT.fullmatch(part):
        kind = next(kind for kind, ours in _EXPERTS.items() if ours == expert[2])
        return Place(f"blk.{layer}.{kind}.{suffix}", expert=int(expert[1]))
    kind = next((kind for kind, ours in (_GEMMA_BLOCK if gemma else _BLOCK).items() if ours == part), "")
    if not kind:
        return None
    heads = 0
    if config["model_type"] == "llama" and kind in ("attn_q", "attn_k"):
        every = config["num_attention_heads"]
        heads = every if kind == "attn_q" else config.get("num_key_value_heads") or every
    plus_one = gemma and part.endswith("norm") and suffix == "weight"
    return Place(f"blk.{layer}.{kind}.{suffix}", rope_heads=heads, plus_one=plus_one)
