"""`/v1/responses` over HTTP and through the official SDK: whole, streamed, continued, in the background, errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pydantic
import pytest
from openai.types.responses import Response

from deepseek_serve.store.store import DATABASE_FILE
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, Server, running_server
from tests.serve.test_batches import begin as begin_batch
from tests.serve.test_batches import sdk_of
from tests.serve.test_batches import wait as wait_batch
from tests.serve.test_store_failures import full_disk

URL = "/v1/responses"
IN_USE = "deepseek_admitted_answers"
RESULT = {"type": "function_call_output", "call_id": "c", "output": ""}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def sdk(server: Server) -> Iterator[openai.OpenAI]:
    with sdk_of(server) as client:
        yield client


def body(text: Any = "hi", **fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": text, **fields}


def events_of(text: str) -> list[dict[str, Any]]:
    """The events of a stream, checked: names, numbers, the first and no end mark."""
    blocks = [block.split("\n") for block in text.split("\n\n") if block and not block.startswith(":")]
    events = []
    for name, data in blocks:
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[0]["type"] == "response.created" and "[DONE]" not in text
    return events


def wait_status(http: httpx.Client, response_id: str, *status: str, seconds: float = 10) -> dict[str, Any]:
    deadline = time.monotonic() + seconds
    while (found := http.get(f"{URL}/{response_id}").json())["status"] not in status:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
    return dict(found)


# -- answers ----------------------------------------------------------------------------------------------------


def test_whole(sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(
        model=MODEL, input="hi", instructions="Be kind.", metadata={"a": "b"}, user="ann", temperature=0.5, top_p=0.9
    )
    assert made.output_text == ANSWER and made.status == "completed" and made.id.startswith("resp_")
    assert made.usage is not None and made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert (made.temperature, made.top_p, made.metadata, made.user) == (0.5, 0.9, {"a": "b"}, "ann")
    assert made.instructions == "Be kind." and made.store is True and made.background is False  # type: ignore[attr-defined]
    assert made.completed_at is not None and made.completed_at >= made.created_at
    assert sdk.responses.retrieve(made.id) == made
    Response.model_validate(json.loads(made.to_json()), strict=False)  # every field is as the SDK's types have it


@pytest.mark.parametrize(
    "fields", [{}, {"max_output_tokens": 9}, {"top_logprobs": 2}, {"instructions": "x", "seed": 1}]
)
def test_stream_and_whole_say_the_same(server: Server, fields: dict[str, Any]) -> None:
    with server.client() as http:
        whole = http.post(URL, json=body("[seed][echo]世界, hello", **fields)).json()
        events = events_of(http.post(URL, json=body("[seed][echo]世界, hello", stream=True, **fields)).text)
    last = events[-1]["response"]
    text = "".join(e["delta"] for e in events if e["type"] == "response.output_text.delta")
    logprobs = [entry for e in events if e["type"] == "response.output_text.delta" for entry in e["logprobs"]]
    said = last["output"][0]["content"][0]
    assert text == said["text"] == whole["output"][0]["content"][0]["text"] and text
    assert logprobs == said["logprobs"] == whole["output"][0]["content"][0]["logprobs"]
    assert bool(logprobs) == ("top_logprobs" in fields)
    for name in set(whole) - {"id", "created_at", "completed_at", "output", "usage"}:
        assert last[name] == whole[name], name
    assert last["usage"]["output_tokens"] == whole["usage"]["output_tokens"]
    with server.client() as http:
        assert http.get(f"{URL}/{last['id']}").json() == last


def test_events_in_order(server: Server) -> None:
    with server.client() as http:
        events = events_of(http.post(URL, json=body("[echo]ab", stream=True)).text)
    assert [event["type"].removeprefix("response.") for event in events] == [
        *("created", "in_progress", "output_item.added", "content_part.added"),
        *("output_text.delta", "output_text.delta"),
        *("output_text.done", "content_part.done", "output_item.done", "completed"),
    ]
    assert [events[i]["response"]["status"] for i in (0, 1, -1)] == ["in_progress", "in_progress", "completed"]


def test_incomplete(server: Server, sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(model=MODEL, input="hi", max_output_tokens=5)
    assert made.status == "incomplete" and made.output_text == ANSWER[:5]
    assert made.incomplete_details is not None and made.incomplete_details.reason == "max_output_tokens"
    assert made.output[0].status == "incomplete" and made.completed_at is None  # type: ignore[union-attr]
    with server.client() as http:
        last = events_of(http.post(URL, json=body(max_output_tokens=5, stream=True)).text)[-1]
    assert last["type"] == "response.incomplete" and last["response"]["status"] == "incomplete"
    assert sdk.responses.retrieve(made.id).status == "incomplete"


def test_sdk_stream_helper_and_parse(sdk: openai.OpenAI) -> None:
    class Place(pydantic.BaseModel):
        name: str

    question = '[echo]{"name": "Paris"}'
    with sdk.responses.stream(model=MODEL, input=question, text_format=Place) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert final.output_parsed == Place(name="Paris") and text == final.output_text
    parsed = sdk.responses.parse(model=MODEL, input=question, text_format=Place)
    assert parsed.output_parsed == Place(name="Paris")
    assert parsed.text is not None and parsed.text.format is not None
    assert parsed.text.format.type == "json_schema" and parsed.text.format.name == "Place"
    again = sdk.responses.create(model=MODEL, input=[*parsed.output, {"role": "user", "content": "[echo]x"}])  # type: ignore[list-item]
    assert again.output_text == "x"


@pytest.mark.anyio
async def test_async_sdk(server: Server) -> None:
    http = httpx.AsyncClient(trust_env=False)
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0, http_client=http) as sdk:
        made = await sdk.responses.create(model=MODEL, input="hi")
        assert (await sdk.responses.retrieve(made.id)).output_text == ANSWER
        text = ""
        async with sdk.responses.stream(model=MODEL, input="hi", previous_response_id=made.id) as stream:
            async for event in stream:
                if event.type == "response.output_text.delta":
                    text += event.delta
            assert (await stream.get_final_response()).output_text == text == ANSWER
        items = [item async for item in sdk.responses.input_items.list(made.id)]
        assert [item.type for item in items] == ["message"]
        await sdk.responses.delete(made.id)
        with pytest.raises(openai.NotFoundError):
            await sdk.responses.retrieve(made.id)
        waiting = await sdk.responses.create(model=MODEL, input="[long][slow]", background=True)
        assert (await sdk.responses.cancel(waiting.id)).status == "cancelled"


def test_input_tokens(sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(model=MODEL, input="hi", instructions="Be kind.")
    counted = sdk.responses.input_tokens.count(model=MODEL, input="hi", instructions="Be kind.")
    assert made.usage is not None and counted.input_tokens == made.usage.input_tokens
    longer = sdk.responses.input_tokens.count(model=MODEL, input="hi", previous_response_id=made.id)
    assert longer.input_tokens > made.usage.input_tokens + len(ANSWER)


# -- conversations ----------------------------------------------------------------------------------------------


def test_conversation(sdk: openai.OpenAI) -> None:
    first = sdk.responses.create(model=MODEL, input="[echo]one", instructions="first", store=True)
    second = sdk.responses.create(model=MODEL, input="[echo]two", previous_response_id=first.id)
    third = sdk.responses.create(model=MODEL, input="[echo]three", previous_response_id=second.id, instructions="third")
    said = [
        *({"role": "user", "content": "[echo]one"}, {"role": "assistant", "content": "one"}),
        *({"role": "user", "content": "[echo]two"}, {"role": "assistant", "content": "two"}),
        {"role": "user", "content": "[echo]three"},
    ]
    plain = sdk.responses.create(model=MODEL, input=said, instructions="third", store=False)  # type: ignore[arg-type]
    assert third.usage is not None and plain.usage is not None
    assert third.usage.input_tokens == plain.usage.input_tokens, (
        "instructions of earlier responses are not carried over"
    )
    assert third.previous_response_id == second.id
    sdk.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as gone:
        sdk.responses.create(model=MODEL, input="four", previous_response_id=third.id)
    assert gone.value.code == "previous_response_not_found" and gone.value.param == "previous_response_id"


def test_input_items_are_paged(sdk: openai.OpenAI) -> None:
    asked = [{"role": "user", "content": str(i)} for i in range(5)]
    made = sdk.responses.create(model=MODEL, input=asked)  # type: ignore[arg-type]
    texts = [
        [item.content[0].text for item in sdk.responses.input_items.list(made.id, order=order, limit=2)]  # type: ignore[union-attr]
        for order in ("asc", "desc")
    ]
    assert texts == [["0", "1", "2", "3", "4"], ["4", "3", "2", "1", "0"]]
    page = sdk.responses.input_items.list(made.id, order="asc", limit=2)
    assert page.has_more and len(page.data) == 2
    for query in ({"after": "msg_none"}, {"limit": 0}, {"limit": 101}):
        with pytest.raises(openai.BadRequestError):
            sdk.responses.input_items.list(made.id, **query)  # type: ignore[arg-type]


def test_truncation(sdk: openai.OpenAI) -> None:
    turns = [{"role": "user", "content": f"{i}" * 300} for i in range(9)]
    long = [{"role": "system", "content": "stay"}, *turns, {"role": "user", "content": "[echo]last"}]
    with pytest.raises(openai.BadRequestError) as told:
        sdk.responses.create(model=MODEL, input=long)  # type: ignore[arg-type]
    assert told.value.code == "context_length_exceeded" and told.value.param == "input"
    made = sdk.responses.create(model=MODEL, input=long, truncation="auto", max_output_tokens=100)  # type: ignore[arg-type]
    assert made.output_text == "last" and made.truncation == "auto" and made.usage is not None
    assert 1500 < made.usage.input_tokens <= 2048 - 100, "no more is cut than must be"
    short = sdk.responses.create(model=MODEL, input="hi", truncation="auto")
    assert short.output_text == ANSWER
    with pytest.raises(openai.BadRequestError) as hopeless:
        sdk.responses.create(model=MODEL, input="x" * 3000, truncation="auto")
    assert hopeless.value.code == "context_length_exceeded"


def test_keys_do_not_see_each_other() -> None:
    with running_server(api_keys=("sk-a", "sk-b")) as server, sdk_of(server) as sdk:
        a, b = (sdk.with_options(api_key=key) for key in ("sk-a", "sk-b"))
        mine = a.responses.create(model=MODEL, input="hi")
        for attempt in (
            lambda: b.responses.retrieve(mine.id),
            lambda: b.responses.delete(mine.id),
            lambda: b.responses.cancel(mine.id),
            lambda: b.responses.input_items.list(mine.id),
            lambda: b.responses.create(model=MODEL, input="hi", previous_response_id=mine.id),
        ):
            with pytest.raises(openai.NotFoundError):
                attempt()
        assert a.responses.retrieve(mine.id).output_text == ANSWER


def test_expired_and_failed_ones_cannot_be_continued(tmp_path: Path) -> None:
    with running_server(data_dir=str(tmp_path)) as server, server.client() as http:
        old, odd = (http.post(URL, json=body()).json()["id"] for _ in range(2))
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as database, database:
            rows = database.execute("SELECT expires_at - created_at FROM deepseek_responses").fetchall()
            assert rows == [(30 * 86_400,)] * 2
            database.execute("UPDATE deepseek_responses SET expires_at = 1 WHERE id = ?", [old])
            database.execute("UPDATE deepseek_responses SET status = 'failed' WHERE id = ?", [odd])
        assert http.get(f"{URL}/{old}").status_code == 404
        assert http.post(URL, json=body(previous_response_id=old)).status_code == 404
        failed = http.post(URL, json=body(previous_response_id=odd))
        assert failed.status_code == 400 and "failed" in failed.json()["error"]["message"]


def test_nothing_is_kept_unless_it_is_to_be(server: Server, sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(model=MODEL, input="hi", store=False)
    assert made.output_text == ANSWER
    with pytest.raises(openai.NotFoundError) as told:
        sdk.responses.retrieve(made.id)
    assert told.value.code == "response_not_found"


# -- the background ---------------------------------------------------------------------------------------------


def test_background(server: Server, sdk: openai.OpenAI) -> None:
    made = sdk.responses.create(model=MODEL, input="[slow]", background=True)
    assert made.status == "queued" and made.background is True and made.output == []
    with server.client() as http:
        wait_status(http, made.id, "in_progress")
        with pytest.raises(openai.ConflictError) as early:
            sdk.responses.create(model=MODEL, input="hi", previous_response_id=made.id)
        assert early.value.code == "response_in_progress"
        assert server.metric(IN_USE) == 1
        wait_status(http, made.id, "completed")
    done = sdk.responses.retrieve(made.id)
    assert done.output_text == ANSWER and done.usage is not None
    assert sdk.responses.cancel(made.id).status == "completed", "what has ended stays as it is"
    server.wait_metric(IN_USE, 0)
    assert sdk.responses.create(model=MODEL, input="hi", previous_response_id=made.id).output_text == ANSWER


def test_background_stream_is_read_again(server: Server, sdk: openai.OpenAI) -> None:
    stream = sdk.responses.create(model=MODEL, input="[slow]", background=True, stream=True)
    seen = []
    for event in stream:
        seen.append(event)
        if len(seen) == 8:
            break
    stream.close()
    assert [event.type.removeprefix("response.") for event in seen[:4]] == [
        *("created", "queued", "in_progress", "output_item.added")
    ]
    identity, last = seen[0].response.id, seen[-1].sequence_number  # type: ignore[union-attr]
    rest = list(sdk.responses.retrieve(identity, stream=True, starting_after=last))
    assert [event.sequence_number for event in rest] == list(range(last + 1, last + 1 + len(rest)))
    assert rest[-1].type == "response.completed"
    deltas = [event.delta for event in (*seen, *rest) if event.type == "response.output_text.delta"]
    assert "".join(deltas) == ANSWER == sdk.responses.retrieve(identity).output_text
    assert [e.sequence_number for e in sdk.responses.retrieve(identity, stream=True)] == list(
        range(last + 1 + len(rest))
    )
    with server.client() as http:
        plain = http.post(URL, json=body()).json()["id"]
        told = http.get(f"{URL}/{plain}?stream=true")
        assert told.status_code == 400 and told.json()["error"]["param"] == "stream"
        assert http.get(f"{URL}/{identity}?starting_after=2").status_code == 400
        assert http.get(f"{URL}/{identity}?stream=true&starting_after=x").status_code == 400
        assert http.get(f"{URL}/{identity}?stream=perhaps").status_code == 400


def test_cancel_and_delete_end_what_runs(server: Server, sdk: openai.OpenAI) -> None:
    cancelled, deleted = (sdk.responses.create(model=MODEL, input="[long][slow]", background=True) for _ in range(2))
    with server.client() as http:
        wait_status(http, cancelled.id, "in_progress")
        time.sleep(0.1)
        told = sdk.responses.cancel(cancelled.id)
        assert told.status == "cancelled" and sdk.responses.retrieve(cancelled.id) == told
        assert told.output_text and told.output[0].status == "incomplete"  # type: ignore[union-attr]
        assert sdk.responses.cancel(cancelled.id).status == "cancelled"
        sdk.responses.delete(deleted.id)
        server.wait_metric(IN_USE, 0)
        assert http.get(f"{URL}/{deleted.id}").status_code == 404
        plain = http.post(URL, json=body()).json()["id"]
        refused = http.post(f"{URL}/{plain}/cancel")
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "response_not_cancellable"
        again = http.post(URL, json=body("hi", previous_response_id=cancelled.id, max_output_tokens=3))
        assert again.json()["status"] == "incomplete", "a cancelled one can be continued"


def test_background_takes_its_place_among_live_ones() -> None:
    with running_server(max_sequences=1) as server, server.client() as http:
        first = http.post(URL, json=body("[long][slow]", background=True)).json()["id"]
        full = http.post(URL, json=body(background=True))
        assert full.status_code == 503 and full.headers["retry-after"]
        http.post(f"{URL}/{first}/cancel")
        assert http.post(URL, json=body(background=True)).status_code == 200


# -- ends -------------------------------------------------------------------------------------------------------


def test_a_client_who_leaves_cancels(server: Server) -> None:
    with server.client() as http:
        with http.stream("POST", URL, json=body("[long][slow]", stream=True)) as response:
            first = next(line for line in response.iter_lines() if line.startswith("data: "))
        identity = json.loads(first.removeprefix("data: "))["response"]["id"]
        found = wait_status(http, identity, "cancelled")
        assert found["output"][0]["status"] == "incomplete" and found["usage"]["output_tokens"] >= 1
        server.wait_metric(IN_USE, 0)


def test_a_client_who_leaves_a_whole_answer_cancels(tmp_path: Path) -> None:
    with running_server(data_dir=str(tmp_path)) as server, server.client() as http:
        with pytest.raises(httpx.ReadTimeout):
            http.post(URL, json=body("[long][slow]"), timeout=0.3)
        server.wait_metric(IN_USE, 0)
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as database:
            deadline = time.monotonic() + 5
            query = "SELECT status, owner FROM deepseek_responses"
            while (rows := database.execute(query).fetchall()) != [("cancelled", None)]:
                assert time.monotonic() < deadline, rows
                time.sleep(0.05)


def test_failures(server: Server) -> None:
    with server.client() as http:
        whole = http.post(URL, json=body("[nan]"))
        assert whole.status_code == 500 and whole.json()["error"]["code"] == "engine_error"
        last = events_of(http.post(URL, json=body("[nan]", stream=True)).text)[-1]
        assert last["type"] == "response.failed" and last["response"]["status"] == "failed"
        assert last["response"]["error"] == {"code": "server_error", "message": "the logits were not finite"}
        assert http.get(f"{URL}/{last['response']['id']}").json() == last["response"]
        behind = http.post(URL, json=body("[nan]", background=True)).json()["id"]
        assert wait_status(http, behind, "failed")["error"]["code"] == "server_error"


def test_an_engine_that_dies() -> None:
    """Before the stream has begun it is told by a status, which clients retry; later, and in the background, it is an
    event and a state."""
    with running_server(options={"ping_interval": 0.1}) as server, server.client() as http:
        with http.stream("POST", URL, json=body("[long][slow]", stream=True)) as begun:
            parts = begun.iter_text()
            text = next(parts)
            os.kill(server.engine_pid(), signal.SIGKILL)
            text += "".join(parts)
        assert events_of(text)[-1]["type"] == "response.failed"
        server.wait_status("/health/ready", 503)
        server.wait_status("/health/ready", 200)
        with ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(http.post, URL, json=body("[hang]", stream=True))
            behind = server.client().post(URL, json=body(background=True)).json()["id"]
            server.wait_metric(IN_USE, 2)
            os.kill(server.engine_pid(), signal.SIGKILL)
            response = waiting.result(20)
        assert response.status_code == 503 and response.json()["error"]["code"] == "engine_unavailable"
        assert response.headers["retry-after"]
        assert "SIGKILL" in wait_status(http, behind, "failed")["error"]["message"]


def test_restart_fails_what_was_left(tmp_path: Path) -> None:
    with running_server(data_dir=str(tmp_path)) as server, server.client() as http:
        done = http.post(URL, json=body()).json()["id"]
        left = http.post(URL, json=body("[long][slow]", background=True)).json()["id"]
        wait_status(http, left, "in_progress")
        server.process.send_signal(signal.SIGKILL)
        server.wait_exit()
    assert len(list(tmp_path.glob("responses-*.lock"))) == 1
    with running_server(data_dir=str(tmp_path)) as server, server.client() as http:
        found = wait_status(http, left, "failed")
        assert found["error"]["code"] == "server_error" and "ended before" in found["error"]["message"]
        assert http.get(f"{URL}/{done}").json()["status"] == "completed"
        again = http.post(URL, json=body("[echo]x", previous_response_id=done))
        assert again.json()["output"][0]["content"][0]["text"] == "x"
    assert "Traceback" not in server.output


def test_two_servers_share_a_directory(tmp_path: Path) -> None:
    """Nobody fails what another one is at work on, and a cancellation may come to either."""
    with running_server(data_dir=str(tmp_path)) as one, one.client() as at_one:
        left = at_one.post(URL, json=body("[long][slow]", background=True)).json()["id"]
        wait_status(at_one, left, "in_progress")
        with running_server(data_dir=str(tmp_path)) as two, two.client() as at_two:
            time.sleep(1.5)
            assert at_two.get(f"{URL}/{left}").json()["status"] == "in_progress"
            assert at_two.post(f"{URL}/{left}/cancel").json()["status"] == "cancelled"
            one.wait_metric(IN_USE, 0)
            assert at_one.get(f"{URL}/{left}").json()["status"] == "cancelled"


def test_drain_waits_for_the_background(tmp_path: Path) -> None:
    with running_server(data_dir=str(tmp_path)) as server, server.client() as http:
        made = http.post(URL, json=body("[slow]", background=True)).json()["id"]
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit(20) == 0
        assert "Traceback" not in server.output
    assert not list(tmp_path.glob("responses-*.lock"))
    with running_server(data_dir=str(tmp_path)) as server, server.client() as http:
        assert http.get(f"{URL}/{made}").json()["status"] == "completed"


def test_drain_that_takes_too_long_fails_it(tmp_path: Path) -> None:
    with running_server(data_dir=str(tmp_path), drain_timeout=0.3) as server, server.client() as http:
        made = http.post(URL, json=body("[long][slow]", background=True)).json()["id"]
        wait_status(http, made, "in_progress")
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit(20) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as database:
        rows = database.execute("SELECT status, body FROM deepseek_responses").fetchall()
    assert rows[0][0] == "failed" and "shutting down" in json.loads(rows[0][1])["error"]["message"]


def test_full_disk() -> None:
    with running_server() as server, server.client() as http:
        begun = http.post(URL, json=body("[slow]", background=True)).json()["id"]
        wait_status(http, begun, "in_progress")
        with full_disk(server):
            refused = http.post(URL, json=body(stream=True))
            assert refused.status_code in (503, 507) and refused.json()["error"]["code"] in (
                "insufficient_storage",
                "store_unavailable",
            )
            kept_nowhere = http.post(URL, json=body(store=False))
            assert kept_nowhere.status_code == 200 and kept_nowhere.json()["status"] == "completed"
            server.wait_metric(IN_USE, 0)
        assert wait_status(http, begun, "completed", seconds=15)["output"][0]["content"][0]["text"] == ANSWER
        assert "Traceback" not in server.output


@pytest.mark.anyio
async def test_many_random_disconnects_leave_nothing(tmp_path: Path) -> None:
    with running_server(data_dir=str(tmp_path)) as server:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=20) as http:

            async def leave(i: int) -> None:
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.01 * (i % 20) + 0.005):
                        await http.post(URL, json=body("[long][slow]", stream=bool(i % 2)))

            await asyncio.gather(*(leave(i) for i in range(60)))
        server.wait_metric(IN_USE, 0)
        server.wait_metric("deepseek_engine_running", 0)
        with contextlib.closing(sqlite3.connect(tmp_path / DATABASE_FILE)) as database:
            deadline = time.monotonic() + 5
            while database.execute("SELECT count(*) FROM deepseek_responses WHERE owner IS NOT NULL").fetchone() != (
                0,
            ):
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            statuses = {row[0] for row in database.execute("SELECT DISTINCT status FROM deepseek_responses")}
        assert statuses <= {"cancelled"}
        assert "Traceback" not in server.output


# -- batches and errors -----------------------------------------------------------------------------------------


def test_batch(server: Server, sdk: openai.OpenAI) -> None:
    lines = [
        {"custom_id": f"q{i}", "method": "POST", "url": URL, "body": body(f"[echo]{i}", instructions="x")}
        for i in range(3)
    ]
    data = "".join(json.dumps(line) + "\n" for line in lines).encode()
    batch = wait_batch(sdk, begin_batch(sdk, data, endpoint=URL).id)
    assert batch.status == "completed" and batch.output_file_id is not None, batch.errors
    answers = [json.loads(line) for line in sdk.files.content(batch.output_file_id).text.splitlines()]
    texts = {a["custom_id"]: a["response"]["body"]["output"][0]["content"][0]["text"] for a in answers}
    assert texts == {f"q{i}": str(i) for i in range(3)}
    assert batch.usage is not None and batch.usage.input_tokens > 0 and batch.usage.output_tokens > 0
    assert sdk.responses.retrieve(answers[0]["response"]["body"]["id"]).status == "completed"
    bad = {"custom_id": "q", "method": "POST", "url": URL, "body": body(background=True)}
    failed = wait_batch(sdk, begin_batch(sdk, json.dumps(bad).encode(), endpoint=URL).id)
    assert failed.status == "failed" and failed.errors is not None and failed.errors.data is not None
    assert failed.errors.data[0].param == "body.background"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"input": None}, "input", "invalid_value"),
        ({"input": []}, "input", "invalid_value"),
        ({"input": [3]}, "input[0]", "invalid_value"),
        ({"input": [{"type": "web_search_call"}]}, "input[0]: web_search_call", "unsupported_parameter"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]: item_reference", "unsupported_parameter"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content", "invalid_value"),
        ({"input": [{"role": "user", "content": "x", "foo": 1}]}, "input[0].foo", "unknown_parameter"),
        ({"input": [{"role": "user"}]}, "input[0].content", "missing_required_parameter"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]: input_image",
            "unsupported_parameter",
        ),
        (
            {"input": [{"type": "function_call_output", "call_id": "c", "output": ""}]},
            "input[0].call_id",
            "invalid_value",
        ),
        ({"input": "x" * 3000}, "input", "context_length_exceeded"),
        ({"input": "[template]"}, "input", "chat_template_error"),
        ({"max_output_tokens": 0}, "max_output_tokens", "invalid_value"),
        ({"max_output_tokens": 2**40}, "max_output_tokens", None),
        ({"temperature": 9}, "temperature", None),
        ({"temperature": "1"}, "temperature", "invalid_value"),
        ({"top_logprobs": 21}, "top_logprobs", "invalid_value"),
        ({"include": ["everything"]}, "include[0]", "invalid_value"),
        ({"metadata": {"a": 3}}, "metadata.a", "invalid_value"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "invalid_value"),
        ({"truncation": "never"}, "truncation", "invalid_value"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]: web_search", "unsupported_parameter"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools[0].name", "invalid_value"),
        ({"tools": [{"type": "function", "name": "f"}] * 2}, "tools[1]", "invalid_value"),
        ({"tool_choice": "required"}, "tool_choice", "invalid_value"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema", "invalid_value"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "foo"}}}},
            "text.format",
            "invalid_value",
        ),
        ({"text": {"verbosity": "high"}}, "text.verbosity", "unsupported_parameter"),
        ({"reasoning": {"effort": "enormous"}}, "reasoning.effort", "invalid_value"),
        ({"background": True, "store": False}, "background", "invalid_value"),
        ({"stream_options": {"include_obfuscation": True}}, "stream_options", "invalid_value"),
        ({"conversation": "conv_1"}, "conversation", "unsupported_parameter"),
        ({"prompt": {"id": "p"}}, "prompt", "unsupported_parameter"),
        ({"messages": []}, "messages", "unknown_parameter"),
    ],
)
def test_what_is_refused(server: Server, fields: dict[str, Any], param: str, code: str | None) -> None:
    with server.client() as http:
        response = http.post(URL, json=body() | fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["param"], error["code"]) == (param, code)
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "invalid_request_error"


def test_other_errors(server: Server) -> None:
    with server.client() as http:
        assert http.post(URL, json=body() | {"model": "gpt-9"}).json()["error"]["code"] == "model_not_found"
        assert http.post(URL, content=b"{").json()["error"]["code"] == "invalid_json"
        for attempt in (
            http.get(f"{URL}/resp_none"),
            http.delete(f"{URL}/resp_none"),
            http.post(f"{URL}/resp_none/cancel"),
            http.get(f"{URL}/resp_none/input_items"),
            http.get(f"{URL}/resp'none"),
        ):
            assert attempt.status_code == 404 and attempt.json()["error"]["code"] == "response_not_found"
        counted = http.post(f"{URL}/input_tokens", json=body(stream=True))
        assert counted.status_code == 400 and counted.json()["error"]["param"] == "stream"
