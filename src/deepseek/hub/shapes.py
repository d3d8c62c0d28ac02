"""Models of published shapes with random weights: for measuring speed and memory where the weights cannot be had.

``shape:NAME`` is such a model wherever a model's name is asked for. What it says means nothing; how fast it does so,
everything.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.errors import CheckpointError, ModelNotFoundError
from deepseek.hub.cache import cache_dir

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PREFIX = "shape:"
MARK = "random_weights.json"
"""The file that tells a folder of this kind."""

_QWEN: Mapping[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
}

# The configs that the publishers' repositories hold, without what changes nothing here.
SHAPES: Mapping[str, Mapping[str, Any]] = {
    "qwen2.5-0.5b": {
        **_QWEN,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "vocab_size": 151936,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "tie_word_embeddings": True,
    },
    "qwen2.5-7b": {
        **_QWEN,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "vocab_size": 152064,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "tie_word_embeddings": False,
    },
    "llama-3.1-8b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "vocab_size": 128256,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    },
    "deepseek-v2-lite": {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_size": 2048,
        "intermediate_size": 10944,
        "num_hidden_layers": 27,
        "vocab_size": 102400,
        "num_attention_heads": 16,
        "num_key_value_heads": 16,
        "tie_word_embeddings": False,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "num_experts_per_tok": 6,
        "moe_intermediate_size": 1408,
        "first_k_dense_replace": 1,
        "moe_layer_freq": 1,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "greedy",
        "scoring_func": "softmax",
        "norm_topk_prob": False,
        "routed_scaling_factor": 1.0,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000,
        "max_position_embeddings": 163840,
        "rope_scaling": {
            "type": "yarn",
            "factor": 40,
            "beta_fast": 32,
            "beta_slow": 1,
            "mscale": 0.707,
            "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096,
        },
    },
}


def shape_folder(name: str) -> Path:
    """The folder of ``shape:NAME``, made in the cache if it is not there. Raises ModelNotFoundError."""
    shape = name.removeprefix(PREFIX)
    if shape not in SHAPES:
        raise ModelNotFoundError(name, [PREFIX + known for known in SHAPES], "there is no such shape")
    folder = cache_dir() / "shapes" / shape
    wanted = {
        "config.json": json.dumps(SHAPES[shape]),
        "tokenizer.json": _byte_tokenizer(),
        MARK: json.dumps({"seed": 0}),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in wanted.items():
        path = folder / file
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            partial = path.with_name(f"{file}.{os.getpid()}")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)
    return folder


def _byte_tokenizer() -> str:
    """A tokenizer.json whose tokens are the 256 bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocab = {character: index for index, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer.to_str()


class RandomCheckpoint:
    """Weights that depend on their names only. Implements :class:`deepseek.hub.checkpoint.Checkpoint`.

    A matrix repeats a million random numbers, shifted from name to name, scaled so that activations neither vanish nor
    explode; norms are ones and biases zeros. That is made as fast as memory is written.
    """

    def __init__(self, folder: Path) -> None:
        try:
            self.config: Mapping[str, Any] = json.loads((folder / "config.json").read_bytes())
            self._seed = int(json.loads((folder / MARK).read_bytes())["seed"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder} is no folder of a model with random weights: {error}.") from error
        self.shapes: Mapping[str, tuple[int, ...]] = dict(_tensors(self.config))
        self._numbers: Tensor | None = None

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        import torch

        shape = self.shapes.get(name)
        if shape is None:
            raise CheckpointError(f"a model of this shape has no tensor {name!r}.")
        if len(shape) == 1:
            return (torch.zeros if name.endswith("bias") else torch.ones)(shape, dtype=dtype)
        if self._numbers is None:
            generator = torch.Generator().manual_seed(self._seed)
            self._numbers = torch.randn(2**20 - 3, generator=generator)  # no multiple of a row: no two rows are equal
        numbers = (self._numbers.roll(zlib.crc32(name.encode())) * shape[-1] ** -0.5).to(dtype)
        count = shape[0] * shape[1]
        return torch.cat([numbers] * -(-count // len(numbers)))[:count].view(shape)

    def quantized(self, name: str) -> None:
        """Nothing: weights are floats."""

    def close(self) -> None:
        self._numbers = None


Shapes = dict[str, tuple[int, ...]]


def _tensors(config: Mapping[str, Any]) -> Shapes:
    """Names and shapes of all tensors."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    found: Shapes = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = (vocab, hidden)
    for index in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{index}"
        found[f"{prefix}.input_layernorm.weight"] = found[f"{prefix}.post_attention_layernorm.weight"] = (hidden,)
        attention = _latent_attention(config) if "kv_lora_rank" in config else _attention(config)
        found |= {f"{prefix}.self_attn.{name}": shape for name, shape in attention.items()}
        dense = index < config.get("first_k_dense_replace", config["num_hidden_layers"])
        inner = _mlp(hidden, config["intermediate_size"]) if dense else _experts(config)
        found |= {f"{prefix}.mlp.{name}": shape for name, shape in inner.items()}
    return found


def _attention(config: Mapping[str, Any]) -> Shapes:
    hidden, heads, kv_heads = (
        config[f"{key}"] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads")
    )
    query, key = hidden, hidden // heads * kv_heads
    found: Shapes = {"q_proj.weight": (query, hidden), "k_proj.weight": (key, hidden), "v_proj.weight": (key, hidden)}
    if config["model_type"] == "qwen2":
        found |= {"q_proj.bias": (query,), "k_proj.bias": (key,), "v_proj.bias": (key,)}
    return found | {"o_proj.weight": (hidden, query)}


def _latent_attention(config: Mapping[str, Any]) -> Shapes:
    hidden, heads, rank = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    return {
        "q_proj.weight": (heads * (nope + rope), hidden),
        "kv_a_proj_with_mqa.weight": (rank + rope, hidden),
        "kv_a_layernorm.weight": (rank,),
        "kv_b_proj.weight": (heads * (nope + value), rank),
        "o_proj.weight": (hidden, heads * value),
    }


def _mlp(hidden: int, inner: int) -> Shapes:
    return {
        "gate_proj.weight": (inner, hidden),
        "up_proj.weight": (inner, hidden),
        "down_proj.weight": (hidden, inner),
    }


def _experts(config: Mapping[str, Any]) -> Shapes:
    hidden, inner = config["hidden_size"], config["moe_intermediate_size"]
    found: Shapes = {"gate.weight": (config["n_routed_experts"], hidden)}
    for expert in range(config["n_routed_experts"]):
        found |= {f"experts.{expert}.{name}": shape for name, shape in _mlp(hidden, inner).items()}
    shared = _mlp(hidden, inner * config["n_shared_experts"])
    return found | {f"shared_experts.{name}": shape for name, shape in shared.items()}
