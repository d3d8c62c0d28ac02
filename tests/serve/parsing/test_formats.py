from __future__ import annotations

import json

import pytest

from deepseek_serve.parsing.formats import FORMATS, format_named, format_of_template
from tests.serve.parsing.answers import answer, parser_of, read

HERMES = '<tool_call>\n{"name": "get", "arguments": {"city": "a\\"b", "n": 3}}\n</tool_call>'
LLAMA = '{"name": "get", "parameters": {"city": "x"}}'
V3 = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get\n```json\n{"city": "x"}\n```'
    "<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>f-2\n```json\n{}\n```<｜tool▁call▁end｜>"
    "<｜tool▁calls▁end｜>"
)
V31 = (
    '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get<｜tool▁sep｜>{"city": "x"}<｜tool▁call▁end｜>'
    "<｜tool▁call▁begin｜>f-2<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>"
)
XML = (
    '<tool_call>\n<function=get>\n<parameter=city>\na "b"\nc\n</parameter>\n<parameter=n>\n3\n</parameter>\n'
    '<parameter=o>\n{"a": [1]}\n</parameter>\n</function>\n</tool_call>'
)

CALLS: list[tuple[str, str, str, list[tuple[str, str]]]] = [
    ("hermes", HERMES, "", [("get", '{"city": "a\\"b", "n": 3}')]),
    ("hermes", f"Let me look.\n{HERMES}\n{HERMES}\n", "Let me look.", [("get", '{"city": "a\\"b", "n": 3}')] * 2),
    ("hermes", HERMES + " and on  ", " and on  ", [("get", '{"city": "a\\"b", "n": 3}')]),
    ("hermes", '<tool_call>{"arguments": {"n": 1}, "name": "get"}</tool_call>', "", [("get", '{"n": 1}')]),
    ("hermes", '<tool_call>{"name":"get"}</tool_call>', "", [("get", "{}")]),
    ("hermes", '<tool_call>{"name":"get", "arguments": null}</tool_call>', "", [("get", "{}")]),
    ("hermes", '<tool_call>{"name":"get", "arguments": "{\\"n\\": 1}"}</tool_call>', "", [("get", '{"n": 1}')]),
    ("hermes", '<tool_call>{"name":"f-2", "parameters": {}, "id": 12 , "x": [1, "}"] }', "", [("f-2", "{}")]),
    ("hermes", '{"name": "f-2", "arguments": {}}', "", [("f-2", "{}")]),
    ("hermes", '```json\n{"name": "f-2", "arguments": {}}\n```', "", [("f-2", "{}")]),
    ("llama3_json", LLAMA, "", [("get", '{"city": "x"}')]),
    ("llama3_json", f" <|python_tag|>{LLAMA}; {LLAMA}", "", [("get", '{"city": "x"}')] * 2),
    ("deepseek_v3", V3, "", [("get", '{"city": "x"}'), ("f-2", "{}")]),
    ("deepseek_v31", "Well.\n\n" + V31, "Well.", [("get", '{"city": "x"}'), ("f-2", "{}")]),
    ("qwen3_coder", XML, "", [("get", '{"city": "a \\"b\\"\\nc", "n": 3, "o": {"a": [1]}}')]),
]


@pytest.mark.parametrize(("form", "text", "content", "calls"), CALLS)
def test_calls_are_read(form: str, text: str, content: str, calls: list[tuple[str, str]]) -> None:
    found = answer(form, text)
    assert found.content == content and [(call.name, call.arguments) for call in found.calls] == calls
    assert [call.id for call in found.calls] == [f"id{i}" for i in range(len(calls))]
    assert found.finish_reason == "tool_calls"
    assert all(isinstance(json.loads(call.arguments), dict) for call in found.calls)


