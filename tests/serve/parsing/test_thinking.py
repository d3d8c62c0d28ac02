from __future__ import annotations

import pytest

from tests.serve.parsing.answers import answer, parser_of, read

CASES = [
    ("yes", "<think>\nhm\n\n</think>\n\nHi  ", "hm", "Hi  "),
    ("yes", "\n<think></think>Hi", "", "Hi"),
    ("yes", "Hi <think>x</think>", "", "Hi <think>x</think>"),
    ("yes", "  <thinx> ", "", "  <thinx> "),
    ("yes", "<think>never ends </thi", "never ends </thi", ""),
    ("opened", "\nhm\n</think>\nHi", "hm", "Hi"),
    ("opened", "hm", "hm", ""),
    ("opened", "a </think> b </think> c", "a", "b </think> c"),
    ("no", "<think>x</think>y", "", "<think>x</think>y"),
]


@pytest.mark.parametrize(("thinking", "text", "reasoning", "content"), CASES)
def test_reasoning_is_divided_from_the_answer(thinking: str, text: str, reasoning: str, content: str) -> None:
    found = answer("hermes", text, thinking)
    assert (found.reasoning, found.content) == (reasoning, content)


def test_calls_in_reasoning_are_thoughts() -> None:
    call = '<tool_call>{"name": "get", "arguments": {}}</tool_call>'
    found = answer("hermes", f"<think>{call}</think>{call}", "yes")
    assert found.reasoning == call and len(found.calls) == 1


@pytest.mark.parametrize(
    ("thinking", "tokens", "count"),
    [
        ("yes", ["<think>", "\n", "one", " two", "</think>", "\n\n", "three"], 3),
        ("yes", ["<thi", "nk>", "one", " two</", "thi", "nk>", "three"], 1),
        ("opened", ["one", " two", "</think>", "three"], 2),
        ("opened", ["one", " two"], 2),
        ("yes", ["one", " two"], 0),
        ("no", ["<think>", "one", "</think>"], 0),
    ],
)
def test_tokens_inside_of_the_reasoning_are_counted(thinking: str, tokens: list[str], count: int) -> None:
    parser = parser_of("hermes", thinking)
    read(parser, tokens)
    assert parser.reasoning_tokens == count
