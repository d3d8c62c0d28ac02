"""What a grammar of calls allows, and what it makes of a model that says anything."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from llguidance import LLMatcher, LLTokenizer

from deepseek.constraints import Constraint
from deepseek.engine.grammar import check, compile_matcher, to_grammar
from deepseek.errors import InvalidRequestError
from deepseek_serve.parsing.answer import AnswerParser
from deepseek_serve.parsing.formats import FORMATS, format_named
from deepseek_serve.parsing.grammar import call_grammar, needs_grammar
from deepseek_serve.parsing.pieces import Answer
from deepseek_serve.parsing.thinking import ThinkParser
from deepseek_serve.protocol.tools import Function, Tooling
from tests.serve.parsing.answers import read

GET = Function(
    name="get",
    parameters={
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Köln", 'a "b"', "x\ny"]},
            "n": {"type": "integer", "minimum": 0, "maximum": 99},
            "o": {"$ref": "#/$defs/pair"},
        },
        "required": ["city", "o"],
        "additionalProperties": False,
        "$defs": {
            "pair": {
                "type": "object",
                "properties": {"a": {"type": "boolean"}},
                "required": ["a"],
                "additionalProperties": False,
            }
        },
    },
    strict=True,
)
EMPTY = Function(name="f-2", strict=True)
ANSWER = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}},
    "required": ["ok"],
    "additionalProperties": False,
}
NAMES = [found.name for found in FORMATS]
SPECIAL = frozenset({"<｜tool▁calls▁begin｜>", "<｜tool▁call▁end｜>", "<|im_end|>", "</think>"})
BYTES = LLTokenizer("byte")


def grammar(form: str, mode: Any = "required", **options: Any) -> Constraint:
    found = format_named(form)
    assert found is not None
    functions = options.pop("functions", (GET, EMPTY))
    tools = Tooling(functions, mode, options.pop("single", False), "tools", ("tools[0]", "tools[1]"))
    return call_grammar(found, tools, options.pop("special", frozenset()), **options)


def matcher_of(constraint: Constraint) -> LLMatcher:
    check(constraint)
    return compile_matcher(BYTES, to_grammar(constraint, frozenset()).text)


def allows(constraint: Constraint, text: str, *, whole: bool = True) -> bool:
    matcher, data = matcher_of(constraint), list(text.encode())
    return matcher.try_consume_tokens(data) == len(data) and (matcher.is_accepting() or not whole)


def babble(constraint: Constraint, seed: int, most: int = 3000) -> str:
    """What a model says that knows nothing but the grammar, until it must end."""
    matcher, chance = matcher_of(constraint), random.Random(seed)
    said = bytearray()
    while not matcher.is_stopped() and len(said) < most:
        bits = matcher.compute_bitmask()
        allowed = [byte for byte in range(256) if bits[byte // 8] >> (byte % 8) & 1]
        if not allowed or (matcher.is_accepting() and chance.random() < 0.5):
            return said.decode()
        byte = chance.choice(allowed)
        assert matcher.consume_token(byte), matcher.get_error()
        said.append(byte)
    assert matcher.is_stopped(), "it did not end"
    return said.decode()


def read_answer(form: str, text: str, *, thinks: bool = False, opened: bool = False) -> Answer:
    found = format_named(form)
    assert found is not None
    calls = found.parser({"get": GET.schema_, "f-2": EMPTY.schema_}, kept=True)
    return Answer.of(read(AnswerParser(ThinkParser(opened=opened) if thinks else None, calls), list(text)))


def check_calls(answer: Answer) -> None:
    """All calls keep to the schemas above."""
    for call in answer.calls:
        found = json.loads(call.arguments)
        if call.name == "get":
            assert found.pop("city") in ("Köln", 'a "b"', "x\ny")
            assert found.pop("o") in ({"a": True}, {"a": False})
            number = found.pop("n", 0)
            assert isinstance(number, int) and 0 <= number <= 99
        assert found == {}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("form", NAMES)
def test_a_forced_answer_is_calls_that_keep_to_their_schemas(form: str, seed: int) -> None:
    answer = read_answer(form, babble(grammar(form), seed))
    assert answer.calls and answer.content == "" and answer.finish_reason == "tool_calls"
    check_calls(answer)


@pytest.mark.parametrize("form", NAMES)
def test_a_single_call(form: str) -> None:
    for seed in range(6):
        assert len(read_answer(form, babble(grammar(form, single=True), seed)).calls) == 1


@pytest.mark.parametrize("form", NAMES)
def test_calls_in_free_text_keep_to_their_schemas(form: str) -> None:
    found = format_named(form)
    assert found is not None
    auto = grammar(form, "auto")
    assert allows(auto, "Words, <b>any</b> {words}.\n")
    begin = found.before + found.call("get", "\0").partition("\0")[0]
    assert allows(auto, begin, whole=False)
    assert not allows(auto, begin.replace("get", "got"), whole=False)
    assert not allows(auto, begin + '{"town"', whole=False)
    assert not allows(auto, begin + "<parameter=town>", whole=False)


def test_json_cannot_be_told_from_bare_calls() -> None:
    with pytest.raises(InvalidRequestError, match="response_format"):
        grammar("llama3_json", "auto", answer=ANSWER)


@pytest.mark.parametrize("form", [name for name in NAMES if name != "llama3_json"])
def test_an_answer_is_calls_or_json_of_its_schema(form: str) -> None:
    both = grammar(form, "auto", answer=ANSWER)
    assert allows(both, '{"ok": true}') and not allows(both, "words", whole=False)
    for seed in range(6):
        answer = read_answer(form, babble(both, seed))
        check_calls(answer)
        assert answer.calls or isinstance(json.loads(answer.content)["ok"], bool)


@pytest.mark.parametrize("form", NAMES)
def test_reasoning_comes_before_a_forced_call(form: str) -> None:
    call = babble(grammar(form), 1)
    thinks = grammar(form, thinks=True)
    assert allows(thinks, call) and allows(thinks, f"<think>\nhm {call} </think>\n\n{call}")
    assert not allows(thinks, f"<think>{call}")
    opened = grammar(form, thinks=True, opened=True)
    assert allows(opened, f"hm</think>{call}") and not allows(opened, call)
    answer = read_answer(form, f"hm</think>{call}", thinks=True, opened=True)
    assert answer.reasoning == "hm" and answer.calls


@pytest.mark.parametrize("form", NAMES)
@pytest.mark.parametrize("mode", ["auto", "required"])
def test_special_tokens_are_named(form: str, mode: str) -> None:
    constraint = grammar(form, mode, special=SPECIAL, thinks=True, opened=True)
    check(constraint)
    text = to_grammar(constraint, SPECIAL).text
    assert ("<｜tool▁calls▁begin｜>" in text) == form.startswith("deepseek")
    assert LLMatcher.validate_grammar(text, None) == ""


def test_only_what_must_be_kept_to_needs_a_grammar() -> None:
    loose = Function(name="g")
    assert not needs_grammar(Tooling((loose,), "auto"))
    assert needs_grammar(Tooling((loose,), "auto", single=True)) and needs_grammar(Tooling((loose,), "required"))
    assert needs_grammar(Tooling((loose, GET), "auto")) and not needs_grammar(Tooling())


def test_functions_that_are_not_strict_take_any_arguments() -> None:
    loose = GET.model_copy(update={"name": "g", "strict": False})
    auto = grammar("hermes", "auto", functions=(GET, loose))
    assert allows(auto, '<tool_call>\n{"name": "g", "arguments": {"town": []}}\n</tool_call>')
    auto = grammar("qwen3_coder", "auto", functions=(GET, loose))
    text = "<tool_call>\n<function=g>\n<parameter=town>\nx\n</parameter>\n</function>\n</tool_call>"
    assert allows(auto, text)


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "object"}]},
        {"properties": {"a b": {}}},
        {"properties": []},
        {"properties": {"a": {"type": "string", "enum": []}}},
    ],
)
def test_schemas_that_have_no_elements(schema: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError):
        grammar("qwen3_coder", functions=(Function(name="f", parameters=schema),))