NO_CALLS = [
    ("hermes", "plain <tool_ca text {x}"),
    ("hermes", "<tool_call>no json</tool_call>"),
    ("hermes", '<tool_call>\n{"name": "unknown", "arguments": {"n": 1}}\n</tool_call>'),
    ("hermes", '<tool_call>{"name": "get", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "get", "arguments": "no json"}</tool_call>'),
    ("hermes", '<tool_call>{"arguments": {"n": 1}}</tool_call>'),
    ("hermes", '<tool_call>{"name": ["get"], "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "get", "argum'),
    ("hermes", '{"a": 1}'),
    ("hermes", '<tool_call>{"arguments": {"n": ' + "1" * 5000 + '}, "name": "get"}</tool_call>'),
    ("hermes", '<tool_call>{"name": ' + "[" * 100_000),
    ("hermes", '<tool_call>{"name": ' + "1" * 5000 + "}"),
    ("hermes", '<tool_call>{"arguments": ' + '{"a":' * 20_000 + "1" + "}" * 20_000 + ', "name": "get"}</tool_call>'),
    ("hermes", 'Write:\n```json\n{"name": "get", "arguments": {}}\n```'),
    ("llama3_json", '{"a": 1}'),
    ("llama3_json", "Call " + LLAMA),
    ("deepseek_v31", "<｜tool▁call▁begin｜>unknown<｜tool▁sep｜>{}<｜tool▁call▁end｜>"),
    ("deepseek_v3", "<｜tool▁call▁begin｜>function<｜tool▁sep｜>unknown\n```json\n{}\n```<｜tool▁call▁end｜>"),
    ("qwen3_coder", XML.replace("get", "unknown")),
    ("qwen3_coder", "<tool_call>\n<function"),
]


@pytest.mark.parametrize(("form", "text"), NO_CALLS)
def test_what_is_no_call_is_content_to_the_last_character(form: str, text: str) -> None:
    found = answer(form, text)
    assert found.content == text and not found.calls and found.finish_reason == "stop"


def test_a_good_call_behind_a_bad_one() -> None:
    found = answer("hermes", "<tool_call>bad</tool_call>" + HERMES)
    assert found.content == "<tool_call>bad</tool_call>" and len(found.calls) == 1


def test_arguments_that_cease_to_be_json_are_kept_as_they_are() -> None:
    found = answer("hermes", '<tool_call>{"name": "get", "arguments": {"n": bad}}</tool_call> so')
    assert [call.arguments for call in found.calls] == ['{"n": bad}}'] and found.content == " so"


def test_a_truncated_call_keeps_its_arguments() -> None:
    parts = ['<tool_call>{"name": "get", "arguments": {"n": 1', "2"]
    *_, last = pieces = read(parser_of("hermes"), parts, "length")
    assert last.finish_reason == "length"
    assert "".join(call.arguments for piece in pieces for call in piece.calls) == '{"n": 12'


def test_arguments_stream_as_they_come() -> None:
    parts = ['<tool_call>{"name": "get", "arguments": {"city"', ': "Par', "is", '"}}', "</tool_call>"]
    found = [[(c.name, c.arguments) for c in piece.calls] for piece in read(parser_of("hermes"), parts)]
    assert found == [[("get", '{"city"')], [(None, ': "Par')], [(None, "is")], [(None, '"}')], [], []]


def test_strings_of_elements_stream_as_they_come() -> None:
    parts = ["<tool_call><function=get><parameter=city>\nPar", "is\n", "</parameter></function>"]
    found = ["".join(c.arguments for c in piece.calls) for piece in read(parser_of("qwen3_coder"), parts)]
    assert found == ['{"city": "Pa', "ris", '"}', ""]


def test_plain_json_is_no_call_where_a_grammar_keeps_to_the_format() -> None:
    text = '{"name": "f-2", "arguments": {}}'
    assert answer("hermes", text, kept=True).content == text


def test_templates_are_known_by_their_words() -> None:
    assert format_of_template("... <tool_call>\n{...}") is format_named("hermes")
    assert format_of_template("<tool_call>\n<function=x>") is format_named("qwen3_coder")
    assert format_of_template("<｜tool▁calls▁begin｜> '```json'") is format_named("deepseek_v3")
    assert format_of_template("<｜tool▁calls▁begin｜>") is format_named("deepseek_v31")
    assert format_of_template("<|start_header_id|> '\"parameters\": '") is format_named("llama3_json")
    assert format_of_template("<|im_start|>") is None
    assert len({found.name for found in FORMATS}) == len(FORMATS)


@pytest.mark.parametrize("form", [found.name for found in FORMATS if not found.elements])
def test_a_format_reads_what_it_writes(form: str) -> None:
    found = format_named(form)
    assert found is not None
    calls = found.between.join([found.call("get", '{"n": 1}'), found.call("f-2", "{}")])
    result = answer(form, found.before + calls + found.after, kept=True)
    assert [(call.name, call.arguments) for call in result.calls] == [("get", '{"n": 1}'), ("f-2", "{}")]
    assert result.content == ""
