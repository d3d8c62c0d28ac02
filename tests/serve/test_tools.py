"""Tools and thinking through HTTP; the scripted engine says what a model would."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.serve.conftest import MODEL, Server, chat_body, events_of, running_server
from tests.serve.test_errors import error_of

PATH = "/v1/chat/completions"
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
GET = {"name": "get", "description": "Weather", "parameters": SCHEMA}
TOOLS = [{"type": "function", "function": GET}, {"type": "function", "function": {"name": "f-2"}}]
CALL = '<tool_call>\n{"name": "get", "arguments": {"city": "Köln"}}\n</tool_call>'
NAMED = {"type": "function", "function": {"name": "get"}}


def says(text: str, **fields: Any) -> dict[str, Any]:
    """A request whose answer is ``text``."""
    return chat_body("[echo]" + text, **fields)


def whole(http: httpx.Client, body: dict[str, Any]) -> dict[str, Any]:
    response = http.post(PATH, json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


def deltas(http: httpx.Client, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = http.post(PATH, json={**body, "stream": True})
    assert response.status_code == 200, response.text
    return [json.loads(event)["choices"][0] for event in events_of(response)[:-1]]


def joined(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The message that the deltas of a stream make."""
    message: dict[str, Any] = {"content": "", "reasoning_content": "", "tool_calls": []}
    for chunk in chunks:
        for field in ("content", "reasoning_content"):
            message[field] += chunk["delta"].get(field) or ""
        for call in chunk["delta"].get("tool_calls", []):
            if call["index"] == len(message["tool_calls"]):
                assert call["type"] == "function" and call["id"].startswith("call_")
                message["tool_calls"].append({"name": call["function"]["name"], "arguments": ""})
            message["tool_calls"][call["index"]]["arguments"] += call["function"]["arguments"]
    return message


def test_calls(http: httpx.Client) -> None:
    (choice,) = whole(http, says("I look.\n" + CALL + "\n" + CALL, tools=TOOLS))["choices"]
    message = choice["message"]
    assert choice["finish_reason"] == "tool_calls" and message["content"] == "I look."
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "get", "arguments": '{"city": "Köln"}'}
    ] * 2
    first, second = message["tool_calls"]
    assert first["id"] != second["id"] and first["type"] == "function"


def test_content_is_null_in_an_answer_of_calls_alone(http: httpx.Client) -> None:
    assert whole(http, says(CALL, tools=TOOLS))["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize(
    "text", ["I look.\n" + CALL + CALL, "no call", CALL.replace("get", "unknown"), "<think>\nhm</think>\n\n" + CALL]
)
def test_a_stream_is_the_whole_answer_in_pieces(http: httpx.Client, text: str) -> None:
    (choice,) = whole(http, says(text, tools=TOOLS))["choices"]
    chunks = deltas(http, says(text, tools=TOOLS))
    message = joined(chunks)
    assert message["content"] == (choice["message"]["content"] or "")
    assert message["reasoning_content"] == choice["message"].get("reasoning_content", "")
    assert message["tool_calls"] == [call["function"] for call in choice["message"].get("tool_calls", [])]
    assert chunks[-1]["finish_reason"] == choice["finish_reason"]


def test_arguments_stream_as_they_come(http: httpx.Client) -> None:
    chunks = deltas(http, says(CALL, tools=TOOLS))
    assert sum("tool_calls" in chunk["delta"] for chunk in chunks) == len('{"city": "Köln"}'.encode()) - 1


@pytest.mark.parametrize("choice", ["required", NAMED])
def test_a_choice_that_needs_a_call_is_accepted(http: httpx.Client, choice: Any) -> None:
    answer = whole(http, says(CALL, tools=TOOLS, tool_choice=choice))
    assert answer["choices"][0]["finish_reason"] == "tool_calls"


def test_without_tools_there_are_no_calls(http: httpx.Client) -> None:
    for fields in ({}, {"tools": TOOLS, "tool_choice": "none"}, {"tools": []}):
        (choice,) = whole(http, says(CALL, **fields))["choices"]
        assert choice["message"]["content"] == CALL and choice["finish_reason"] == "stop"


def test_only_allowed_tools_can_be_called(http: httpx.Client) -> None:
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f-2"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    answer = whole(http, says(CALL, tools=TOOLS, tool_choice=choice))
    assert answer["choices"][0]["message"]["content"] == CALL


def test_stop_strings_end_calls_too(http: httpx.Client) -> None:
    (choice,) = whole(http, says(CALL, tools=TOOLS, stop=["\n</tool"]))["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Köln"}'
    (choice,) = whole(http, says(CALL, tools=TOOLS, stop=["ln"]))["choices"]
    assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Kö'
    assert choice["finish_reason"] == "stop"


def test_logprobs_and_several_answers(http: httpx.Client) -> None:
    answer = whole(http, says(CALL, tools=TOOLS, n=2, logprobs=True))
    for choice in answer["choices"]:
        assert choice["finish_reason"] == "tool_calls"
        assert len(choice["logprobs"]["content"]) == len(CALL.encode())
    chunks = [c for c in deltas(http, says(CALL, tools=TOOLS, logprobs=True)) if c["logprobs"]]
    assert sum(len(chunk["logprobs"]["content"]) for chunk in chunks) == len(CALL.encode())


