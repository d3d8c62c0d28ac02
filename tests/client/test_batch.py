"""From requests to results in order: errors of lines and of batches, resuming, and servers that go away meanwhile."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from deepseek.errors import AnswerFailedError, BatchError, ContextTooLongError, RejectedError
from tests.client.conftest import Connect
from tests.client.relay import cut_after
from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, Server, chat_body, free_port, running_server
from tests.serve.conftest import server as server  # the fixture

POLL = 0.05


@pytest.fixture
def client(connect: Connect, server: Server) -> Any:
    return connect(server.url)


def test_results_in_the_order_of_the_requests(client: Any) -> None:
    seen: list[Any] = []
    requests = [chat_body(f"[echo]{i}") for i in range(25)]
    results = client.batch(requests, poll=POLL, progress=seen.append, metadata={"job": "numbers"})
    assert [result.unwrap().choices[0].message.content for result in results] == [str(i) for i in range(25)]
    assert all(isinstance(result.answer, openai.types.chat.ChatCompletion) for result in results)
    assert [result.custom_id for result in results] == [f"request-{i}" for i in range(25)]
    assert seen[-1].status == "completed" and seen[-1].request_counts.completed == 25
    assert seen[-1].metadata == {"job": "numbers"}


def test_ids_and_completions(client: Any) -> None:
    requests = {"b": {"model": MODEL, "prompt": "x", "max_tokens": 5}, "a": {"model": MODEL, "prompt": "y"}}
    results = client.batch(requests, endpoint="/v1/completions", poll=POLL)
    assert [result.custom_id for result in results] == ["b", "a"]
    assert results[0].answer.choices[0].text == ANSWER[:5]
    assert isinstance(results[0].answer, openai.types.Completion)


def test_errors_of_lines(client: Any) -> None:
    good, failing, long = client.batch([chat_body(), chat_body("[nan]"), chat_body("x" * 3000)], poll=POLL)
    assert good.error is None and good.unwrap().choices[0].message.content == ANSWER
    assert failing.answer is None and isinstance(failing.error, AnswerFailedError)
    assert failing.error.status_code == 500 and "not finite" in str(failing.error)
    with pytest.raises(ContextTooLongError) as caught:
        long.unwrap()
    assert caught.value.param == "messages" and caught.value.request_id


def test_a_batch_that_fails_as_a_whole(client: Any) -> None:
    with pytest.raises(BatchError, match=r"line 2: .*surprise") as caught:
        client.batch([chat_body(), chat_body(surprise=9)], poll=POLL)
    assert caught.value.batch_id.startswith("batch_")
    with pytest.raises(RejectedError, match="empty"):
        client.batch([], poll=POLL)


def test_a_cancelled_batch_has_errors_for_what_did_not_run(client: Any) -> None:
    batch_id = client.submit_batch([chat_body("[long][slow]")] * 30)
    client.run(client.batches.cancel(batch_id))
    results = client.batch_results(batch_id, poll=POLL)
    assert len(results) == 30
    assert results[-1].error.code == "batch_cancelled"


def test_taking_up_again(client: Any) -> None:
    requests = {name: chat_body(f"[slow][echo]{name}") for name in ("z", "y", "x")}
    batch_id = client.submit_batch(requests)
    with pytest.raises(BatchError, match="batch_results") as caught:
        client.batch_results(batch_id, poll=POLL, timeout=0)
    results = client.batch_results(caught.value.batch_id, poll=POLL)
    assert [(result.custom_id, result.answer.choices[0].message.content) for result in results] == [
        (name, name) for name in ("z", "y", "x")
    ]
    client.run(client.files.delete(client.run(client.batches.retrieve(batch_id)).input_file_id))
    assert {result.custom_id for result in client.batch_results(batch_id)} == {"x", "y", "z"}


def test_the_server_restarts_while_the_client_waits(connect: Connect, tmp_path: Path) -> None:
    place = {"port": free_port(), "data_dir": str(tmp_path)}
    found: list[Any] = []
    looks: list[Any] = []
    with running_server(**place) as server:
        client = connect(server.url)
        requests = [chat_body(f"[slow][echo]{i}" + "." * 20) for i in range(24)]
        batch_id = client.submit_batch(requests)
        waiting = threading.Thread(
            target=lambda: found.extend(client.batch_results(batch_id, poll=POLL, progress=looks.append))
        )
        waiting.start()
        deadline = time.monotonic() + 20
        while not looks or not looks[-1].request_counts.completed:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert looks[-1].status == "in_progress"
    before = len(looks)
    time.sleep(0.5)
    assert waiting.is_alive()
    with running_server(**place):
        waiting.join(60)
    assert len(looks) > before
    assert [result.unwrap().choices[0].message.content.rstrip(".") for result in found] == [str(i) for i in range(24)]


def test_a_batch_whose_beginning_was_not_heard_is_not_begun_twice(connect: Connect, server: Server) -> None:
    """The connection breaks when the server has the request: the client finds the batch and begins no other."""
    client = connect(server.url)
    with cut_after(server.port, b"POST /v1/batches ") as port:
        batch_id = connect(f"http://127.0.0.1:{port}").submit_batch([chat_body("[echo]once")])
    page = client.run(client.batches.list(limit=100))
    newest = page.data[0]
    assert newest.id == batch_id
    assert [batch.id for batch in page.data if batch.input_file_id == newest.input_file_id] == [batch_id]
    assert client.batch_results(batch_id, poll=POLL)[0].unwrap().choices[0].message.content == "once"
