"""Calls of real models through the official SDK."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from deepseek.errors import HubError
from deepseek.hub.resolve import resolve
from tests.e2e.conftest import KEY, RealServer

MODEL = "deepseek-v2.1"
LARGER = "qwen2.5-coder-1.5b-instruct"


def tool(name: str, description: str, strict: bool = False, **properties: Any) -> dict[str, Any]:
    schema = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    function = {"name": name, "description": description, "parameters": schema, "strict": strict}
    return {"type": "function", "function": function}


CITY = {"type": "string", "maxLength": 30}
TOOLS: list[Any] = [
    tool("get_weather", "The weather of a city now", city=CITY, unit={"enum": ["celsius", "fahrenheit"]}),
    tool("add", "Add two whole numbers", a={"type": "integer"}, b={"type": "integer"}),
]
QUESTION = "What is the weather in Paris now, in celsius?"


def sdk_of(server: RealServer) -> openai.OpenAI:
    client = httpx.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0, timeout=300, http_client=client)


@pytest.fixture
def sdk(server: RealServer) -> Iterator[openai.OpenAI]:
    with sdk_of(server) as client:
        yield client


@pytest.fixture(scope="module")
def larger() -> Iterator[openai.OpenAI]:
    try:
        path = resolve(LARGER, offline=True).path
    except HubError as error:
        pytest.skip(f"{LARGER} is not in the cache: {error}")
    running = RealServer(str(path), "--api-key", KEY, "--kv-cache-bytes", "512MiB", "--dtype", "auto")
    try:
        with sdk_of(running) as client:
            yield client
    finally:
        running.stop()


def ask(sdk: openai.OpenAI, text: str = QUESTION, **options: Any) -> Any:
    given: dict[str, Any] = {"tools": TOOLS, "temperature": 0, "max_tokens": 120} | options
    return sdk.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": text}], **given)


def calls_of(answer: Any) -> list[tuple[str, dict[str, Any]]]:
    calls = answer.choices[0].message.tool_calls or []
    return [(call.function.name, json.loads(call.function.arguments)) for call in calls]


def streamed(sdk: openai.OpenAI, **options: Any) -> tuple[list[tuple[str, dict[str, Any]]], str | None, int]:
    """(the calls, why it ended, pieces of arguments)."""
    calls: list[list[str]] = []
    reason, pieces = None, 0
    for chunk in ask(sdk, stream=True, **options):
        for piece in chunk.choices[0].delta.tool_calls or []:
            if piece.index == len(calls):
                calls.append([piece.function.name, ""])
            calls[piece.index][1] += piece.function.arguments
            pieces += 1
        reason = chunk.choices[0].finish_reason or reason
    return [(name, json.loads(arguments)) for name, arguments in calls], reason, pieces


def check_weather(arguments: dict[str, Any]) -> None:
    assert set(arguments) == {"city", "unit"} and arguments["unit"] in ("celsius", "fahrenheit")
    assert isinstance(arguments["city"], str) and len(arguments["city"]) <= 30


def check(name: str, arguments: dict[str, Any]) -> None:
    if name == "get_weather":
        check_weather(arguments)
    else:
        assert name == "add" and all(type(arguments[key]) is int for key in ("a", "b")) and len(arguments) == 2


NAMED = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize("temperature", [0, 1.5])
def test_a_named_function_is_called_once(sdk: openai.OpenAI, temperature: float) -> None:
    answer = ask(sdk, tool_choice=NAMED, temperature=temperature, seed=3)
    ((name, arguments),) = calls_of(answer)
    assert name == "add" and answer.choices[0].finish_reason == "tool_calls"
    check(name, arguments)
    assert answer.choices[0].message.content is None


def test_a_call_is_required(sdk: openai.OpenAI) -> None:
    answer = ask(sdk, tool_choice="required", parallel_tool_calls=False, n=2, temperature=1, seed=1, logprobs=True)
    for choice in answer.choices:
        (call,) = choice.message.tool_calls
        check(call.function.name, json.loads(call.function.arguments))
        assert choice.finish_reason == "tool_calls" and len(choice.logprobs.content) > 5


def test_required_calls_stream(sdk: openai.OpenAI) -> None:
    calls, reason, pieces = streamed(sdk, tool_choice="required", parallel_tool_calls=False)
    assert calls == calls_of(ask(sdk, tool_choice="required", parallel_tool_calls=False))
    assert reason == "tool_calls" and pieces > 3


HOSTILE: list[tuple[dict[str, Any], bool]] = [
    ({"type": "string", "pattern": "("}, True),
    ({"allOf": [{"type": "string"}, {"type": "integer"}]}, True),
    ({"$ref": "#/nowhere"}, True),
    ({"type": "string", "pattern": "(a|b){1,60000}c{1,60000}"}, False),
    ({"enum": [f"value-{i:06}" for i in range(12_000)]}, True),
]


@pytest.mark.parametrize(("schema", "refused"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_schemas_harm_nobody(sdk: openai.OpenAI, schema: dict[str, Any], refused: bool) -> None:
    tools = [tool("f", "x", True, a=schema)]
    try:
        answer = ask(sdk, tools=tools, tool_choice="required", max_tokens=30)
        assert not refused and answer.choices[0].finish_reason in ("tool_calls", "length")
    except openai.BadRequestError as error:
        assert refused or "complex" in str(error)
    assert calls_of(ask(sdk, tool_choice=NAMED))


@pytest.mark.slow
def test_the_larger_model_calls_when_it_wants_to(larger: openai.OpenAI) -> None:
    answer = ask(larger)
    ((name, arguments),) = calls_of(answer)
    assert (name, arguments) == ("get_weather", {"city": "Paris", "unit": "celsius"})
    assert answer.choices[0].finish_reason == "tool_calls"
    assert streamed(larger)[0] == calls_of(answer)
    words = ask(larger, "Say hello in French, in one word.", max_tokens=20)
    assert not words.choices[0].message.tool_calls and words.choices[0].message.content


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_the_larger_model_must_call(larger: openai.OpenAI, choice: Any) -> None:
    calls, reason, pieces = streamed(larger, tool_choice=choice, parallel_tool_calls=False)
    ((name, arguments),) = calls
    assert name == "get_weather" and arguments["city"] == "Paris" and reason == "tool_calls" and pieces > 3
    check_weather(arguments)


@pytest.mark.slow
def test_the_larger_model_reads_results(larger: openai.OpenAI) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
    messages: list[Any] = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "a", "content": "37 degrees celsius"},
    ]
    answer = larger.chat.completions.create(model=MODEL, messages=messages, temperature=0, max_tokens=60)
    assert "37" in (answer.choices[0].message.content or "")
