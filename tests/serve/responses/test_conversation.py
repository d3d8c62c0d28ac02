"""Items become the turns of a chat, and errors speak of items."""

from __future__ import annotations

from typing import Any

import pytest

from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.chat import ChatRequest, Message
from deepseek_serve.protocol.responses_api.request import ResponseRequest
from deepseek_serve.responses.conversation import chat_request, input_items

CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"a": 1}'}
RESULT = {"type": "function_call_output", "call_id": "c1", "output": "42"}
THOUGHT = {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
SAID = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me look."}]}
ASKED = {"role": "user", "content": "What is a?"}


def request(**fields: Any) -> ResponseRequest:
    return ResponseRequest.model_validate({"model": "m", **fields})


def chat(**fields: Any) -> ChatRequest:
    return chat_request(request(**fields), [])


def turns(messages: list[Message]) -> list[dict[str, Any]]:
    return [message.model_dump(exclude_none=True) for message in messages]


def test_one_answer_is_one_turn() -> None:
    found = turns(chat(input=[ASKED, THOUGHT, SAID, CALL, RESULT, SAID, ASKED], instructions="Be brief.").messages)
    assert [turn["role"] for turn in found] == ["system", "user", "assistant", "tool", "assistant", "user"]
    assert found[0]["content"] == "Be brief."
    assert found[2]["reasoning_content"] == "Hm." and found[2]["content"] == "Let me look."
    assert found[2]["tool_calls"][0]["id"] == "c1"
    assert found[2]["tool_calls"][0]["function"] == {"name": "look", "arguments": '{"a": 1}'}
    assert found[3] == {"role": "tool", "content": "42", "tool_call_id": "c1"}


def test_what_begins_a_turn_of_its_own() -> None:
    roles = [
        [turn["role"] for turn in turns(chat(input=items).messages)]
        for items in ([SAID, SAID], [CALL, SAID], [CALL, THOUGHT], [CALL, CALL | {"call_id": "c2"}], [THOUGHT, THOUGHT])
    ]
    assert [len(found) for found in roles] == [2, 2, 2, 1, 2]


def test_parts_are_joined() -> None:
    parts = [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]
    assert turns(chat(input=[{"role": "user", "content": parts}]).messages)[0]["content"] == "a\nb"
    output = [CALL, RESULT | {"output": parts}]
    assert turns(chat(input=output).messages)[1]["content"] == "a\nb"


def test_fields_become_a_chats() -> None:
    schema = {"type": "object", "properties": {}}
    made = chat(
        input="Hi",
        max_output_tokens=7,
        top_logprobs=2,
        reasoning={"effort": "low"},
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
        tools=[{"type": "function", "name": "look", "description": "d", "parameters": schema, "strict": True}],
        tool_choice={"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "look"}]},
        parallel_tool_calls=False,
        temperature=0.5,
        seed=3,
    )
    assert (made.token_limit(), made.logprob_count(), made.reasoning_effort, made.seed) == (7, 2, "low", 3)
    tooling = made.tooling()
    assert tooling.names == {"look"} and tooling.mode == "required" and tooling.single
    assert tooling.functions[0].strict and tooling.functions[0].parameters == schema
    assert made.constraint() is not None
    named = chat(input="Hi", tools=[{"type": "function", "name": "f"}], tool_choice={"type": "function", "name": "f"})
    assert named.tooling().mode == "required" and named.tooling().single
    assert chat(input="Hi", include=["message.output_text.logprobs"]).logprob_count() == 0
    assert chat(input="Hi").logprob_count() is None


def test_stored_items_are_complete() -> None:
    items = input_items(
        request(input=[ASKED, {"role": "assistant", "content": "42"}, CALL | {"id": "fc_1"}, RESULT, THOUGHT])
    )
    assert [item["id"].partition("_")[0] for item in items] == ["msg", "msg", "fc", "fco", "rs"]
    assert items[0]["content"] == [{"type": "input_text", "text": "What is a?"}]
    assert items[1]["content"] == [{"type": "output_text", "text": "42"}]
    assert items[2]["id"] == "fc_1" and {item["status"] for item in items} == {"completed"}
    again = request(input=items)
    assert turns(chat_request(again, []).messages)[0] == {"role": "user", "content": "What is a?"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": [RESULT]}, "input[0].call_id"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input[0].content[0].text"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
        ({"text": {"format": {"type": "text", "strict": True}}}, "text.format.strict"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.name"),
        ({"tool_choice": {"type": "allowed_tools", "mode": "auto"}}, "tool_choice.tools"),
        ({"tool_choice": {"type": "function", "name": "f", "mode": "auto"}}, "tool_choice.mode"),
    ],
)
def test_what_does_not_fit_together(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequestError) as told:
        chat(**{"input": "Hi", **fields})
    assert told.value.param == param
