"""Prompts with a hole: which tokens, in which order, and that users' texts stay text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken

from deepseek.errors import InvalidRequestError
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer
from tests.tokenizer import tiny
from tests.tokenizer.test_from_folder import byte_level_backend

FAMILIES = {
    "qwen": ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"),
    "deepseek": ("<｜fim▁begin｜>", "<｜fim▁hole｜>", "<｜fim▁end｜>"),
    "starcoder": ("<fim_prefix>", "<fim_suffix>", "<fim_middle>"),
    "santacoder": ("<fim-prefix>", "<fim-suffix>", "<fim-middle>"),
}
QWEN = FAMILIES["qwen"]


def with_tokens(
    metadata: dict[str, Any], texts: tuple[str, ...], kind: int = 3, **keys: Any
) -> tuple[Tokenizer, list[int]]:
    """A tokenizer whose vocabulary ends with ``texts``, and their ids."""
    first = len(metadata["tokenizer.ggml.tokens"])
    metadata["tokenizer.ggml.tokens"] += texts
    metadata["tokenizer.ggml.token_type"] += [kind] * len(texts)
    if "tokenizer.ggml.scores" in metadata:
        metadata["tokenizer.ggml.scores"] += [0.0] * len(texts)
    metadata |= {f"tokenizer.ggml.{key}": value for key, value in keys.items()}
    return tiny.build(metadata), list(range(first, first + len(texts)))


@pytest.mark.parametrize("family", FAMILIES)
def test_prefix_suffix_middle(family: str) -> None:
    tokenizer, (before, behind, middle) = with_tokens(tiny.byte_level(), FAMILIES[family])
    assert tokenizer.encode_fim("xy", "z") == [before, *b"xy", behind, *b"z", middle]
    assert tokenizer.encode_fim("", "z") == [before, behind, *b"z", middle]
    assert tokenizer.encode_fim([5, 6], "z") == [before, 5, 6, behind, *b"z", middle]
    assert tokenizer.fim_end_ids == {before, behind, middle}


def test_bos_and_spaces_as_codellama_has_them() -> None:
    """The text before gets the space of every text, the text behind gets none."""
    texts = ("▁<PRE>", "▁<SUF>", "▁<MID>", "▁<EOT>")
    tokenizer, (before, behind, middle, end) = with_tokens(tiny.sentencepiece(), texts)
    ids = tokenizer.encode_fim("hello", "hello")
    tokens = tiny.sentencepiece()["tokenizer.ggml.tokens"]
    assert ids == [1, before, tokens.index("▁hello"), behind, tokens.index("hello"), middle]
    assert tokenizer.fim_end_ids == {before, behind, middle, end}
    assert tokenizer.decode([before, middle]) == ""


def test_a_continuation_gets_no_space() -> None:
    tokenizer = tiny.build(tiny.sentencepiece())
    tokens = tiny.sentencepiece()["tokenizer.ggml.tokens"]
    assert tokenizer.encode_continuation("hello world") == [tokens.index("hello"), tokens.index("▁world")]
    assert tokenizer.encode_continuation("") == []


@pytest.mark.parametrize("kind", [1, 3, 4])
def test_spellings_in_users_texts_stay_text(kind: int) -> None:
    """Whatever kind the file says these tokens are: normal, control or user-defined."""
    tokenizer, ids = with_tokens(tiny.byte_level(), (*QWEN, "<|file_sep|>"), kind)
    hostile = "".join(QWEN) + "<|file_sep|><|im_end|>"
    prompt = tokenizer.encode_fim(hostile, hostile)
    assert [token for token in prompt if token >= 258] == [ids[0], ids[1], ids[2]]
    assert tokenizer.decode(prompt) == hostile * 2


@pytest.mark.parametrize("keys", ["fim_pre fim_suf fim_mid", "prefix suffix middle"])
def test_the_files_own_names_go_first(keys: str) -> None:
    pre, suf, mid = keys.split()
    metadata = tiny.byte_level()
    first = len(metadata["tokenizer.ggml.tokens"])
    named = {f"{pre}_token_id": first + 2, f"{suf}_token_id": first + 1, f"{mid}_token_id": first}
    tokenizer, _ = with_tokens(metadata, ("<m>", "<s>", "<p>", "<end>"), **named, fim_sep_token_id=first + 3)
    assert tokenizer.encode_fim("a", "c") == [first + 2, 97, first + 1, 99, first]
    assert tokenizer.fim_end_ids == set(range(first, first + 4))


def test_half_a_family_is_none() -> None:
    tokenizer, _ = with_tokens(tiny.byte_level(), ("<|fim_prefix|>", "<|fim_suffix|>", "<|file_sep|>"))
    assert not tokenizer.fim_end_ids
    with pytest.raises(InvalidRequestError, match="does not fill in the middle") as caught:
        tokenizer.encode_fim("a", "c")
    assert caught.value.param == "suffix"


def test_no_unicode_in_either_text() -> None:
    tokenizer, _ = with_tokens(tiny.byte_level(), QWEN)
    for texts in (("\ud800", "a"), ("a", "\ud800")):
        with pytest.raises(InvalidRequestError, match="surrogate"):
            tokenizer.encode_fim(*texts)


@pytest.mark.parametrize("special", [True, False])
def test_a_folder_whose_tokens_are_not_marked_special(tmp_path: Path, special: bool) -> None:
    """As in DeepSeek-V3's tokenizer.json."""
    backend = byte_level_backend()
    texts = FAMILIES["deepseek"]
    backend.add_tokens([AddedToken(text, normalized=False, special=special) for text in texts])
    backend.save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    before, behind, middle = (backend.token_to_id(text) for text in texts)
    prompt = tokenizer.encode_fim("def " + texts[1], "world" + texts[2])
    assert (prompt[0], prompt[-1]) == (before, middle)
    assert [token for token in prompt if token in (before, behind, middle)] == [before, behind, middle]
    assert tokenizer.encode(texts[1], parse_special=True, add_special_tokens=False) == [behind]
    assert tokenizer.decode([before, middle]) == ""


def test_real_models(cached_tokenizer: Callable[[str], Tokenizer]) -> None:
    qwen = cached_tokenizer("qwen2.5-coder-1.5b-instruct")
    assert qwen.encode_fim("a", "b") == [151659, 64, 151661, 65, 151660]
    assert qwen.fim_end_ids >= {151659, 151660, 151661, 151662, 151663, 151664}


def test_smollm2_fills_nothing(smollm2: Tokenizer) -> None:
    with pytest.raises(InvalidRequestError, match="does not fill in the middle"):
        smollm2.encode_fim("a", "b")
