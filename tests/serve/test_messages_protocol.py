"""What a Messages request is as a chat, and what blocks the pieces of an answer make."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek.errors import InvalidRequestError
from deepseek_serve.answers import AnswerPiece, CallPiece
from deepseek_serve.errors import api_error
from deepseek_serve.protocol.anthropic.blocks import BlockWriter, content_of
from deepseek_serve.protocol.anthropic.chat import Translation
from deepseek_serve.protocol.anthropic.request import CountRequest, MessagesRequest
from deepseek_serve.protocol.anthropic.response import BlockDelta, BlockStart, BlockStop, Text, Thinking, ToolUse

HI = {"role": "user", "content": "hi"}


def parsed(**fields: Any) -> MessagesRequest:
    body = {"model": "m", "max_tokens": 9, "messages": [HI]} | fields
    return MessagesRequest.model_validate_json(json.dumps(body))


def messages_of(*messages: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
    """The messages of the chat, without what was not said."""
    chat = Translation(parsed(messages=list(messages), **fields)).chat
    return [message.model_dump(exclude_unset=True) for message in chat.messages]


def refusal(**fields: Any) -> tuple[str, str | None]:
    """Message and field of the error that a request gets."""
    try:
        Translation(parsed(**fields))
    except Exception as error:  # noqa: BLE001 - whatever it is, it must become a 400
        told = api_error(error)
        assert told.status == 400
        return str(told), told.body.param
    raise AssertionError("the request is not refused")


def text(words: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": words, **fields}


def test_strings_and_blocks() -> None:
    ephemeral = {"type": "ephemeral", "ttl": "1h"}
    assert messages_of(HI) == [HI]
    assert messages_of(
        {"role": "user", "content": [text("a", cache_control=ephemeral), text("b", citations=None)]},
        {"role": "assistant", "content": [text("c")]},
        HI,
        system=[text("s", cache_control=ephemeral), text("t")],
        cache_control=ephemeral,
    ) == [
        {"role": "system", "content": [text("s"), text("t")]},
        {"role": "user", "content": [text("a"), text("b")]},
        {"role": "assistant", "content": "c"},
        HI,
    ]


def test_neighbours_of_one_role_are_one_turn_and_a_last_one_of_the_assistant_is_continued() -> None:
    assert messages_of(HI, HI, {"role": "assistant", "content": "so"}, {"role": "assistant", "content": "be"}) == [
        {"role": "user", "content": [text("hi"), text("hi")]},
        {"role": "assistant", "content": [text("so"), text("be")], "prefix": True},
    ]
    assert messages_of(HI, {"role": "system", "content": "be brief"})[1] == {"role": "system", "content": "be brief"}


def test_options() -> None:
    chat = Translation(
        parsed(
            temperature=1,
            top_p=0.5,
            top_k=7,
            stop_sequences=["x"],
            stream=True,
            metadata={"user_id": "ann"},
            service_tier="standard_only",
            output_config={"format": {"type": "json_schema", "schema": {"type": "object"}}},
        )
    ).chat
    assert (chat.max_tokens, chat.temperature, chat.top_p, chat.top_k, chat.stop) == (9, 1, 0.5, 7, ["x"])
    assert (chat.stream, chat.user_id, chat.service_tier) == (True, "ann", "default")
    assert chat.constraint() is not None
    budget = {"type": "enabled", "budget_tokens": 1024}
    assert Translation(parsed(thinking=budget, max_tokens=1025)).chat.thinks is True
    assert Translation(parsed(thinking={"type": "disabled"})).chat.thinks is False
    assert Translation(parsed(thinking={"type": "adaptive"})).chat.thinks is None
    quiet = Translation(parsed(thinking={"type": "disabled"}, output_config={"effort": "low"})).chat
    assert quiet.template_kwargs() == {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}
    chat = Translation(CountRequest.model_validate_json(json.dumps({"model": "m", "messages": [HI]}))).chat
    assert chat.max_tokens is None


LOOK = {"name": "look", "description": "Looks.", "input_schema": {"type": "object"}, "strict": True}


@pytest.mark.parametrize(
    ("choice", "mode", "single", "names"),
    [
        (None, "auto", False, {"look", "hear"}),
        ({"type": "auto"}, "auto", False, {"look", "hear"}),
        ({"type": "auto", "disable_parallel_tool_use": True}, "auto", True, {"look", "hear"}),
        ({"type": "any"}, "required", False, {"look", "hear"}),
        ({"type": "tool", "name": "hear"}, "required", True, {"hear"}),
        ({"type": "none"}, "none", False, set()),
    ],
)
def test_tools(choice: dict[str, Any] | None, mode: str, single: bool, names: set[str]) -> None:
    hear = {"type": "custom", "name": "hear", "input_schema": {}, "cache_control": None}
    tooling = Translation(parsed(tools=[LOOK, hear], tool_choice=choice)).chat.tooling()
    assert (tooling.mode, tooling.single, {function.name for function in tooling.functions}) == (mode, single, names)
    if "look" in names:
        (function,) = (function for function in tooling.functions if function.name == "look")
        assert function.strict and function.parameters == LOOK["input_schema"] and function.description == "Looks."


def test_calls_results_and_thinking_of_earlier_turns() -> None:
    thinking = {"type": "thinking", "thinking": "hm", "signature": "of anybody"}
    made = calls("a", "b")
    made["content"] = [thinking, {"type": "redacted_thinking", "data": "?"}, *made["content"]]
    done = results("a", "b")
    done["content"][0]["content"] = [text("sunny"), text("warm")]
    done["content"][1] |= {"content": "no such place", "is_error": True}
    done["content"].append(text("so?"))
    assert messages_of(HI, made, done)[1:] == [
        {
            "role": "assistant",
            "content": "well",
            "reasoning_content": "hm",
            "tool_calls": [
                {"id": name, "type": "function", "function": {"name": "look", "arguments": f'{{"at":"{name}"}}'}}
                for name in ("a", "b")
            ],
        },
        {"role": "tool", "tool_call_id": "a", "content": "sunny\nwarm"},
        {"role": "tool", "tool_call_id": "b", "content": "Error: no such place"},
        {"role": "user", "content": "so?"},
    ]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": None}, "max_tokens", "valid integer"),
        ({"max_tokens": "9"}, "max_tokens", "valid integer"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "'user', 'assistant' or 'system'"),
        ({"messages": [HI, {"role": "user"}]}, "messages[1].content", "Missing required"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "valid"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content", "must have content"),
        ({"messages": [{"role": "user", "content": [text(5)]}]}, "messages[0].content[0].text", "valid string"),  # type: ignore[arg-type]
        ({"messages": [{"role": "user", "content": [text("x", colour="red")]}]}, "messages[0].content[0].colour", "Un"),
        ({"messages": [{"role": "user", "content": ["x"]}]}, "messages[0].content[0]", "valid"),
        ({"messages": [{"role": "user", "content": [{}]}]}, "messages[0].content[0].type", "must have a type"),
        (
            {"messages": [HI, {"role": "user", "content": [text("a"), {"type": "image", "source": {}}]}]},
            "messages[1].content[1]: image",
            "not supported yet",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "document"}]}]},
            "messages[0].content[0]: document",
            "not",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "hm", "signature": ""}]}]},
            "messages[0].content[0].type",
            "role 'user'",
        ),
        ({"temperature": 1.5}, "temperature", "less than or equal to 1"),
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"top_k": -1}, "top_k", "greater than"),
        ({"stop_sequences": "x"}, "stop_sequences", "valid array"),
        ({"metadata": {"user_id": "u" * 513}}, "metadata.user_id", "512"),
        ({"metadata": {"name": "ann"}}, "metadata.name", "Unrecognized"),
        ({"service_tier": "flex"}, "service_tier", "'auto' or 'standard_only'"),
        ({"inference_geo": "eu"}, "inference_geo", "Unrecognized"),
        ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens", "required"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1023}}, "thinking.budget_tokens", "1024"),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, "thinking.budget_tokens", "less than 'max_tokens'"),
        ({"thinking": {"type": "disabled", "budget_tokens": 1024}}, "thinking.budget_tokens", "not allowed"),
        ({"tools": [{"name": "a b", "input_schema": {}}]}, "tools[0].name", "match pattern"),
        ({"tools": [{"name": "a"}]}, "tools[0].input_schema", "Missing"),
        ({"tools": [{"type": "custom", "name": "a", "input_schema": 5}]}, "tools[0].input_schema", "be an object"),
        ({"tools": [{"type": "web_search_20250305", "name": "w"}]}, "tools[0]: web_search_20250305", "not supported"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice.name", "required"),
        ({"tool_choice": {"type": "any", "name": "x"}}, "tool_choice.name", "not allowed"),
        ({"system": [{"type": "image"}]}, "system[0].type", "'text'"),
        ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type", "'json_schema'"),
    ],
)
def test_refused_with_the_name_of_the_field(fields: dict[str, Any], param: str, words: str) -> None:
    message, field = refusal(**fields)
    assert field == param and words in message
    assert param in message


def test_errors_inside_of_the_chat_name_what_was_sent() -> None:
    translation = Translation(parsed(messages=[HI, {"role": "assistant", "content": "a"}, HI], system="s"))
    cases = [
        (InvalidRequestError("messages[1].content is odd", param="messages[1].content"), "messages[0].content"),
        (InvalidRequestError("stop has 17 strings; nonstop", param="stop"), "stop_sequences"),
        (InvalidRequestError("no 'response_format'", param="response_format"), "output_config.format"),
        (InvalidRequestError("bad", param="tools[2].function.parameters"), "tools[2].input_schema"),
        (InvalidRequestError("bad", param="tools[2].function.name"), "tools[2].name"),
        (InvalidRequestError("too long", param="messages"), "messages"),
        (InvalidRequestError("bad", param=None), None),
    ]
    for error, name in cases:
        with pytest.raises(InvalidRequestError) as caught, translation.errors():
            raise error
        assert caught.value.param == name
    with pytest.raises(InvalidRequestError, match=r"^stop_sequences has 17 strings; nonstop$"), translation.errors():
        raise cases[1][0]


def calls(*ids: str) -> dict[str, Any]:
    blocks = [{"type": "tool_use", "id": name, "name": "look", "input": {"at": name}} for name in ids]
    return {"role": "assistant", "content": [text("well"), *blocks]}


def results(*ids: str) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "tool_result", "tool_use_id": name} for name in ids]}


@pytest.mark.parametrize(
    ("messages", "param", "words"),
    [
        ([HI, calls("a")], "messages[1].content[1]", "must follow in the next turn"),
        ([HI, calls("a"), HI], "messages[1].content[1]", "no tool_result block"),
        ([HI, calls("a", "b"), results("a")], "messages[1].content[2]", "no tool_result block"),
        (
            [HI, calls("a"), results("a", "b")],
            "messages[2].content[1].tool_use_id",
            "no tool_use block with the id 'b'",
        ),
        ([HI, calls("a"), results("a", "a")], "messages[2].content[1].tool_use_id", "no tool_use block"),
        ([HI, results("a")], "messages[1].content[0].tool_use_id", "no tool_use block"),
        ([HI, calls("a", "a")], "messages[1].content[2].id", "same id"),
    ],
)
def test_each_call_has_one_result_in_the_next_turn(messages: list[dict[str, Any]], param: str, words: str) -> None:
    message, field = refusal(messages=messages)
    assert field == param and words in message


def joined(events: list[Any]) -> list[dict[str, Any]]:
    """What a client makes of the events: every block begins, grows and ends before the next one."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in events:
        match event:
            case BlockStart(index, block):
                assert index == len(blocks) and not is_open
                is_open = True
                blocks.append({"kind": type(block), "text": "", "signature": ""})
            case BlockDelta(index, delta):
                assert index == len(blocks) - 1 and is_open
                (name,) = delta.__struct_fields__
                blocks[-1]["signature" if name == "signature" else "text"] += getattr(delta, name)
            case BlockStop(index):
                assert index == len(blocks) - 1 and is_open
                is_open = False
    assert not is_open
    return blocks


