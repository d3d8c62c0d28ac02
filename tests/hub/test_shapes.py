"""Models of published shapes with random weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from deepseek.errors import CheckpointError, ModelNotFoundError
from deepseek.hub import shapes
from deepseek.hub.open import open_checkpoint
from deepseek.hub.resolve import resolve
from deepseek.kernels.registry import bind
from deepseek.models.registry import load_model
from deepseek.tokenizer.load import load_tokenizer

# As the publishers count them.
PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-7b": 7_615_616_512,
    "llama-3.1-8b": 8_030_261_248,
    "deepseek-v2-lite": 15_706_484_224,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_CACHE", str(tmp_path))


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_parameters_are_as_many_as_published(name: str) -> None:
    files = resolve(f"shape:{name}")
    checkpoint = open_checkpoint(files.path)
    assert files.name == f"shape:{name}"
    assert sum(map(math.prod, checkpoint.shapes.values())) == PARAMETERS[name]


@pytest.mark.parametrize("name", shapes.SHAPES)
def test_the_tensors_are_those_of_the_family(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"num_hidden_layers": 2, "vocab_size": 300, "intermediate_size": 96}
    small |= {"n_routed_experts": 8, "moe_intermediate_size": 32} if "n_routed_experts" in shapes.SHAPES[name] else {}
    monkeypatch.setattr(shapes, "SHAPES", {"small": {**shapes.SHAPES[name], **small}})
    checkpoint = open_checkpoint(resolve("shape:small").path)
    model = load_model(checkpoint, ops=bind("cpu", "torch"), dtype=torch.bfloat16, device="cpu")
    assert model.vocab_size == 300
    first, again = (checkpoint.load("model.layers.0.self_attn.q_proj.weight", torch.float32) for _ in range(2))
    other = checkpoint.load("model.layers.1.self_attn.q_proj.weight", torch.float32)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert first.std() * first.shape[1] ** 0.5 == pytest.approx(1, abs=0.02)


def test_the_tokenizer_reads_every_byte_back() -> None:
    tokenizer = load_tokenizer(resolve("shape:qwen2.5-0.5b").path)
    text = "zwölf Boxkämpfer 十二 🥊"
    assert len(tokenizer.encode(text)) == len(text.encode())
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_unknown_shape_names_the_known() -> None:
    with pytest.raises(ModelNotFoundError, match=r"shape:qwen2\.5-7b"):
        resolve("shape:qwen-7b")


def test_a_damaged_folder_is_refused() -> None:
    path = resolve("shape:qwen2.5-0.5b").path
    (path / shapes.MARK).write_text(json.dumps({}))
    with pytest.raises(CheckpointError, match="random weights"):
        open_checkpoint(path)
    open_checkpoint(resolve("shape:qwen2.5-0.5b").path)  # written anew
