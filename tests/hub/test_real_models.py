"""The built-in models themselves; skipped where they cannot be had."""

import gguf
import numpy as np
import pytest
import torch

from deepseek.errors import HubError
from deepseek.hub.gguf_checkpoint import GGUFCheckpoint
from deepseek.hub.gguf_file import GGUFFile
from deepseek.hub.registry import known_models
from deepseek.hub.resolve import resolve

SLOW = {"gemma-3-270m", "qwen2.5-coder-1.5b-instruct"}
NAMES = [
    pytest.param(model.name, marks=[pytest.mark.slow] if model.name in SLOW else [])
    for model in known_models()
    if model.file.endswith(".gguf")
]


def files(name: str):
    try:
        return resolve(name).path
    except HubError as error:
        pytest.skip(f"{name} cannot be had: {error}")


@pytest.mark.parametrize("name", NAMES)
def test_header_equals_the_reference(name):
    path = files(name)
    ours, reader = GGUFFile(path), gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        if isinstance(ours.metadata[key], list):  # its parser takes seconds for a whole vocabulary
            assert len(ours.metadata[key]) == len(field.data)
            assert ours.metadata[key][-100:] == field.contents(slice(len(field.data) - 100, None))[-100:], key
        else:
            assert ours.metadata[key] == field.contents(), key
    assert {t.name: (t.type.name, t.offset, t.nbytes) for t in ours.tensors.values()} == {
        t.name: (t.tensor_type.name, int(t.data_offset), int(t.n_bytes)) for t in reader.tensors
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_type_dequantizes_like_the_reference(name):
    path = files(name)
    checkpoint, reader = GGUFCheckpoint(path), gguf.GGUFReader(path)
    seen = set()
    for tensor in reader.tensors:
        kind = tensor.tensor_type
        if kind in seen or "attn_q" in tensor.name or "attn_k" in tensor.name or tensor.n_elements > 1 << 25:
            continue
        seen.add(kind)
        ours = next(n for n, s in checkpoint._sources.items() if s.tensor.name == tensor.name)
        expected = gguf.quants.dequantize(tensor.data, kind)
        if checkpoint._sources[ours].plus_one:
            expected = expected - np.float32(1)
        np.testing.assert_array_equal(checkpoint.load(ours, torch.float32).numpy(), expected)
    assert len(seen) >= 2


def test_smollm2_config_is_the_published_one():
    config = GGUFCheckpoint(files("smollm2-135m-instruct")).config
    published = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-05,
        "rope_theta": 100000.0,
        "rope_scaling": None,
        "tie_word_embeddings": True,
        "vocab_size": 49152,
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    assert {key: config[key] for key in published} == published
