"""The official SDK of Anthropic's API sees the API it expects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import httpx
import httpx2
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek_serve.auth import ApiKey
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, Server, running_server

PATH = "/v1/messages"
COUNT = "/v1/messages/count_tokens"
KEY, SLOW_KEY, POOR_KEY = "sk-right", "sk-slow", "sk-poor"
KEYS = (
    ApiKey.of(KEY),
    ApiKey.of(SLOW_KEY, name="slow", requests_per_minute=1),
    ApiKey.of(POOR_KEY, name="poor", monthly_tokens=1),
)
HI = {"role": "user", "content": "hi"}
KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    404: "not_found_error",
    405: "invalid_request_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    529: "overloaded_error",
}


@pytest.fixture(scope="module")
def keyed() -> Iterator[Server]:
    with running_server(api_keys=KEYS, max_body_bytes=100_000) as server:
        yield server


@pytest.fixture
def sdk(keyed: Server) -> Iterator[anthropic.Anthropic]:
    with client_of(keyed) as client:
        yield client


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def client_of(server: Server, key: str = KEY, **options: Any) -> anthropic.Anthropic:
    usual = {"base_url": server.url, "max_retries": 0, "http_client": httpx2.Client(trust_env=False)}
    return anthropic.Anthropic(api_key=key, **(usual | options))


def body(text: str = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": text}], **fields}


def error_of(response: httpx.Response, status: int) -> str:
    """The message of an error, whose body must be Anthropic's."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    found = response.json()
    assert set(found) == {"type", "error", "request_id"} and found["type"] == "error"
    assert found["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    assert set(found["error"]) == {"type", "message"} and found["error"]["type"] == KINDS[status]
    return str(found["error"]["message"])


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    """Names and data of the events of a stream, which has nothing else but comments."""
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.removesuffix("\n\n").split("\n\n"):
        if not block.startswith(":"):
            name, data = block.split("\n")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    assert all(name == data["type"] for name, data in events)
    return events


def test_create(sdk: anthropic.Anthropic) -> None:
    answer = sdk.messages.create(
        model=MODEL,
        max_tokens=100,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
        messages=[HI, {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]}, HI],  # type: ignore[list-item]
        extra_body={"temperature": 0.7, "top_p": 0.9, "top_k": 5},  # release 2.14 has no names for them
        metadata={"user_id": "ann"},
        service_tier="auto",
        thinking={"type": "disabled"},
    )
    (block,) = answer.content
    assert block.type == "text" and block.text == ANSWER
    assert (answer.role, answer.type, answer.model) == ("assistant", "message", MODEL)
    assert (answer.stop_reason, answer.stop_sequence) == ("end_turn", None)
    assert answer.id.startswith("msg_") and answer._request_id is not None
    usage = answer.usage
    prompt = "<system>Be brief.</><user>hi</><assistant>Hello.</><user>hi</><assistant>"
    assert (usage.input_tokens, usage.output_tokens) == (len(prompt), len(ANSWER.encode()) + 1)
    assert (usage.cache_read_input_tokens, usage.cache_creation_input_tokens) == (0, 0)
    assert usage.service_tier == "standard"


def test_input_tokens_are_those_that_were_not_cached(sdk: anthropic.Anthropic) -> None:
    text = "a prompt that comes twice " * 9
    first, second = (sdk.messages.create(**body(text)).usage for _ in range(2))
    with sdk.messages.stream(**body(text)) as stream:
        streamed = stream.get_final_message().usage
    assert first.cache_read_input_tokens == 0 and (second.cache_read_input_tokens or 0) > 0
    for usage in (second, streamed):
        assert usage.input_tokens + (usage.cache_read_input_tokens or 0) == first.input_tokens
        assert usage.output_tokens == first.output_tokens


def test_stream_helper(sdk: anthropic.Anthropic) -> None:
    with sdk.messages.stream(**body()) as stream:
        assert "".join(stream.text_stream) == ANSWER
        streamed = stream.get_final_message()
    whole = sdk.messages.create(**body())
    unlike = {"id", "stop_details"}  # the helper adds the latter
    one, other = ({k: v for k, v in answer.to_dict().items() if k not in unlike} for answer in (streamed, whole))
    assert one == other


