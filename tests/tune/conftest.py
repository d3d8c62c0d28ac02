"""A tiny tokenizer, a tiny random Llama on disk, and helpers that write data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from deepseek.tokenizer.from_gguf import tokenizer_from_gguf
from deepseek.tokenizer.to_folder import write_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.tiny import build, byte_level

VOCAB = 264
LAYERS = 2


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """256 bytes, "ab" and ChatML's control tokens."""
    return build(byte_level())


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random two-layer Llama whose vocabulary is the tiny tokenizer's."""
    import torch
    import transformers

    folder = tmp_path_factory.mktemp("tiny-llama")
    metadata = byte_level()
    size = tokenizer_from_gguf(metadata, "tiny").vocabulary.size
    assert size <= VOCAB
    config = transformers.LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=size - 2,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2:  # as large as trained ones: with the initial ones no adapter could change much
                weight.normal_(0.0, 0.3 if "embed" in name else weight.shape[1] ** -0.5)
    model.save_pretrained(folder)
    write_tokenizer(metadata, "tiny", folder)
    return folder


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """One line per row; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def questions(count: int) -> list[dict[str, str]]:
    """Questions and answers of spread lengths, each different."""
    return [
        {"question": f"What is {i} plus {i * i}?" + " Tell me." * (i % 5), "answer": f"{i + i * i}" * (1 + i % 7)}
        for i in range(count)
    ]