def split(word: str, sizes: list[int]) -> list[str]:
    parts, start = [], 0
    for size in sizes:
        parts.append(word[start : start + size])
        start += size
    return [part for part in [*parts, word[start:]] if part]


@st.composite
def answers(draw: st.DrawFn) -> tuple[str, str, list[str], list[AnswerPiece]]:
    """Thinking, text, the arguments of calls, and pieces that these come in."""
    sizes = st.lists(st.integers(1, 5), max_size=6)
    thinking, said = draw(st.text(max_size=12)), draw(st.text(max_size=12))
    arguments = [json.dumps({"k": value}) for value in draw(st.lists(st.text(max_size=5), max_size=3))]
    pieces = [AnswerPiece(reasoning=part) for part in split(thinking, draw(sizes))]
    pieces += [AnswerPiece(content=part) for part in split(said, draw(sizes))]
    for index, whole in enumerate(arguments):
        first, *rest = split(whole, draw(sizes))
        pieces.append(AnswerPiece(calls=(CallPiece(index, first, f"call_{index}", "look"),)))
        pieces += [AnswerPiece(calls=(CallPiece(index, part),)) for part in rest]
    return thinking, said, arguments, pieces


@given(answers())
def test_joined_events_and_whole_blocks_are_the_same(answer: tuple[str, str, list[str], list[AnswerPiece]]) -> None:
    thinking, said, arguments, pieces = answer
    writer = BlockWriter()
    events = [event for piece in pieces for event in writer.push(piece)]
    events += writer.end()
    digest = base64.b64encode(hashlib.sha256(thinking.encode()).digest()).decode()
    expected: list[Any] = [Thinking(thinking, digest)] * bool(thinking) + [Text(said)] * bool(said)
    expected += [ToolUse(f"call_{index}", "look", json.loads(whole)) for index, whole in enumerate(arguments)]
    assert content_of(events) == expected
    assert [block["text"] for block in joined(events)] == [t for t in (thinking, said, *arguments) if t]


def test_thinking_that_is_not_shown_is_still_signed() -> None:
    writer = BlockWriter(show_thinking=False)
    events = [*writer.push(AnswerPiece(reasoning="secret")), *writer.end()]
    (block,) = content_of(events)
    assert isinstance(block, Thinking) and block.thinking == "" and len(base64.b64decode(block.signature)) == 32


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"at": 1, "city": "Par', {"at": 1}),
        ('{"a": 1, "b"', {"a": 1}),
        ("", {}),
        ("[1]", {}),
        ("nonsense", {}),
        ('{"a": 1}', {"a": 1}),
    ],
)
def test_arguments_that_were_cut_off(arguments: str, expected: dict[str, Any]) -> None:
    writer = BlockWriter()
    events = [*writer.push(AnswerPiece(calls=(CallPiece(0, arguments, "call_0", "look"),))), *writer.end()]
    assert content_of(events) == [ToolUse("call_0", "look", expected)]
