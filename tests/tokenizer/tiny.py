"""Tiny vocabularies as GGUF metadata."""

from __future__ import annotations

from typing import Any

from deepseek.tokenizer.from_gguf import tokenizer_from_gguf
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek.tokenizer.vocabulary import BYTE_ALPHABET

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CONTROL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")


def byte_level(**changes: Any) -> dict[str, Any]:
    """256 bytes, "ab", a user-defined ``<tool>``, ChatML's control tokens. ``changes``: keys without their prefix."""
    by_byte = {byte: char for char, byte in BYTE_ALPHABET.items()}
    tokens = [by_byte[byte] for byte in range(256)] + ["ab", "<tool>"] + list(CONTROL)
    keys = {
        "model": "gpt2",
        "pre": "gpt-2",
        "tokens": tokens,
        "token_type": [1] * 257 + [4] + [3] * len(CONTROL),
        "merges": ["a b"],
        "eos_token_id": tokens.index("<|im_end|>"),
    } | changes
    metadata = {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}
    return {"tokenizer.chat_template": CHATML} | metadata


def sentencepiece(**changes: Any) -> dict[str, Any]:
    """Llama-2 style: bytes, letters, a few words by score, and ``<s>``, ``</s>``."""
    ordinary = ["\u2581", *"helowrdabc", "he", "ll", "hell", "hello", "\u2581hello", "\u2581w", "or", "ld", "orld"]
    ordinary += ["\u2581world", "ab", "bc"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *ordinary, "[TOOL]"]
    keys = {
        "model": "llama",
        "tokens": tokens,
        "token_type": [2, 3, 3] + [6] * 256 + [1] * len(ordinary) + [4],
        "scores": [0.0] * 259 + [-float(i) for i in range(len(ordinary))] + [0.0],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "add_bos_token": True,
    } | changes
    return {f"tokenizer.ggml.{key}": value for key, value in keys.items() if value is not None}


def build(metadata: dict[str, Any]) -> Tokenizer:
    return Tokenizer(tokenizer_from_gguf(metadata, "tiny.gguf"))
