"""The Tokenizer's own rules, whatever its origin."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from deepseek.errors import InvalidRequestError
from tests.tokenizer import tiny

TOKENIZER = tiny.build(tiny.byte_level())


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "ok \udc80"])
def test_lone_surrogates_are_refused_and_placed(text: str) -> None:
    place = next(i for i, char in enumerate(text) if 0xD800 <= ord(char) <= 0xDFFF)
    with pytest.raises(InvalidRequestError, match=f"U\\+{ord(text[place]):04X} at character {place}") as caught:
        TOKENIZER.encode(text)
    assert caught.value.code == "invalid_unicode"
    with pytest.raises(InvalidRequestError, match="surrogate"):
        TOKENIZER.encode_chat([{"role": "user", "content": text}])


def test_ids_past_the_vocabulary_stand_for_nothing() -> None:
    assert TOKENIZER.decode([97, TOKENIZER.vocab_size, 10**6, 98]) == "ab"
    assert TOKENIZER.token_bytes(10**6) == b""
    with pytest.raises(InvalidRequestError, match=">= 0"):
        TOKENIZER.decode([-1])


def test_padding_of_the_vocabulary_stands_for_nothing() -> None:
    metadata = tiny.byte_level()
    metadata["tokenizer.ggml.tokens"].append("[PAD1]")
    metadata["tokenizer.ggml.token_type"].append(5)
    tokenizer = tiny.build(metadata)
    assert tokenizer.vocab_size == 262
    assert tokenizer.decode([97, 261, 98]) == "ab"
    assert tokenizer.encode("[PAD1]") == list(b"[PAD1]")


def test_many_threads_get_the_same_answers() -> None:
    """Plain and special encoding at once: no state is switched between them."""
    text = "ab <|im_end|> \u4e16 <tool>" * 20
    plain, special = TOKENIZER.encode(text), TOKENIZER.encode(text, parse_special=True)
    assert plain != special
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda i: TOKENIZER.encode(text, parse_special=bool(i % 2)), range(400)))
    assert all(ids == (special if i % 2 else plain) for i, ids in enumerate(results))


def test_fingerprints_tell_what_ids_depend_on() -> None:
    tokens = tiny.byte_level()["tokenizer.ggml.tokens"]
    others = [
        tiny.byte_level() | {"tokenizer.chat_template": "{{ messages }}"},
        tiny.byte_level(eos_token_id=tokens.index("<|endoftext|>")),
        tiny.byte_level(token_type=[1] * 258 + [3] * 3),
        tiny.byte_level(pre="qwen2"),
        tiny.sentencepiece(),
        tiny.sentencepiece(add_bos_token=False),
    ]
    prints = [tiny.build(metadata).fingerprint() for metadata in (tiny.byte_level(), *others)]
    assert len(set(prints)) == len(prints)
    assert tiny.build(tiny.byte_level()).fingerprint() == prints[0]
