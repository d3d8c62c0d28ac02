"""Streaming equals decoding, whatever the ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.tokenizer.tokenizer import Tokenizer
from tests.tokenizer import tiny

BYTES = tiny.build(tiny.byte_level())
PIECES = tiny.build(tiny.sentencepiece())


def stream(tokenizer: Tokenizer, ids: Sequence[int], skip: bool = True) -> list[str]:
    detokenizer = tokenizer.stream(skip_special_tokens=skip)
    return [*(detokenizer.push(token_id) for token_id in ids), detokenizer.finish()]


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@settings(max_examples=300, deadline=None)
@given(data=st.data(), skip=st.booleans())
def test_random_ids(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 2), max_size=30))
    assert "".join(stream(tokenizer, ids, skip)) == tokenizer.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("tokenizer", [BYTES, PIECES], ids=["bytes", "pieces"])
@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_text_comes_back_and_no_piece_is_broken(tokenizer: Tokenizer, text: str) -> None:
    pieces = stream(tokenizer, tokenizer.encode(text))
    expected = text.replace("\u2581", " ") if tokenizer is PIECES else text
    assert "".join(pieces) == expected
    shown = ""
    for piece in pieces:
        shown += piece
        assert expected.startswith(shown)


def test_a_character_waits_for_all_its_bytes() -> None:
    assert stream(BYTES, list("a\u4e16\U0001f600".encode())) == ["a", "", "", "\u4e16", "", "", "", "\U0001f600", ""]


def test_truncated_and_wrong_bytes() -> None:
    assert stream(BYTES, [0xE4, 0xB8])[-1] == "\ufffd"
    assert "".join(stream(BYTES, [0xE4, ord("a"), 0xFF])) == "\ufffda\ufffd"


def test_byte_tokens_of_sentencepiece() -> None:
    ids = PIECES.encode("hello \u4e16", add_special_tokens=False)
    assert "".join(stream(PIECES, ids)) == "hello \u4e16"
    assert stream(PIECES, [3 + 0xE4, 3 + 0xB8]) == ["", "", "\ufffd"]


def test_leading_space_rule() -> None:
    ids = PIECES.encode("hello", add_special_tokens=False)
    assert PIECES.token_bytes(ids[0]) == b" hello"
    assert "".join(stream(PIECES, ids)) == "hello"
    assert "".join(stream(PIECES, [1, *ids, *ids])) == "hello hello"
    going_on = PIECES.stream(continues_text=True)
    assert going_on.push(ids[0]) + going_on.finish() == " hello"


def test_special_tokens_are_shown_on_demand() -> None:
    ids = BYTES.encode("a<|im_end|>b", parse_special=True)
    assert len(ids) == 3
    assert "".join(stream(BYTES, ids)) == "ab"
    assert "".join(stream(BYTES, ids, skip=False)) == "a<|im_end|>b"


def test_real_text(real_tokenizer: Tokenizer, parity: ModuleType) -> None:
    for line in parity.awkward_lines(300, seed=3):
        ids = real_tokenizer.encode(line)
        assert "".join(stream(real_tokenizer, ids)) == real_tokenizer.decode(ids)


def test_random_ids_of_a_real_vocabulary(cached_tokenizer: Callable[[str], Tokenizer]) -> None:
    import random

    rng = random.Random(5)
    tokenizer = cached_tokenizer("smollm2-135m-instruct")
    for _ in range(300):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(rng.randrange(30))]
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids)
