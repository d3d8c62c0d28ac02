"""However an answer is cut into deltas, the pieces join to the same answer."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_serve.parsing.formats import FORMATS, Format, format_named
from deepseek_serve.parsing.json_scanner import JsonScanner
from deepseek_serve.parsing.pieces import Answer
from tests.serve.parsing.answers import SCHEMAS, parser_of, read
from tests.serve.parsing.test_formats import XML

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["city", "n", "o"]), JSON, max_size=3).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
CUTS = st.lists(st.integers(1, 12), max_size=40)


def texts(form: Format) -> st.SearchStrategy[str]:
    """Words, calls, broken and unfinished calls, and the format's own words anywhere."""
    call = st.builds(form.call, st.sampled_from([*SCHEMAS, "unknown"]), ARGUMENTS)
    words = st.text(max_size=10) | st.sampled_from(
        ["<think>", "</think>", " ", "\n", "{", "```json", "<tool", "`", ";"]
    )
    marks = st.sampled_from([*form.marks.all, *form.words, form.before or "x", form.after or "y"])
    whole = call | st.builds(lambda text, end: text[:end], call, st.integers(0, 80))
    if form.name == "qwen3_coder":
        whole |= st.builds(lambda end: XML[:end], st.integers(0, len(XML)))
    return st.lists(words | marks | whole, max_size=6).map("".join)


def cut(text: str, lengths: list[int]) -> list[str]:
    parts = []
    for length in lengths:
        parts.append(text[:length])
        text = text[length:]
    return [*parts, text]


@pytest.mark.parametrize("thinking", ["no", "yes", "opened"])
@pytest.mark.parametrize("form", [found.name for found in FORMATS])
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pieces_join_to_the_same_answer(form: str, thinking: str, data: st.DataObject) -> None:
    found = format_named(form)
    assert found is not None
    text = data.draw(texts(found))
    reason = data.draw(st.sampled_from(["stop", "length"]))
    kept = data.draw(st.booleans())
    whole = Answer.of(read(parser_of(form, thinking, kept=kept), [text], reason))
    parts = cut(text, data.draw(CUTS))
    assert Answer.of(read(parser_of(form, thinking, kept=kept), parts, reason)) == whole
    assert Answer.of(read(parser_of(form, thinking, kept=kept), list(text), reason)) == whole
    assert (whole.finish_reason == "tool_calls") <= bool(whole.calls)


@settings(max_examples=200, deadline=None)
@given(text=st.text("<>{}[]\"':,tol_cae/\n`x", max_size=60))
def test_nothing_visible_is_lost_without_a_call(text: str) -> None:
    result = Answer.of(read(parser_of("hermes"), list(text)))
    assert result.calls or result.content == text


@settings(max_examples=200, deadline=None)
@given(text=st.text("</>tol_cae\n`x", max_size=40))
def test_nothing_visible_is_lost_behind_a_call(text: str) -> None:
    form = format_named("hermes")
    assert form is not None
    result = Answer.of(read(parser_of("hermes"), list(form.call("get", "{}") + "." + text)))
    assert len(result.calls) == 1 and result.content.strip() == ("." + text).strip()
    *_, marker = form.marks.ends
    result = Answer.of(read(parser_of("hermes"), list(form.call("get", "{}").removesuffix(marker) + text)))
    assert result.content.count("x") == text.count("x")


@settings(max_examples=300, deadline=None)
@given(value=JSON, junk=st.text('{}[],:"\\ 0-1.eEtfnul\n', max_size=3), place=st.integers(0, 60))
def test_the_scanner_knows_json_as_the_library_does(value: object, junk: str, place: int) -> None:
    text = json.dumps({"a": value})
    text = text[:place] + junk + text[place:]
    scanner = JsonScanner()
    fits = all(scanner.push(char) for char in text) and scanner.complete
    try:
        parsed = json.loads(text, parse_constant=_refuse)
    except ValueError:
        parsed = None
    assert fits == isinstance(parsed, dict)


def _refuse(word: str) -> None:
    raise ValueError(word)
