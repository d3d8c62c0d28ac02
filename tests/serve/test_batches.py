"""``/v1/batches`` as clients see it: the official SDK, restarts, dying engines, and live requests beside them."""

from __future__ import annotations

import io
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai.types import Batch

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import MODEL, Server, chat_body, running_server
from tests.serve.postgres import running_postgres

CHAT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
FIELDS = {
    *("id", "object", "endpoint", "model", "errors", "input_file_id", "completion_window", "status", "output_file_id"),
    *("error_file_id", "created_at", "in_progress_at", "expires_at", "finalizing_at", "completed_at", "failed_at"),
    *("expired_at", "cancelling_at", "cancelled_at", "request_counts", "usage", "metadata"),
}


def sdk_of(server: Server, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1", api_key=key, max_retries=0, http_client=httpx.Client(trust_env=False)
    )


@pytest.fixture(scope="module")
def keyed() -> Iterator[Server]:
    with running_server(api_keys=("sk-one", "sk-two")) as server:
        yield server


@pytest.fixture
def sdk(keyed: Server) -> Iterator[openai.OpenAI]:
    with sdk_of(keyed, "sk-one") as client:
        yield client


def jsonl(bodies: list[dict[str, Any]], url: str = CHAT) -> bytes:
    lines = [{"custom_id": f"r{i}", "method": "POST", "url": url, "body": body} for i, body in enumerate(bodies)]
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def begin(sdk: openai.OpenAI, data: bytes, *, endpoint: Any = CHAT, **options: Any) -> Batch:
    source = sdk.files.create(file=("in.jsonl", data), purpose="batch")
    return sdk.batches.create(input_file_id=source.id, endpoint=endpoint, completion_window="24h", **options)


def wait(sdk: openai.OpenAI, batch_id: str, *statuses: str, seconds: float = 30.0, done: int = 0) -> Batch:
    """The batch when it has a status of these (or has ended), and ``done`` lines are done."""
    deadline = time.monotonic() + seconds
    while True:
        batch = sdk.batches.retrieve(batch_id)
        counts = batch.request_counts
        assert counts is not None
        if batch.status in (statuses or ENDED) and counts.completed + counts.failed >= done:
            return batch
        assert batch.status not in ENDED and time.monotonic() < deadline, batch
        time.sleep(0.05)


def lines_of(sdk: openai.OpenAI, file_id: str | None) -> dict[str, Any]:
    """custom_id -> line; fails if one is there twice."""
    if file_id is None:
        return {}
    found = [json.loads(line) for line in sdk.files.content(file_id).text.splitlines()]
    by_name = {line["custom_id"]: line for line in found}
    assert len(by_name) == len(found)
    return by_name


def text_of(line: dict[str, Any]) -> str:
    body = line["response"]["body"]
    return body["choices"][0]["message"]["content"] if "message" in body["choices"][0] else body["choices"][0]["text"]


def test_chat(sdk: openai.OpenAI) -> None:
    data = jsonl([chat_body(f"question {i}", seed=i) for i in range(30)])
    made = begin(sdk, data, metadata={"purpose": "night job"}, extra_body={})
    assert made.status == "validating" and made.metadata == {"purpose": "night job"}
    assert set(json.loads(made.model_dump_json())) >= FIELDS
    assert made.expires_at == made.created_at + 86_400
    batch = wait(sdk, made.id)
    assert batch.status == "completed" and batch.model == MODEL and batch.errors is None
    counts, usage = batch.request_counts, batch.usage
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (30, 30, 0)
    assert batch.error_file_id is None and batch.output_file_id is not None
    assert batch.in_progress_at and batch.finalizing_at and batch.completed_at and batch.completed_at >= made.created_at
    output = lines_of(sdk, batch.output_file_id)
    assert set(output) == {f"r{i}" for i in range(30)}
    first = output["r0"]
    assert set(first) == {"id", "custom_id", "response", "error"} and first["error"] is None
    assert first["id"].startswith("batch_req_") and first["response"]["request_id"].startswith("req_")
    assert all(line["response"]["status_code"] == 200 and text_of(line) == ANSWER for line in output.values())
    assert len({line["id"] for line in output.values()}) == 30
    assert usage is not None
    used = [line["response"]["body"]["usage"] for line in output.values()]
    assert usage.input_tokens == sum(u["prompt_tokens"] for u in used)
    assert usage.output_tokens == sum(u["completion_tokens"] for u in used)
    result = sdk.files.retrieve(batch.output_file_id)
    assert result.purpose == "batch_output" and result.filename == f"{batch.id}_output.jsonl"
    assert batch.id in [other.id for other in sdk.batches.list(limit=100)]
    again = sdk.batches.create(input_file_id=made.input_file_id, endpoint=CHAT, completion_window="24h")
    assert wait(sdk, again.id).status == "completed"  # an input can be used again


