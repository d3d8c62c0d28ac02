"""Finding special tokens, and keeping users' text from being taken for them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepseek.tokenizer.special import SpecialToken, SpecialTokens

TOKENS = SpecialTokens(
    [SpecialToken(text, i) for i, text in enumerate(("<a>", "<a><b>", "<|x|>", "[E]", "aba", "ba<"))]
    + [SpecialToken("<left>", 10, lstrip=True), SpecialToken("<right>", 11, rstrip=True), SpecialToken("!", 12)]
)
SPELLINGS = ("<a>", "<a><b>", "<|x|>", "[E]", "aba", "ba<", "<left>", "<right>")
MARK = "\U000f0000"


def test_leftmost_then_longest() -> None:
    assert list(TOKENS.split("1<a><b>2<a>3")) == ["1", 1, "2", 0, "3"]
    assert list(TOKENS.split("ababa<a>")) == [4, 5, "a>"]


def test_no_special_token() -> None:
    assert list(TOKENS.split("plain < text [ aa")) == ["plain < text [ aa"]
    assert list(TOKENS.split("")) == []
    assert list(SpecialTokens([]).split("<a>")) == ["<a>"]


def test_whitespace_that_a_token_eats() -> None:
    assert list(TOKENS.split("x  <left>  y")) == ["x", 10, "  y"]
    assert list(TOKENS.split("x  <right>  y")) == ["x  ", 11, "y"]
    assert list(TOKENS.split(" <left>")) == [10]


def test_single_character_tokens_stay_text() -> None:
    assert list(TOKENS.split("hi!")) == ["hi!"]


@given(st.lists(st.sampled_from([*SPELLINGS, *"<>|xab[E]!c ", "<|", "|>"]), max_size=12).map("".join))
def test_neutralised_text_has_no_special_token_and_comes_back(text: str) -> None:
    marked = TOKENS.neutralise(text, MARK)
    assert TOKENS.find(marked) is None
    assert marked.replace(MARK, "") == text
    assert (
        MARK not in marked
        or any(s in text for s in SPELLINGS)
        or any(text.endswith(s[:n]) for s in SPELLINGS for n in range(1, len(s)))
    )


@given(st.text("<>|xab[E]", max_size=6), st.sampled_from(SPELLINGS), st.integers(1, 6))
def test_a_template_cannot_complete_what_a_user_began(text: str, spelling: str, cut: int) -> None:
    marked = TOKENS.neutralise(text + spelling[:cut], MARK)
    found = TOKENS.find(marked + spelling[cut:])
    assert found is None or found[0] >= len(marked)