def test_functions_are_answered_in_their_own_form(http: httpx.Client) -> None:
    for choice in (None, "auto", {"name": "get"}):
        body = says(CALL, functions=[GET], function_call=choice)
        (found,) = whole(http, body)["choices"]
        assert found["message"]["function_call"] == {"name": "get", "arguments": '{"city": "Köln"}'}
        assert found["finish_reason"] == "function_call" and "tool_calls" not in found["message"]
        pieces = [chunk["delta"]["function_call"] for chunk in deltas(http, body) if "function_call" in chunk["delta"]]
        assert "".join(piece["arguments"] for piece in pieces) == '{"city": "Köln"}' and pieces[0]["name"] == "get"


def conversation(*turns: dict[str, Any]) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "hi"}, *turns]}


def assistant(call_id: str = "a", arguments: str = "{}") -> dict[str, Any]:
    call = {"id": call_id, "type": "function", "function": {"name": "get", "arguments": arguments}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_results_of_calls(http: httpx.Client) -> None:
    result = {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "21 degrees"}]}
    assert whole(http, {**conversation(assistant(), result), "tools": TOOLS})["choices"]
    older = [
        {"role": "assistant", "content": None, "function_call": {"name": "get", "arguments": "{}"}},
        {"role": "function", "name": "get", "content": "21 degrees"},
    ]
    assert whole(http, {**conversation(*older), "functions": [GET]})["choices"]


TOOL = {"role": "tool", "content": "x"}
MESSAGES: list[tuple[list[dict[str, Any]], str, str]] = [
    ([TOOL], "messages[1].tool_call_id", "must name the call"),
    ([{**TOOL, "tool_call_id": "a"}], "messages[1].tool_call_id", "makes a call 'a'"),
    ([assistant(), {**TOOL, "tool_call_id": "b"}], "messages[2].tool_call_id", "makes a call 'b'"),
    ([{**TOOL, "tool_call_id": "a"}, assistant()], "messages[1].tool_call_id", "makes a call 'a'"),
    ([{"role": "user", "content": "x", "tool_call_id": "a"}], "messages[1].tool_call_id", "role 'tool'"),
    ([{**assistant(), "role": "user", "content": "x"}], "messages[1].tool_calls", "role 'assistant'"),
    ([{"role": "function", "name": "get", "content": "x"}], "messages[1].name", "calls this function"),
    ([{**assistant(), "function_call": {"name": "get", "arguments": ""}}], "messages[1].function_call", "together"),
]


@pytest.mark.parametrize(("turns", "param", "message"), MESSAGES, ids=range(len(MESSAGES)))
def test_messages_that_do_not_fit(http: httpx.Client, turns: list[dict[str, Any]], param: str, message: str) -> None:
    error = error_of(http.post(PATH, json={**conversation(*turns), "tools": TOOLS}))
    assert error["param"] == param and message in error["message"]


def function(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "function": {"name": "f", **fields}}], "tool_choice": "required"}


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema}}
    return schema


PARAMETERS = "tools[0].function.parameters"
FIELDS: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": TOOLS * 2}, "tools[2]", "two functions"),
    ({"tools": [TOOLS[1]] * 1000}, "tools", "at most 128"),
    (function(name="<|im_end|>"), "tools[0].function.name", "pattern"),
    (function(name=""), "tools[0].function.name", "pattern"),
    (function(name="f" * 65), "tools[0].function.name", "pattern"),
    (function(parameters=[]), PARAMETERS, "should be an object"),
    (function(colour=1), "tools[0].function.colour", "Unrecognized"),
    (function(parameters={"type": 5}), PARAMETERS, "Invalid schema"),
    (function(parameters={"properties": {"a": {"type": "string", "pattern": "("}}}), PARAMETERS, "Invalid schema"),
    (function(parameters=nested(80)), PARAMETERS, ""),
    (function(parameters={"enum": ["x" * 300_000]}), "tools", "at most 262144"),
    (function(parameters={"$ref": "#/definitions/none"}), PARAMETERS, "Invalid schema"),
    (function(parameters=False), PARAMETERS, "should be an object"),
    ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice.function", "required"),
    ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "g"}}}, "tool_choice", "'g'"),
    ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice.type", "'required'"),
    ({"tools": TOOLS, "tool_choice": {"type": "auto", "function": {"name": "f"}}}, "tool_choice.function", "not all"),
    ({"tools": TOOLS, "functions": [GET]}, "functions", "together"),
    ({"functions": [GET], "function_call": {}}, "function_call", "name"),
    ({"functions": [GET], "function_call": {"name": "g"}}, "function_call", "'g'"),
    ({"tools": TOOLS, "structured_outputs": {"regex": "a"}}, "structured_outputs", "JSON"),
    ({"reasoning_effort": "none", "thinking": {"type": "enabled"}}, "reasoning_effort", "contradicts"),
    ({"reasoning_effort": "extreme"}, "reasoning_effort", "'none'"),
    ({"chat_template_kwargs": {"messages": "x"}}, "chat_template_kwargs", "'messages'"),
    ({"chat_template_kwargs": {"a": {}}}, "chat_template_kwargs.a", "valid"),
    ({"chat_template_kwargs": {f"a{i}": 1 for i in range(33)}}, "chat_template_kwargs", "at most 32"),
]


