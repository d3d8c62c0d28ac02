"""Deltas of an answer: stop strings, held-back text, log-probabilities."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek.engine.events import TokenEvent, TokenLogprobs
from deepseek.runtime.output import OutputAssembler, TextDelta
from deepseek.sampling import SamplingParams
from deepseek.tokenizer.from_gguf import tokenizer_from_gguf
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek.tokenizer.vocabulary import BYTE_ALPHABET

_WORDS = ("ab", "abc", "STOP", "ST", " the", "a\u00e9", "\u4e16")
_END = 256 + len(_WORDS)


def _make_tokenizer() -> Tokenizer:
    """All bytes, some longer tokens, one end token."""
    by_byte = {byte: char for char, byte in BYTE_ALPHABET.items()}
    tokens = [by_byte[byte] for byte in range(256)]
    tokens += ["".join(by_byte[byte] for byte in word.encode()) for word in _WORDS]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*tokens, "<|im_end|>"],
        "tokenizer.ggml.token_type": [1] * len(tokens) + [3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": _END,
    }
    return Tokenizer(tokenizer_from_gguf(metadata, "tiny"))


TOKENIZER = _make_tokenizer()
IDS = {word: 256 + i for i, word in enumerate(_WORDS)}


def byte_ids(text: str) -> list[int]:
    return list(text.encode())


def run(
    ids: list[int], stop: tuple[str, ...] = (), reason: str = "length", logprobs: bool = False
) -> tuple[list[TextDelta], OutputAssembler]:
    """One event per token; the last one ends the answer."""
    assembler = OutputAssembler(TOKENIZER, SamplingParams(stop=stop, logprobs=0 if logprobs else None))
    deltas = []
    for i, token_id in enumerate(ids):
        given_logprobs = TokenLogprobs(-float(i), [(token_id, -float(i))]) if logprobs else None
        finish = reason if i == len(ids) - 1 else None
        deltas.append(assembler.push(TokenEvent("r", token_id, logprobs=given_logprobs, finish_reason=finish)))  # type: ignore[arg-type]
    return deltas, assembler


def text_of(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def slow_reference(ids: list[int], stops: tuple[str, ...]) -> tuple[str, str | None]:
    """Decode all, look at every prefix in turn for a stop string at its end, the longest first."""
    text = TOKENIZER.decode(ids)
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, None


@settings(max_examples=400, deadline=None)
@given(
    ids=st.lists(st.one_of(st.sampled_from([97, 98, 99, 32, 10]), st.integers(0, _END - 1)), min_size=1, max_size=40),
    stops=st.lists(st.text("abcST \u00e9\ufffd\n", min_size=1, max_size=5), max_size=4),
)
def test_equals_the_slow_reference(ids: list[int], stops: list[str]) -> None:
    deltas, assembler = run(ids, tuple(stops))
    expected, stop = slow_reference(ids, tuple(stops))
    assert text_of(deltas) == expected
    finished = [delta for delta in deltas if delta.finish_reason is not None]
    assert len(finished) == 1
    assert finished[0].finish_reason == ("stop" if stop is not None else "length")
    assert finished[0].stop_string == stop
    assert assembler.stopped


@settings(max_examples=200, deadline=None)
@given(
    st.text("abST\u4e16\u00e9\U0001f600", min_size=1, max_size=20), st.lists(st.text("abST", min_size=1), max_size=3)
)
def test_result_does_not_depend_on_the_tokens(text: str, stops: list[str]) -> None:
    one, _ = run(byte_ids(text), tuple(stops))
    other, _ = run(TOKENIZER.encode(text), tuple(stops))
    assert text_of(one) == text_of(other)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(0, _END - 1), min_size=1, max_size=30), st.text("abST", min_size=1, max_size=3))
def test_never_shows_a_beginning_of_what_is_cut(ids: list[int], stop: str) -> None:
    deltas, _ = run(ids, (stop,))
    expected, _ = slow_reference(ids, (stop,))
    shown = ""
    for delta in deltas:
        shown += delta.text
        assert expected.startswith(shown)


def test_stop_string_over_three_tokens_is_cut_at_its_start() -> None:
    ids = [*byte_ids("xyz S"), *byte_ids("TO"), ord("P"), *byte_ids("never")]
    deltas, assembler = run(ids, ("STOP",))
    assert text_of(deltas) == "xyz "
    assert [delta.text for delta in deltas[:5]] == ["x", "y", "z", " ", ""]
    stopped = next(delta for delta in deltas if delta.finish_reason)
    assert (stopped.finish_reason, stopped.stop_string) == ("stop", "STOP")
    assert assembler.stopped
    assert all(delta == TextDelta() for delta in deltas[8:])


def test_held_text_is_shown_when_it_turns_out_harmless_and_at_the_end() -> None:
    deltas, _ = run(byte_ids("STOSTO"), ("STOP",))
    assert [delta.text for delta in deltas] == ["", "", "", "STO", "", "STO"]


@pytest.mark.parametrize("reason", ["stop", "length", "cancelled", "error"])
def test_every_end_flushes(reason: str) -> None:
    assembler = OutputAssembler(TOKENIZER, SamplingParams(stop=("STOP",)))
    assert assembler.push(TokenEvent("r", IDS["ST"], cached_tokens=7)) == TextDelta(cached_tokens=7)
    error = "it broke" if reason == "error" else None
    last = assembler.push(TokenEvent("r", None, finish_reason=reason, error=error))  # type: ignore[arg-type]
    assert (last.text, last.finish_reason, last.stop_string, last.error) == ("ST", reason, None, error)
    assert last.token_ids == (IDS["ST"],)


def test_end_token_is_no_text_and_has_no_logprob() -> None:
    assembler = OutputAssembler(TOKENIZER, SamplingParams(logprobs=0))
    assembler.push(TokenEvent("r", 97, logprobs=TokenLogprobs(-1.0, [])))
    last = assembler.push(
        TokenEvent("r", _END, stop_token=True, logprobs=TokenLogprobs(-2.0, []), finish_reason="stop")
    )
    assert last == TextDelta(token_ids=(_END,), token_ends=(1,), finish_reason="stop")


def test_character_cut_off_at_the_end_becomes_a_replacement() -> None:
    deltas, _ = run(byte_ids("a\u4e16")[:-1])
    assert text_of(deltas) == "a\ufffd"


def test_logprobs_come_with_the_characters_of_their_tokens() -> None:
    deltas, _ = run([97, *byte_ids("\u4e16"), IDS["abc"]], logprobs=True)
    assert [delta.text for delta in deltas] == ["a", "", "", "\u4e16", "abc"]
    assert [len(delta.logprobs) for delta in deltas] == [1, 0, 0, 3, 1]
    first = deltas[3].logprobs[0]
    assert (first.token, first.bytes, first.logprob) == ("\ufffd", b"\xe4", -1.0)
    assert first.top[0].bytes == b"\xe4"
    assert deltas[4].logprobs[0].token == "abc"
    for delta in deltas:
        assert tuple(entry.token_id for entry in delta.logprobs) == delta.token_ids


def test_tokens_behind_the_cut_are_not_handed_out() -> None:
    # "abc" straddles the cut and is handed out whole; what lies behind it is not.
    deltas, _ = run([97, IDS["abc"], 97, 98], ("ca",), logprobs=True)
    assert text_of(deltas) == "aab"
    assert [i for delta in deltas for i in delta.token_ids] == [97, IDS["abc"]]
    assert [e.logprob for delta in deltas for e in delta.logprobs] == [0.0, -1.0]


def test_a_long_stop_string_costs_no_rescans() -> None:
    """The worst case for naive matching: each token extends a partial match of a thousand characters."""
    stop = "a" * 1000 + "b"
    assembler = OutputAssembler(TOKENIZER, SamplingParams(stop=(stop,)))
    shown = sum(len(assembler.push(TokenEvent("r", 97)).text) for _ in range(5000))
    assert shown == 4000
    assert assembler.push(TokenEvent("r", 98)).stop_string == stop