def test_completions_and_lines_that_fail(sdk: openai.OpenAI) -> None:
    bodies = [
        {"model": MODEL, "prompt": "once", "max_tokens": 5},
        {"model": MODEL, "prompt": "x" * 5000, "max_tokens": 5},
        {"model": MODEL, "prompt": "[nan]"},
        {"model": MODEL, "prompt": ["a", "b"], "echo": True, "max_tokens": 3, "n": 2},
    ]
    batch = wait(sdk, begin(sdk, jsonl(bodies, "/v1/completions"), endpoint="/v1/completions").id)
    counts = batch.request_counts
    assert batch.status == "completed" and counts is not None and (counts.completed, counts.failed) == (2, 2)
    output, errors = lines_of(sdk, batch.output_file_id), lines_of(sdk, batch.error_file_id)
    assert set(output) == {"r0", "r3"} and set(errors) == {"r1", "r2"}
    assert len(output["r3"]["response"]["body"]["choices"]) == 4
    too_long, broken = errors["r1"]["response"], errors["r2"]["response"]
    assert too_long["status_code"] == 400 and too_long["body"]["error"]["code"] == "context_length_exceeded"
    assert broken["status_code"] == 500 and "not finite" in broken["body"]["error"]["message"]
    assert errors["r1"]["error"] is None
    assert sdk.files.retrieve(batch.error_file_id or "").filename == f"{batch.id}_error.jsonl"


def test_input_that_is_not_valid(sdk: openai.OpenAI) -> None:
    good = jsonl([chat_body()])
    batch = wait(sdk, begin(sdk, good + b"nonsense\n" + good).id)
    assert batch.status == "failed" and batch.failed_at and batch.output_file_id is None
    assert batch.errors is not None and batch.errors.object == "list" and batch.errors.data is not None
    told = [(error.code, error.line, error.param) for error in batch.errors.data]
    assert told == [("invalid_json_line", 2, None), ("duplicate_custom_id", 3, "custom_id")]
    with pytest.raises(openai.ConflictError) as ended:
        sdk.batches.cancel(batch.id)
    assert ended.value.code == "batch_not_cancellable"


@pytest.mark.parametrize(
    ("change", "status", "param"),
    [
        ({"endpoint": "/v1/images/edits"}, 400, "endpoint"),
        ({"endpoint": None}, 400, "endpoint"),
        ({"completion_window": "1h"}, 400, "completion_window"),
        ({"completion_window": ...}, 400, "completion_window"),
        ({"input_file_id": "file-none"}, 404, "id"),
        ({"input_file_id": "\x00"}, 404, "id"),
        ({"input_file_id": ...}, 400, "input_file_id"),
        ({"metadata": {"a": 1}}, 400, "metadata.a"),
        ({"metadata": {f"k{i}": "v" for i in range(17)}}, 400, "metadata"),
        ({"metadata": {"k": "v" * 513}}, 400, "metadata.k"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, 400, "output_expires_after.seconds"),
        ({"output_expires_after": {"anchor": "now", "seconds": 3600}}, 400, "output_expires_after.anchor"),
        ({"colour": "red"}, 400, "colour"),
    ],
)
def test_bad_requests(sdk: openai.OpenAI, keyed: Server, change: dict[str, Any], status: int, param: str) -> None:
    source = sdk.files.create(file=io.BytesIO(jsonl([chat_body()])), purpose="batch")
    body = {"input_file_id": source.id, "endpoint": CHAT, "completion_window": "24h"} | change
    body = {key: value for key, value in body.items() if value is not ...}
    with keyed.client(headers={"authorization": "Bearer sk-one"}) as http:
        response = http.post("/v1/batches", json=body)
    assert response.status_code == status and response.json()["error"]["param"] == param, response.text


def test_wrong_purpose_and_wrong_key(sdk: openai.OpenAI, keyed: Server) -> None:
    other = sdk.files.create(file=io.BytesIO(jsonl([chat_body()])), purpose="user_data")
    with pytest.raises(openai.BadRequestError) as purpose:
        sdk.batches.create(input_file_id=other.id, endpoint=CHAT, completion_window="24h")
    assert purpose.value.code == "invalid_purpose"
    mine = begin(sdk, jsonl([chat_body()]))
    with sdk_of(keyed, "sk-two") as stranger:
        for attempt in (stranger.batches.retrieve, stranger.batches.cancel):
            with pytest.raises(openai.NotFoundError):
                attempt(mine.id)
        assert mine.id not in [batch.id for batch in stranger.batches.list()]
        with pytest.raises(openai.NotFoundError):
            stranger.batches.create(input_file_id=mine.input_file_id, endpoint=CHAT, completion_window="24h")
    assert wait(sdk, mine.id).status == "completed"


