"""What a checkpoint's tensors must be like, on the tiny models of the parity tests."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from deepseek.errors import CheckpointError
from deepseek.kernels.registry import bind
from deepseek.models.decoder import Decoder
from deepseek.models.registry import load_model
from tests.parity import tiny

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@cache
def original(name: str) -> tiny.MemoryCheckpoint:
    return tiny.checkpoint(tiny.build(name))


def copy(name: str) -> tiny.MemoryCheckpoint:
    return tiny.MemoryCheckpoint(original(name).config, original(name).tensors)


def load(checkpoint: tiny.MemoryCheckpoint, **options: Any) -> Decoder:
    return load_model(checkpoint, ops=bind("cpu"), **{"dtype": torch.float32, "device": "cpu", **options})


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3-moe", "deepseek-v2-groups", "deepseek-v3"])
def test_every_tensor_is_needed(name: str) -> None:
    tied = original(name).config["tie_word_embeddings"]
    for tensor in original(name).tensors:
        if tied and tensor == "lm_head.weight":
            continue
        checkpoint = copy(name)
        del checkpoint.tensors[tensor]
        with pytest.raises(CheckpointError, match=f"no tensor '{tensor}'"):
            load(checkpoint)


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3-moe", "deepseek-v2-groups", "deepseek-v3"])
def test_every_shape_is_checked(name: str) -> None:
    for tensor, value in original(name).tensors.items():
        if original(name).config["tie_word_embeddings"] and tensor == "lm_head.weight":
            continue
        checkpoint = copy(name)
        checkpoint.tensors[tensor] = torch.cat([value, value[:1]])
        with pytest.raises(CheckpointError, match=tensor) as error:
            load(checkpoint)
        assert str(list(value.shape)) in str(error.value)
        assert str([value.shape[0] + 1, *value.shape[1:]]) in str(error.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", Q_PROJ, "model.norm.weight"])
def test_weights_must_be_finite(tensor: str, value: float) -> None:
    checkpoint = copy("llama")
    checkpoint.tensors[tensor] = checkpoint.tensors[tensor].clone()
    checkpoint.tensors[tensor].view(-1)[-1] = value
    with pytest.raises(CheckpointError, match=tensor):
        load(checkpoint)


def test_large_but_finite_weights_load() -> None:
    """Their sum overflows; they do not."""
    checkpoint = copy("llama")
    checkpoint.tensors[Q_PROJ] = torch.full_like(checkpoint.tensors[Q_PROJ], 3e38)
    load(checkpoint)


def test_a_tensor_too_large_for_fp16() -> None:
    checkpoint = copy("llama")
    checkpoint.tensors[Q_PROJ] = torch.full_like(checkpoint.tensors[Q_PROJ], 1e6)
    with pytest.raises(CheckpointError, match="too narrow"):
        load(checkpoint, dtype=torch.float16)


def test_unused_tensors_are_refused() -> None:
    checkpoint = copy("llama")
    for name in ("model.layers.0.self_attn.q_norm.weight", "a", "b", "c"):
        checkpoint.tensors[name] = torch.ones(1)
    with pytest.raises(CheckpointError, match=r"does not use: a, b, c and 1 more"):
        load(checkpoint)


def test_harmless_extra_tensors() -> None:
    checkpoint = copy("qwen2-tied")
    checkpoint.tensors["lm_head.weight"] = torch.ones(3)
    checkpoint.tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(3)
    load(checkpoint)
    checkpoint = copy("deepseek-v3")
    checkpoint.tensors["model.layers.3.eh_proj.weight"] = torch.ones(3)
    checkpoint.tensors["model.layers.3.mlp.experts.0.gate_proj.weight"] = torch.ones(3)
    load(checkpoint)


def test_an_untied_model_needs_its_head() -> None:
    checkpoint = copy("qwen2-tied")
    checkpoint.config["tie_word_embeddings"] = False
    checkpoint.tensors.pop("lm_head.weight", None)
    with pytest.raises(CheckpointError, match="lm_head"):
        load(checkpoint)


def test_progress_counts_tensors() -> None:
    seen: list[tuple[int, int]] = []
    load(original("llama"), progress=lambda done, total: seen.append((done, total)))
    total = len(original("llama").tensors)
    assert seen == [(i, total) for i in range(1, total + 1)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["llama-biases-llama3-rope", "gemma3", "qwen3-moe", "deepseek-v3"])
def test_half_precision_is_close(name: str, dtype: torch.dtype) -> None:
    from tests.parity.driver import Driver

    prompt = list(range(20))
    logits = []
    for kind in (torch.float32, dtype):
        model = load(original(name), dtype=kind)
        assert model.dtype == kind
        driver = Driver(model)
        logits.append(torch.cat([*driver.step([(0, prompt[:13])]), *driver.step([(0, prompt[13:])])]))
        assert logits[-1].dtype == torch.float32
    # A token may go to another expert; most rows must agree.
    similar = torch.cosine_similarity(*logits, dim=-1)
    assert similar.median() > 0.999


def test_what_the_engine_reads() -> None:
    model = load(original("deepseek-v3"))
    assert model.architecture == "DeepseekV3ForCausalLM"
    assert model.vocab_size == tiny.VOCAB
    assert model.max_context == 512
    assert [(s.heads, s.key_dim, s.value_dim) for s in model.cache_specs] == [(1, 32, 0)] * 3
    assert model.weights_bytes == 4 * sum(t.numel() for t in original("deepseek-v3").tensors.values())