@pytest.mark.parametrize(("fields", "param", "message"), FIELDS, ids=range(len(FIELDS)))
def test_hostile_and_contradictory_fields(http: httpx.Client, fields: dict[str, Any], param: str, message: str) -> None:
    error = error_of(http.post(PATH, json=chat_body(**fields)))
    assert error["param"] == param and message in error["message"]
    assert http.post(PATH, json=chat_body()).status_code == 200


@pytest.mark.parametrize("place", ["DESCRIPTION", "KEY", "VALUE"])
def test_lone_surrogates_are_refused(http: httpx.Client, place: str) -> None:
    parameters = {"properties": {"KEY": {"const": "VALUE"}}}
    body = json.dumps(chat_body(**function(description="DESCRIPTION", parameters=parameters)))
    error_of(http.post(PATH, content=body.replace(place, "\\ud800")))
    assert http.post(PATH, json=chat_body()).status_code == 200


@pytest.mark.parametrize("streamed", [False, True])
def test_reasoning(http: httpx.Client, streamed: bool) -> None:
    body = says("<think>\nhm, hm\n</think>\n\nYes.")
    if streamed:
        message = joined(deltas(http, body))
    else:
        answer = whole(http, body)
        message = answer["choices"][0]["message"]
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == len("\nhm, hm\n")
    assert message["reasoning_content"] == "hm, hm" and message["content"] == "Yes."


def test_a_prompt_that_begins_the_reasoning(http: httpx.Client) -> None:
    for fields in ({"thinking": {"type": "enabled"}}, {"reasoning_effort": "low"}):
        answer = whole(http, says("hm</think>Yes.", **fields))
        assert answer["choices"][0]["message"]["reasoning_content"] == "hm"
        assert answer["choices"][0]["message"]["content"] == "Yes."
        assert answer["usage"]["completion_tokens_details"]["reasoning_tokens"] == 2
    (choice,) = whole(http, says("hm</think>Yes.", chat_template_kwargs={"enable_thinking": False}))["choices"]
    assert choice["message"]["content"] == "hm</think>Yes."


def test_an_answer_with_a_form_of_its_own_is_no_reasoning(http: httpx.Client) -> None:
    (choice,) = whole(http, says('{"a": "<think>"}', response_format={"type": "json_object"}))["choices"]
    assert choice["message"]["content"] == '{"a": "<think>"}' and "reasoning_content" not in choice["message"]


def test_reasoning_tokens_are_booked(http: httpx.Client) -> None:
    whole(http, says("<think>abc</think>x"))
    deadline = time.monotonic() + 10
    while True:
        results = [result for bucket in http.get("/v1/usage").json()["data"] for result in bucket["results"]]
        if sum(result["reasoning_tokens"] for result in results) >= 3:
            return
        assert time.monotonic() < deadline, results
        time.sleep(0.1)


@pytest.fixture(scope="module")
def plain() -> Iterator[Server]:
    """A server that is told that its model knows nothing of tools and thoughts."""
    with running_server(tool_parser="none", reasoning_parser="none") as running:
        yield running


def test_a_model_without_tools_says_so(plain: Server) -> None:
    with plain.client() as http:
        for fields in ({"tools": TOOLS}, {"functions": [GET]}):
            error = error_of(http.post(PATH, json=chat_body(**fields)))
            assert error["param"] == next(iter(fields)) and "tiny-fake-1b" in error["message"]
            assert error["code"] == "unsupported_parameter"
        error = error_of(http.post(PATH, json=chat_body(reasoning_effort="high")))
        assert error["param"] == "reasoning_effort"
        assert http.post(PATH, json=chat_body(reasoning_effort="none", tools=[])).status_code == 200
        answer = http.post(PATH, json=says("<think>x</think>y")).json()
        assert answer["choices"][0]["message"]["content"] == "<think>x</think>y"


def test_the_sdk_runs_a_call(server: Server) -> None:
    with openai.OpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=httpx.Client(trust_env=False)
    ) as sdk:
        messages: list[Any] = [{"role": "user", "content": "[echo]" + CALL}]
        answer = sdk.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)  # type: ignore[arg-type]
        message = answer.choices[0].message
        assert message.tool_calls is not None and message.tool_calls[0].type == "function"
        messages = [
            {"role": "user", "content": "hi"},
            message,
            {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "21"},
        ]
        again = sdk.chat.completions.create(model=MODEL, messages=messages, tools=TOOLS)  # type: ignore[arg-type]
        assert again.choices[0].message.content is not None