def test_cancel_keeps_what_is_done(sdk: openai.OpenAI) -> None:
    bodies = [chat_body("quick")] * 10 + [chat_body("[long][slow]")] * 40
    batch = wait(sdk, begin(sdk, jsonl(bodies)).id, "in_progress", done=10)
    with pytest.raises(openai.ConflictError) as in_use:
        sdk.files.delete(batch.input_file_id)
    assert in_use.value.code == "file_in_use"
    told = sdk.batches.cancel(batch.id)
    assert told.status == "cancelling" and told.cancelling_at
    assert sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    ended = wait(sdk, batch.id, seconds=10)
    assert ended.status == "cancelled" and ended.cancelled_at
    counts = ended.request_counts
    assert counts is not None and (counts.total, counts.completed, counts.failed) == (50, 10, 0)
    output, errors = lines_of(sdk, ended.output_file_id), lines_of(sdk, ended.error_file_id)
    assert set(output) == {f"r{i}" for i in range(10)} and set(errors) == {f"r{i}" for i in range(10, 50)}
    assert {line["error"]["code"] for line in errors.values()} == {"batch_cancelled"}
    assert all(line["response"] is None for line in errors.values())
    sdk.files.delete(batch.input_file_id)


def test_live_requests_are_admitted_beside_a_batch() -> None:
    with running_server(max_sequences=2, batch_concurrency=6) as server, sdk_of(server) as sdk:
        batch = begin(sdk, jsonl([chat_body("[long][slow]")] * 20))
        wait(sdk, batch.id, "in_progress")
        server.wait_metric("deepseek_engine_running", 6)
        assert server.metric("deepseek_admitted_answers") == 0
        with server.client() as http:
            assert http.post(CHAT, json=chat_body(n=2)).status_code == 200
        assert server.metric("deepseek_engine_running") == 6
        sdk.batches.cancel(batch.id)
        wait(sdk, batch.id)
        server.wait_metric("deepseek_engine_running", 0)


def test_batches_take_turns() -> None:
    with running_server(batch_concurrency=2) as server, sdk_of(server) as sdk:
        long = begin(sdk, jsonl([chat_body("[slow]")] * 400))
        wait(sdk, long.id, "in_progress", done=1)
        short = begin(sdk, jsonl([chat_body("[slow]")] * 4))
        assert wait(sdk, short.id).status == "completed"
        assert sdk.batches.retrieve(long.id).status == "in_progress"
        sdk.batches.cancel(long.id)
        wait(sdk, long.id)