def test_events_in_their_order(keyed: Server) -> None:
    with keyed.client(headers={"x-api-key": KEY, "anthropic-version": "2023-06-01"}) as http:
        response = http.post(PATH, json=body(stream=True))
    events = events_of(response)
    names = [name for name, _ in events]
    assert names[:2] == ["message_start", "content_block_start"]
    assert set(names[2:-3]) == {"content_block_delta"}
    assert names[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    start = events[0][1]["message"]
    assert start["content"] == [] and start["stop_reason"] is None and start["usage"]["input_tokens"] > 0
    assert events[1][1] == {
        "type": "content_block_start",
        "index": 0,
        "content_block": {"type": "text", "text": "", "citations": None},
    }
    assert events[-2][1]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert "[DONE]" not in response.text


@pytest.mark.parametrize(
    ("fields", "reason", "sequence", "text"),
    [
        ({"max_tokens": 5}, "max_tokens", None, "Hello"),
        ({"stop_sequences": ["nothing", " Quantum"]}, "stop_sequence", " Quantum", "Hello, 世界!"),
        ({"stop_sequences": ["Hello"]}, "stop_sequence", "Hello", None),
        ({}, "end_turn", None, ANSWER),
    ],
)
def test_why_an_answer_ended(
    sdk: anthropic.Anthropic, fields: dict[str, Any], reason: str, sequence: str | None, text: str | None
) -> None:
    whole = sdk.messages.create(**body(**fields))
    with sdk.messages.stream(**body(**fields)) as stream:
        streamed = stream.get_final_message()
    for answer in (whole, streamed):
        assert (answer.stop_reason, answer.stop_sequence) == (reason, sequence)
        assert [block.text for block in answer.content if block.type == "text"] == ([text] if text else [])


@given(st.text(st.characters(codec="utf-8", exclude_characters="[]"), max_size=30))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_joined_stream_equals_the_whole_answer(sdk: anthropic.Anthropic, text: str) -> None:
    request = body(f"[echo]{text}")
    whole = sdk.messages.create(**request)
    with sdk.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    assert [block.to_dict() for block in whole.content] == [
        {"type": "text", "text": text, "citations": None} for _ in range(bool(text))
    ]
    assert [b.text for b in streamed.content] == [b.text for b in whole.content]  # type: ignore[union-attr]


def test_a_last_turn_of_the_assistant_is_continued(sdk: anthropic.Anthropic) -> None:
    turns = [HI, {"role": "assistant", "content": "The best is ("}]
    assert sdk.messages.create(model=MODEL, max_tokens=9, messages=turns).usage.input_tokens == len(  # type: ignore[arg-type]
        "<user>hi</><assistant>The best is ("
    )


WEATHER: Any = [
    {
        "name": "weather",
        "description": "The weather of a city.",
        "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
    {"name": "time", "input_schema": {"type": "object", "properties": {}}, "type": "custom"},
]
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'


def both(sdk: anthropic.Anthropic, request: dict[str, Any]) -> list[anthropic.types.Message]:
    """The whole answer and the streamed one, which must be the same, but for ids."""
    whole = sdk.messages.create(**request)
    with sdk.messages.stream(**request) as stream:
        streamed = stream.get_final_message()
    assert [plain(block) for block in whole.content] == [plain(block) for block in streamed.content]
    assert (whole.stop_reason, whole.stop_sequence) == (streamed.stop_reason, streamed.stop_sequence)
    assert whole.usage.output_tokens == streamed.usage.output_tokens
    return [whole, streamed]


def plain(block: Any) -> dict[str, Any]:
    """A block without what differs between two answers."""
    return {name: value for name, value in block.to_dict().items() if name != "id"}


def test_tool_use_and_its_result(sdk: anthropic.Anthropic) -> None:
    question = {"role": "user", "content": f"[echo]I look.\n{CALL}\n{TIME}"}
    request = body(max_tokens=300) | {"messages": [question], "tools": WEATHER}
    for answer in both(sdk, request):
        said, weather, clock = answer.content
        assert said.type == "text" and said.text == "I look."
        assert weather.type == clock.type == "tool_use" and weather.id != clock.id
        assert (weather.name, weather.input) == ("weather", {"city": "Köln"})
        assert (clock.name, clock.input) == ("time", {})
        assert (answer.stop_reason, answer.stop_sequence) == ("tool_use", None)
        results = [
            {"type": "tool_result", "tool_use_id": weather.id, "content": [{"type": "text", "text": "sunny"}]},
            {"type": "tool_result", "tool_use_id": clock.id, "is_error": True},
            {"type": "text", "text": "[echo]It is sunny."},
        ]
        turns = [question, answer.to_param(), {"role": "user", "content": results}]
        (last,) = both(sdk, request | {"messages": turns})[0].content
        assert last.type == "text" and last.text == "It is sunny."
    prompt = {name: request[name] for name in ("model", "messages", "tools")}
    counted = sdk.messages.count_tokens(**prompt).input_tokens
    assert counted == answer.usage.input_tokens + (answer.usage.cache_read_input_tokens or 0)
    assert counted > sdk.messages.count_tokens(model=MODEL, messages=[question]).input_tokens  # type: ignore[list-item]


@pytest.mark.parametrize(
    ("fields", "reason", "arguments"),
    [
        ({"tool_choice": {"type": "any"}}, "tool_use", {"city": "Köln"}),
        ({"tool_choice": {"type": "tool", "name": "weather"}}, "tool_use", {"city": "Köln"}),
        ({"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}, "tool_use", {"city": "Köln"}),
        ({"tool_choice": {"type": "none"}}, "end_turn", None),
        ({"max_tokens": len(CALL.partition("Köln")[0].encode()) + 2}, "max_tokens", {}),
        ({"stop_sequences": ["ln"]}, "stop_sequence", {}),
    ],
)
def test_choices_and_ends_of_calls(
    sdk: anthropic.Anthropic, fields: dict[str, Any], reason: str, arguments: dict[str, Any] | None
) -> None:
    for answer in both(sdk, body("[echo]" + CALL, tools=WEATHER) | fields):
        assert answer.stop_reason == reason
        (block,) = answer.content
        if arguments is None:
            assert block.type == "text" and block.text == CALL
        else:
            assert block.type == "tool_use" and block.input == arguments


@pytest.mark.parametrize("display", [None, "summarized", "omitted"])
def test_thinking(sdk: anthropic.Anthropic, display: str | None) -> None:
    thinking = {"type": "enabled", "budget_tokens": 1024} | ({"display": display} if display else {})
    request = body("[echo]hm, so\n</think>\n\nYes.", max_tokens=1025, thinking=thinking)
    for answer in both(sdk, request):
        thought, said = answer.content
        assert thought.type == "thinking" and said.type == "text" and said.text == "Yes."
        assert thought.thinking == ("" if display == "omitted" else "hm, so") and thought.signature
        details = answer.usage.output_tokens_details
        assert details is not None and 0 < details.thinking_tokens < answer.usage.output_tokens
        turns = [HI, answer.to_param(), HI]
        assert sdk.messages.create(**body() | {"messages": turns}).content[0].text == ANSWER  # type: ignore[union-attr]


def test_parsed_output(sdk: anthropic.Anthropic) -> None:
    class River(pydantic.BaseModel):
        name: str
        length: int

    answer = sdk.messages.parse(**body('[echo]{"name": "Loire", "length": 1006}'), output_format=River)
    assert answer.parsed_output == River(name="Loire", length=1006)
    wrong = {"format": {"type": "json_schema", "schema": {"type": "nothing"}}}
    with pytest.raises(anthropic.BadRequestError, match="response format"):
        sdk.messages.create(**body(output_config=wrong))


@pytest.mark.anyio
async def test_async(keyed: Server) -> None:
    http_client = httpx2.AsyncClient(trust_env=False)
    async with anthropic.AsyncAnthropic(base_url=keyed.url, api_key=KEY, http_client=http_client) as sdk:
        async with sdk.messages.stream(**body()) as stream:
            assert "".join([text async for text in stream.text_stream]) == ANSWER
        assert (await sdk.messages.count_tokens(model=MODEL, messages=[HI])).input_tokens > 0  # type: ignore[list-item]


def test_count_tokens_counts_what_create_reads(sdk: anthropic.Anthropic) -> None:
    prompt: dict[str, Any] = {"model": MODEL, "messages": [HI], "system": "Be brief."}
    count = sdk.messages.count_tokens(**prompt).input_tokens
    assert count == sdk.messages.create(**prompt, max_tokens=1).usage.input_tokens
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        sdk.messages.count_tokens(**prompt, extra_body={"max_tokens": 5})


def test_keys_come_in_either_header(keyed: Server) -> None:
    for headers, status in [
        ({"x-api-key": KEY}, 200),
        ({"authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": KEY, "authorization": "Bearer sk-wrong"}, 200),
        ({"x-api-key": "", "authorization": f"Bearer {KEY}"}, 200),
        ({"x-api-key": "sk-wrong", "authorization": f"Bearer {KEY}"}, 401),
        ({"x-api-key": f"Bearer {KEY}"}, 401),
        ({"x-api-key": "sk-righ"}, 401),
        ({"x-api-key": ""}, 401),
        ({"authorization": KEY}, 401),
        ({}, 401),
    ]:
        with keyed.client(headers=headers) as http:
            for path in (PATH, COUNT, f"/anthropic{PATH}", f"/anthropic{COUNT}"):
                request = body() if path.endswith("messages") else {"model": MODEL, "messages": [HI]}
                response = http.post(path, json=request)
                assert response.status_code == status, (headers, path)
                if status == 401:
                    assert "API key" in error_of(response, 401) and "sk-right" not in response.text
    with keyed.client(headers={"x-api-key": KEY}) as http:
        assert http.get("/v1/models").status_code == 401, "the header counts on these routes only"


def test_deepseeks_path(keyed: Server) -> None:
    with client_of(keyed, base_url=f"{keyed.url}/anthropic") as sdk:
        assert sdk.messages.create(**body()).content[0].text == ANSWER  # type: ignore[union-attr]


def test_errors_have_their_classes(sdk: anthropic.Anthropic, keyed: Server) -> None:
    with pytest.raises(anthropic.AuthenticationError) as refused, client_of(keyed, "sk-wrong") as wrong:
        wrong.messages.create(**body())
    assert refused.value.request_id is not None
    with pytest.raises(anthropic.NotFoundError, match="gpt-9"):
        sdk.messages.create(**body() | {"model": "gpt-9"})
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[1\]: image"):
        image = {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}}
        sdk.messages.create(**body([{"type": "text", "text": "what?"}, image]))  # type: ignore[arg-type]
    with pytest.raises(anthropic.BadRequestError, match="maximum context length"):
        sdk.messages.create(**body(max_tokens=10_000))
    with pytest.raises(anthropic.BadRequestError, match="stop_sequences has 17 strings"):
        sdk.messages.create(**body(stop_sequences=["x"] * 17))
    with pytest.raises(anthropic.BadRequestError, match="the template refuses"):
        sdk.messages.create(**body("[template]"))
    with pytest.raises(anthropic.RequestTooLargeError):
        sdk.messages.create(**body("x" * 100_001))
    with pytest.raises(anthropic.InternalServerError, match="not finite") as failed:
        sdk.messages.create(**body("[nan]"))
    assert failed.value.status_code == 500
    with pytest.raises(anthropic.APIStatusError, match="not finite"), sdk.messages.stream(**body("[nan]")) as stream:
        list(stream)
    with client_of(keyed, SLOW_KEY) as slow:
        slow.messages.create(**body())
        with pytest.raises(anthropic.RateLimitError) as limited:
            slow.messages.create(**body())
        assert 0 < float(limited.value.response.headers["retry-after"]) <= 60
    with client_of(keyed, POOR_KEY) as poor:
        poor.messages.create(**body())
        with pytest.raises(anthropic.APIStatusError, match="quota") as unpaid:
            poor.messages.create(**body())
        assert unpaid.value.status_code == 402


def test_every_error_has_anthropics_body(keyed: Server) -> None:
    with keyed.client(headers={"x-api-key": KEY}) as http:
        for raw in (b"", b"{", b"[1]", b'{"model": "\\ud800"}', b'{"a":' * 10_000):
            error_of(http.post(PATH, content=raw), 400)
        assert "max_tokens" in error_of(http.post(PATH, json={"model": MODEL, "messages": [HI]}), 400)
        assert error_of(http.get(PATH), 405) and error_of(http.post(f"{PATH}/none"), 404)
        assert error_of(http.get("/anthropic/v1/none"), 404)
        assert error_of(http.post(PATH, content=b"x" * 100_001), 413)
        assert error_of(http.post(PATH, json=body("[nan]")), 500)
        assert error_of(http.post(COUNT, json=body("[template]") | {"max_tokens": None}), 400)
        given = http.post(PATH, json={}, headers={"x-request-id": "mine"})
        assert error_of(given, 400) and given.json()["request_id"] == "mine"
        assert set(http.post("/v1/messagesx").json()) == {"error"}, "and no other path has it"
    with keyed.client(headers={"x-api-key": SLOW_KEY}) as http:
        statuses = [http.post(PATH, json=body()) for _ in range(2)]
        assert "requests per min" in error_of(statuses[1], 429)
    with keyed.client(headers={"x-api-key": POOR_KEY}) as http:
        http.post(PATH, json=body())
        assert "quota" in error_of(http.post(PATH, json=body()), 402)


def test_an_error_in_a_stream_is_an_event(keyed: Server) -> None:
    with keyed.client(headers={"x-api-key": KEY}) as http:
        response = http.post(PATH, json=body("[nan]", stream=True))
    events = events_of(response)
    assert events[0][0] == "message_start" and events[-1][0] == "error"
    assert events[-1][1]["error"] == {"type": "api_error", "message": "the logits were not finite"}
    assert events[-1][1]["request_id"] == response.headers["request-id"]


def test_a_full_node_is_overloaded_and_the_sdk_comes_again() -> None:
    with running_server(max_sequences=1) as server, client_of(server, max_retries=2) as sdk:
        with sdk.messages.stream(**body("[slow][long]", max_tokens=40)) as stream:
            next(iter(stream))
            with pytest.raises(anthropic.OverloadedError) as full:
                sdk.with_options(max_retries=0).messages.create(**body())
            assert full.value.status_code == 529
            assert int(full.value.response.headers["retry-after"]) >= 1
            assert full.value.body["error"]["type"] == "overloaded_error"  # type: ignore[index]
            answer = sdk.messages.with_raw_response.create(**body())
        assert answer.retries_taken >= 1
        assert answer.parse().content[0].text == ANSWER  # type: ignore[union-attr]


def test_a_dead_engine_is_unavailable() -> None:
    with running_server() as server, server.client() as http:
        response = http.post(PATH, json=body("[die]"))
        assert "engine" in error_of(response, 503) and response.headers["retry-after"]


def test_silence_is_filled_with_pings() -> None:
    options = {"hang_timeout": 1.0, "ping_interval": 0.1}
    with running_server(keep_alive_interval=0.2, options=options) as server, server.client() as http:
        events = events_of(http.post(PATH, json=body("[hang]", stream=True)))
    assert [name for name, _ in events[:3]] == ["ping"] * 3
    assert events[-1][0] == "error" and events[-1][1]["error"]["type"] == "api_error"


def test_a_padded_answer_fails_in_anthropics_words() -> None:
    options = {"hang_timeout": 1.0, "ping_interval": 0.1}
    with (
        running_server(keep_alive_interval=0.2, keep_alive_lines=True, options=options) as server,
        server.client() as http,
    ):
        response = http.post(PATH, json=body("[hang]"))
    assert response.status_code == 200 and response.text.startswith("\n")
    assert json.loads(response.text)["error"]["type"] == "api_error"
