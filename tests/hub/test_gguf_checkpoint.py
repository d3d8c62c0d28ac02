"""GGUF files of every family, written with the `gguf` package from known Hugging Face tensors and read back."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.hub.gguf_checkpoint import GGUFCheckpoint
from deepseek.hub.gguf_config import shortest
from deepseek.hub.open import open_checkpoint
from deepseek.models.registry import parse_config

HIDDEN, VOCAB, LAYERS = 64, 96, 2
COMMON = {
    "block_count": LAYERS,
    "context_length": 128,
    "embedding_length": HIDDEN,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.head_count_kv": 2,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 50000.0,
}


def write(
    path: Path, architecture: str, keys: dict, tensors: dict[str, np.ndarray], raw_types: dict | None = None
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in keys.items():
        name = name if "ggml" in name or name.startswith("split") else f"{architecture}.{name}"
        match value:
            case bool():
                writer.add_bool(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case str():
                writer.add_string(name, value)
            case list():
                writer.add_array(name, value)
    for name, array in tensors.items():
        kind = (raw_types or {}).get(name)
        writer.add_tensor(name, gguf.quants.quantize(array, kind) if kind is not None else array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(abs(hash(shape)) % 1000).standard_normal(shape, dtype=np.float32)


def top(rows: int = VOCAB) -> dict[str, np.ndarray]:
    return {"token_embd.weight": random(rows, HIDDEN), "output_norm.weight": random(HIDDEN)}


def dense_layers(head_dim: int = 16, *, norms: bool = False, biases: bool = False) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for layer in range(LAYERS):
        block = {
            "attn_norm.weight": random(HIDDEN),
            "attn_q.weight": random(4 * head_dim, HIDDEN),
            "attn_k.weight": random(2 * head_dim, HIDDEN),
            "attn_v.weight": random(2 * head_dim, HIDDEN),
            "attn_output.weight": random(HIDDEN, 4 * head_dim),
            "ffn_norm.weight": random(HIDDEN),
            "ffn_gate.weight": random(96, HIDDEN),
            "ffn_up.weight": random(96, HIDDEN),
            "ffn_down.weight": random(HIDDEN, 96),
        }
        if norms:
            block |= {"attn_q_norm.weight": random(head_dim), "attn_k_norm.weight": random(head_dim)}
        if biases:
            block |= {"attn_q.bias": random(4 * head_dim), "attn_k.bias": random(2 * head_dim)}
            block |= {"attn_v.bias": random(2 * head_dim)}
        tensors |= {f"blk.{layer}.{name}": array for name, array in block.items()}
    return tensors


def without(tensors: dict[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    return {name: array for name, array in tensors.items() if part not in name}


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """What the conversion of Llama checkpoints does to query and key: halves of a head become neighbours."""
    half = weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return half.swapaxes(1, 2).reshape(weights.shape)


def load(checkpoint: GGUFCheckpoint, name: str) -> np.ndarray:
    return checkpoint.load(name, torch.float32).numpy()


def test_llama_rows_come_back_in_hugging_face_order(tmp_path):
    tensors = top() | dense_layers(biases=True)
    stored = dict(tensors)
    for layer in range(LAYERS):
        for kind, heads in (("attn_q", 4), ("attn_k", 2)):
            for suffix in ("weight", "bias"):
                name = f"blk.{layer}.{kind}.{suffix}"
                stored[name] = permute(tensors[name], heads)
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", "llama", COMMON, stored))
    for ours, theirs in (("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output")):
        name = f"model.layers.1.self_attn.{ours}.weight"
        np.testing.assert_array_equal(load(checkpoint, name), tensors[f"blk.1.{theirs}.weight"])
        assert checkpoint.shapes[name] == tensors[f"blk.1.{theirs}.weight"].shape
    np.testing.assert_array_equal(
        load(checkpoint, "model.layers.0.self_attn.q_proj.bias"), tensors["blk.0.attn_q.bias"]
    )
    config = checkpoint.config
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (config["head_dim"], config["rope_theta"], config["rms_norm_eps"]) == (16, 50000.0, 1e-6)
    assert config["tie_word_embeddings"] is True
    assert config["attention_bias"] is True
    assert config["vocab_size"] == VOCAB


def test_permutation_of_quantized_rows_is_exact_and_raw_matches(tmp_path):
    tensors = top() | dense_layers()
    name, kind = "blk.0.attn_q.weight", gguf.GGMLQuantizationType.Q4_1
    stored = tensors | {name: permute(tensors[name], 4)}
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", "llama", COMMON, stored, {name: kind}))
    blocks = gguf.quants.quantize(tensors[name], kind)
    q_proj = "model.layers.0.self_attn.q_proj.weight"
    np.testing.assert_array_equal(load(checkpoint, q_proj), gguf.quants.dequantize(blocks, kind))
    raw = checkpoint.quantized(q_proj)
    assert raw is not None
    assert (raw.type, raw.shape) == ("Q4_1", (64, 64))
    np.testing.assert_array_equal(raw.data.numpy(), blocks)


def test_llama_rope_factors_and_scaling(tmp_path):
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    tensors = top() | dense_layers() | {"rope_freqs.weight": factors, "output.weight": random(VOCAB, HIDDEN)}
    config = GGUFCheckpoint(write(tmp_path / "a.gguf", "llama", COMMON, tensors)).config
    assert config["rope_factors"] == factors.tolist()
    assert config["tie_word_embeddings"] is False
    linear = COMMON | {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    config = GGUFCheckpoint(write(tmp_path / "b.gguf", "llama", linear, top() | dense_layers())).config
    assert config["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}
    assert "rope_factors" not in config


def test_qwen2_with_yarn(tmp_path):
    keys = COMMON | {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 4.0,
        "rope.scaling.original_context_length": 32,
        "tokenizer.ggml.eos_token_id": 7,
    }
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", "qwen2", keys, top() | dense_layers(biases=True)))
    assert checkpoint.config["architectures"] == ["Qwen2ForCausalLM"]
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    assert checkpoint.config["rope_scaling"] == expected
    assert checkpoint.config["eos_token_id"] == 7
    name = "model.layers.1.self_attn.q_proj."
    np.testing.assert_array_equal(load(checkpoint, name + "weight"), random(64, HIDDEN))  # not permuted
    np.testing.assert_array_equal(load(checkpoint, name + "bias"), random(64))
    parse_config(checkpoint.config)


def test_qwen3(tmp_path):
    keys = COMMON | {"attention.key_length": 32, "attention.value_length": 32}
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", "qwen3", keys, top() | dense_layers(32, norms=True)))
    assert checkpoint.config["architectures"] == ["Qwen3ForCausalLM"]
    assert checkpoint.config["head_dim"] == 32
    assert checkpoint.shapes["model.layers.0.self_attn.k_norm.weight"] == (32,)
    parse_config(checkpoint.config)


def test_qwen3_moe_experts_one_by_one(tmp_path):
    keys = COMMON | {"expert_count": 3, "expert_used_count": 2, "expert_feed_forward_length": 48}
    tensors = top() | without(dense_layers(norms=True), "ffn_")
    for layer in range(LAYERS):
        tensors |= {
            f"blk.{layer}.ffn_norm.weight": random(HIDDEN),
            f"blk.{layer}.ffn_gate_inp.weight": random(3, HIDDEN),
            f"blk.{layer}.ffn_gate_exps.weight": random(3, 48, HIDDEN),
            f"blk.{layer}.ffn_up_exps.weight": random(3, 48, HIDDEN),
            f"blk.{layer}.ffn_down_exps.weight": random(3, HIDDEN, 48),
        }
    q8 = gguf.GGMLQuantizationType.Q8_0
    path = write(tmp_path / "m.gguf", "qwen3moe", keys, tensors, {"blk.1.ffn_up_exps.weight": q8})
    checkpoint = GGUFCheckpoint(path)
    for expert in range(3):
        name = f"model.layers.0.mlp.experts.{expert}.down_proj.weight"
        np.testing.assert_array_equal(load(checkpoint, name), tensors["blk.0.ffn_down_exps.weight"][expert])
    blocks = gguf.quants.quantize(tensors["blk.1.ffn_up_exps.weight"], q8)
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    np.testing.assert_array_equal(load(checkpoint, name), gguf.quants.dequantize(blocks, q8)[2])
    raw = checkpoint.quantized(name)
    assert raw is not None
    np.testing.assert_array_equal(raw.data.numpy(), blocks[2])
    config = checkpoint.config
    assert (config["num_experts"], config["num_experts_per_tok"], config["norm_topk_prob"]) == (3, 2, True)
    parse_config(config)


def test_gemma3_norms_lose_their_one(tmp_path):
    keys = COMMON | {"attention.key_length": 16, "attention.value_length": 16, "attention.sliding_window": 32}
    tensors = top() | dense_layers(norms=True)
    for layer in range(LAYERS):
        tensors |= {f"blk.{layer}.post_{kind}_norm.weight": random(HIDDEN) for kind in ("attention", "ffw")}
    stored = {name: array + 1 if name.endswith("norm.weight") else array for name, array in tensors.items()}
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", "gemma3", keys, stored))
    names = {
        "model.norm": "output_norm",
        "model.layers.1.input_layernorm": "blk.1.attn_norm",
        "model.layers.1.post_attention_layernorm": "blk.1.post_attention_norm",
        "model.layers.1.pre_feedforward_layernorm": "blk.1.ffn_norm",
        "model.layers.1.post_feedforward_layernorm": "blk.1.post_ffw_norm",
        "model.layers.1.self_attn.q_norm": "blk.1.attn_q_norm",
    }
    for ours, theirs in names.items():
        np.testing.assert_array_equal(load(checkpoint, f"{ours}.weight"), stored[f"{theirs}.weight"] - np.float32(1))
        assert checkpoint.quantized(f"{ours}.weight") is None
    config = checkpoint.config
    assert config["layer_types"] == ["sliding_attention"] * 2
    assert (config["sliding_window"], config["rope_local_base_freq"], config["query_pre_attn_scalar"]) == (32, 1e4, 16)
    assert config["hidden_activation"] == "gelu_pytorch_tanh"
    parse_config(config)


MLA = {"heads": 4, "rank": 32, "nope": 16, "rope": 8, "value": 24}


def deepseek_keys(**extra) -> dict:
    keys = {name: value for name, value in COMMON.items() if name != "attention.head_count_kv"} | {
        "attention.head_count_kv": 4,
        "attention.kv_lora_rank": MLA["rank"],
        "attention.q_lora_rank": 40,
        "attention.key_length": MLA["nope"] + MLA["rope"],
        "attention.value_length": MLA["value"],
        "rope.dimension_count": MLA["rope"],
        "leading_dense_block_count": 1,
        "expert_count": 4,
        "expert_used_count": 2,
        "expert_shared_count": 1,
        "expert_feed_forward_length": 48,
        "expert_weights_scale": 2.5,
        "expert_weights_norm": True,
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": 40.0,
        "rope.scaling.original_context_length": 64,
        "rope.scaling.yarn_log_multiplier": 0.0707,
    }
    return keys | extra


def deepseek_tensors() -> dict[str, np.ndarray]:
    tensors = top() | {"output.weight": random(VOCAB, HIDDEN)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": random(HIDDEN),
            "attn_q_a": random(40, HIDDEN),
            "attn_q_a_norm": random(40),
            "attn_q_b": random(MLA["heads"] * (MLA["nope"] + MLA["rope"]), 40),
            "attn_kv_a_mqa": random(MLA["rank"] + MLA["rope"], HIDDEN),
            "attn_kv_a_norm": random(MLA["rank"]),
            "attn_kv_b": random(MLA["heads"] * (MLA["nope"] + MLA["value"]), MLA["rank"]),
            "attn_output": random(HIDDEN, MLA["heads"] * MLA["value"]),
            "ffn_norm": random(HIDDEN),
        }
        if layer == 0:
            block |= {"ffn_gate": random(96, HIDDEN), "ffn_up": random(96, HIDDEN), "ffn_down": random(HIDDEN, 96)}
        else:
            block |= {
                "ffn_gate_inp": random(4, HIDDEN),
                "ffn_gate_exps": random(4, 48, HIDDEN),
                "ffn_up_exps": random(4, 48, HIDDEN),
                "ffn_down_exps": random(4, HIDDEN, 48),
                "ffn_gate_shexp": random(48, HIDDEN),
                "ffn_up_shexp": random(48, HIDDEN),
                "ffn_down_shexp": random(HIDDEN, 48),
            }
        tensors |= {f"blk.{layer}.{name}.weight": array for name, array in block.items()}
    return tensors


def test_deepseek_v2(tmp_path):
    keys = deepseek_keys(expert_weights_norm=False)
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", "deepseek2", keys, deepseek_tensors()))
    config = checkpoint.config
    assert config["architectures"] == ["DeepseekV2ForCausalLM"]
    assert (config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]) == (16, 8, 24)
    assert (config["topk_method"], config["n_group"], config["routed_scaling_factor"]) == ("greedy", 1, 2.5)
    assert config["rope_scaling"] == {
        "rope_type": "yarn",
        "factor": 40.0,
        "original_max_position_embeddings": 64,
        "mscale": 0.707,
        "mscale_all_dim": 0.707,
    }
    assert checkpoint.shapes["model.layers.1.mlp.shared_experts.down_proj.weight"] == (HIDDEN, 48)
    parse_config(config)


def test_deepseek_v3_with_split_kv_b(tmp_path):
    """Newer conversions store the latent's up-projection in two halves, the key's transposed."""
    heads, rank, nope, value = MLA["heads"], MLA["rank"], MLA["nope"], MLA["value"]
    tensors = deepseek_tensors()
    whole = {layer: tensors.pop(f"blk.{layer}.attn_kv_b.weight") for layer in range(LAYERS)}
    for layer, weight in whole.items():
        key_up, value_up = np.split(weight.reshape(heads, nope + value, rank), [nope], axis=1)
        tensors[f"blk.{layer}.attn_k_b.weight"] = np.ascontiguousarray(key_up.swapaxes(1, 2))
        tensors[f"blk.{layer}.attn_v_b.weight"] = np.ascontiguousarray(value_up)
    tensors["blk.1.exp_probs_b.bias"] = random(4)
    keys = deepseek_keys(**{
        "attention.head_count_kv": 1,
        "attention.key_length": rank + MLA["rope"],
        "attention.value_length": rank,
        "attention.key_length_mla": nope + MLA["rope"],
        "attention.value_length_mla": value,
        "expert_gating_func": 2,
        "expert_group_count": 2,
        "expert_group_used_count": 1,
    })  # fmt: skip
    checkpoint = GGUFCheckpoint(write(tmp_path / "m.gguf", "deepseek2", keys, tensors))
    name = "model.layers.1.self_attn.kv_b_proj.weight"
    assert checkpoint.shapes[name] == whole[1].shape
    np.testing.assert_array_equal(load(checkpoint, name), whole[1])
    assert checkpoint.quantized(name) is None
    config = checkpoint.config
    assert config["architectures"] == ["DeepseekV3ForCausalLM"]
    assert (config["qk_nope_head_dim"], config["v_head_dim"], config["num_key_value_heads"]) == (nope, value, heads)
    assert (config["scoring_func"], config["topk_method"]) == ("sigmoid", "noaux_tc")
    assert (config["n_group"], config["topk_group"]) == (2, 1)
    assert checkpoint.shapes["model.layers.1.mlp.gate.e_score_correction_bias"] == (4,)
    parse_config(config)


@pytest.mark.parametrize(
    ("keys", "error", "match"),
    [
        ({"rope.scaling.type": "longrope"}, UnsupportedModelError, "longrope"),
        ({"attention.alien": 3}, UnsupportedModelError, r"llama\.attention\.alien"),
        ({"expert_count": 8}, UnsupportedModelError, "Mixtral"),
        ({"split.count": 3}, UnsupportedModelError, "split"),
        ({"rope.dimension_count": 8}, UnsupportedModelError, "dimension_count"),
        ({"feed_forward_length": [96, 64]}, UnsupportedModelError, "differs from layer to layer"),
        ({"attention.head_count": 0}, CheckpointError, "head_count"),
        ({"attention.head_count": 5}, CheckpointError, "5 heads"),
        ({"embedding_length": "64"}, CheckpointError, "embedding_length"),
        ({"block_count": 4_000_000_000}, CheckpointError, "4000000000 layers"),
        ({"block_count": 1}, UnsupportedModelError, r"blk\.1\."),
        ({"attention.layer_norm_rms_epsilon": float("nan")}, CheckpointError, "epsilon"),
        ({"context_length": None}, CheckpointError, r"lacks the metadata key llama\.context_length"),
    ],
)
def test_metadata_that_cannot_work(tmp_path, keys, error, match):
    path = write(tmp_path / "m.gguf", "llama", COMMON | keys, top() | dense_layers())
    with pytest.raises(error, match=match):
        GGUFCheckpoint(path)


def test_tensors_that_cannot_work(tmp_path):
    path = write(tmp_path / "a.gguf", "llama", COMMON, top() | dense_layers() | {"blk.0.mystery.weight": random(4)})
    with pytest.raises(UnsupportedModelError, match=r"blk\.0\.mystery\.weight"):
        GGUFCheckpoint(path)
    path = write(tmp_path / "b.gguf", "llama", COMMON, dense_layers())
    with pytest.raises(CheckpointError, match="token_embd"):
        GGUFCheckpoint(path)
    path = write(tmp_path / "c.gguf", "bert", COMMON, top())
    with pytest.raises(UnsupportedModelError, match="'bert' is not supported"):
        GGUFCheckpoint(path)


def test_missing_tensor_is_named(tmp_path):
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", "llama", COMMON, top() | dense_layers()))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight"):
        checkpoint.load("lm_head.weight", torch.float32)
    checkpoint.close()


def test_shortest_decimals():
    single = [float(np.float32(value)) for value in (1e-6, 1e-5, 0.0707, 500000.0, 1 / 3)]
    assert [shortest(value) for value in single] == [1e-6, 1e-5, 0.0707, 500000.0, 0.33333334]
    assert all(np.float32(shortest(value)) == np.float32(value) for value in single)