def check_complete(sdk: openai.OpenAI, batch: Batch, total: int) -> None:
    counts = batch.request_counts
    assert batch.status == "completed" and counts is not None
    assert (counts.total, counts.completed, counts.failed) == (total, total, 0)
    output = lines_of(sdk, batch.output_file_id)  # none twice
    assert set(output) == {f"r{i}" for i in range(total)}  # none lost
    assert all(text_of(line) == f"{i}" for i, line in ((int(name[1:]), line) for name, line in output.items()))


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_survives_kills_of_the_server(kind: str, tmp_path: Path) -> None:
    """SIGKILL at several moments: lines that are done stay done, none is there twice, none is lost."""
    total = 120
    bodies = [chat_body("[seed][slow]", seed=i) for i in range(total)]
    kept: dict[int, tuple[str, int]] = {}

    def life(url: str | None, done: int) -> None:
        with running_server(data_dir=str(tmp_path), database_url=url) as server, sdk_of(server) as sdk:
            if not kept:
                batch = begin(sdk, jsonl(bodies))
            else:
                (batch,) = sdk.batches.list().data
                before = kept[max(kept)][1]
                counts = batch.request_counts
                assert counts is not None and counts.completed >= before  # nothing is forgotten
            if done >= total:
                check_complete(sdk, wait(sdk, batch.id), total)
                return
            found = wait(sdk, batch.id, "in_progress", done=done)
            assert found.request_counts is not None
            kept[done] = (batch.id, found.request_counts.completed)
            engine = server.engine_pid()
            server.stop()  # SIGKILL
            with pytest.raises(ProcessLookupError):
                for _ in range(100):  # the engine follows
                    os.kill(engine, 0)
                    time.sleep(0.1)

    def lives(url: str | None) -> None:
        for done in (1, total // 3, 2 * total // 3, total):
            life(url, done)

    if kind == "sqlite":
        lives(None)
    else:
        with running_postgres() as postgres:
            lives(postgres.new_database())


def test_sigterm_leaves_the_rest_for_the_next_server(tmp_path: Path) -> None:
    total = 60
    with running_server(data_dir=str(tmp_path)) as server, sdk_of(server) as sdk:
        batch = begin(sdk, jsonl([chat_body("[seed][slow]", seed=i) for i in range(total)]))
        wait(sdk, batch.id, "in_progress", done=5)
        server.process.send_signal(signal.SIGTERM)
        assert server.wait_exit() == 0
    with running_server(data_dir=str(tmp_path)) as server, sdk_of(server) as sdk:
        check_complete(sdk, wait(sdk, batch.id), total)


def test_another_server_of_the_same_model_takes_over(tmp_path: Path) -> None:
    total = 60
    with running_server(data_dir=str(tmp_path)) as second:
        with running_server(data_dir=str(tmp_path)) as third, sdk_of(third) as sdk:
            batch = begin(sdk, jsonl([chat_body("[seed][slow]", seed=i) for i in range(total)]))
            wait(sdk, batch.id, "in_progress", done=5)  # the second works on it, or this one
        second_pid = second.process.pid
        assert second_pid and second.process.poll() is None
        with running_server(data_dir=str(tmp_path)) as fourth, sdk_of(fourth) as sdk:
            second.stop()
            check_complete(sdk, wait(sdk, batch.id), total)


def test_lines_are_run_again_when_the_engine_dies() -> None:
    total = 40
    with running_server() as server, sdk_of(server) as sdk:
        batch = begin(sdk, jsonl([chat_body("[seed][slow]", seed=i) for i in range(total)]))
        wait(sdk, batch.id, "in_progress", done=5)
        os.kill(server.engine_pid(), signal.SIGKILL)
        check_complete(sdk, wait(sdk, batch.id), total)
        assert server.metric("deepseek_engine_restarts_total") == 1


def test_a_line_that_kills_the_engine_is_given_up_and_no_other() -> None:
    bodies = [chat_body("[die]" if i == 3 else "[slow]") for i in range(12)]
    with running_server() as server, sdk_of(server) as sdk:
        batch = wait(sdk, begin(sdk, jsonl(bodies)).id, seconds=60)
        output, errors = lines_of(sdk, batch.output_file_id), lines_of(sdk, batch.error_file_id)
        assert batch.status == "completed" and set(errors) == {"r3"} and len(output) == 11
        told = errors["r3"]["response"]
        assert told["status_code"] == 503 and told["body"]["error"]["code"] == "engine_unavailable"


def test_window_that_closes(tmp_path: Path) -> None:
    """The end of the window is moved in the database, as a day is too long for a test."""
    import sqlite3

    from deepseek_serve.store.store import DATABASE_FILE

    with running_server(data_dir=str(tmp_path)) as server, sdk_of(server) as sdk:
        batch = wait(
            sdk,
            begin(sdk, jsonl([chat_body("quick")] * 3 + [chat_body("[long][slow]")] * 20)).id,
            "in_progress",
            done=3,
        )
    database = sqlite3.connect(tmp_path / DATABASE_FILE)
    with database:
        database.execute("UPDATE deepseek_batches SET expires_at = ?", (int(time.time()) + 4,))
    database.close()
    with running_server(data_dir=str(tmp_path)) as server, sdk_of(server) as sdk:
        ended = wait(sdk, batch.id)
        assert ended.status == "expired" and ended.expired_at
        assert len(lines_of(sdk, ended.output_file_id)) == 3
        errors = lines_of(sdk, ended.error_file_id)
        assert len(errors) == 20 and errors["r3"]["error"]["code"] == "batch_expired"
        server.wait_metric("deepseek_engine_running", 0)


def test_lists_of_batches(sdk: openai.OpenAI, keyed: Server) -> None:
    made = [begin(sdk, jsonl([chat_body()])).id for _ in range(3)]
    page = sdk.batches.list(limit=2)
    assert [batch.id for batch in page.data] == made[:0:-1] and page.has_more
    assert sdk.batches.list(limit=1, after=made[1]).data[0].id == made[0]
    with keyed.client(headers={"authorization": "Bearer sk-one"}) as http:
        for query in ("limit=101", "limit=0", "after=batch_none", "after=%00"):
            assert http.get(f"/v1/batches?{query}").status_code == 400
        assert http.get("/v1/batches/batch_none").status_code == 404
        assert http.post("/v1/batches/%00/cancel").status_code == 404
    for name in made:
        wait(sdk, name)
