"""``batches``."""

from __future__ import annotations

import json
import time
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.runtime.fake_engine import ANSWER
from tests.serve.conftest import chat_body

CHAT = "/v1/chat/completions"


def begin(sdk: openai.OpenAI, *bodies: dict[str, Any]) -> Batch:
    lines = [{"custom_id": str(i), "method": "POST", "url": CHAT, "body": body} for i, body in enumerate(bodies)]
    source = sdk.files.create(file=("in.jsonl", "\n".join(map(json.dumps, lines)).encode()), purpose="batch")
    return sdk.batches.create(input_file_id=source.id, endpoint=CHAT, completion_window="24h", metadata={"job": "x"})


def ended(sdk: openai.OpenAI, batch: Batch) -> Batch:
    deadline = time.monotonic() + 30
    while batch.status not in ("completed", "failed", "cancelled"):
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)
        batch = sdk.batches.retrieve(batch.id)
    return batch


def test_from_questions_to_answers(sdk: openai.OpenAI) -> None:
    batch = begin(sdk, chat_body(), chat_body("[nan]"))
    assert (batch.object, batch.endpoint, batch.metadata) == ("batch", CHAT, {"job": "x"})
    batch = ended(sdk, batch)
    assert batch.status == "completed" and batch.request_counts is not None
    assert (batch.request_counts.total, batch.request_counts.completed, batch.request_counts.failed) == (2, 1, 1)
    assert batch.output_file_id is not None and batch.error_file_id is not None
    (answer,) = map(json.loads, sdk.files.content(batch.output_file_id).text.splitlines())
    (error,) = map(json.loads, sdk.files.content(batch.error_file_id).text.splitlines())
    assert answer["response"]["body"]["choices"][0]["message"]["content"] == ANSWER
    assert error["custom_id"] == "1" and error["response"]["status_code"] == 500
    assert batch.id in [found.id for found in sdk.batches.list(limit=1)]


def test_a_bad_line_fails_the_batch(sdk: openai.OpenAI) -> None:
    batch = ended(sdk, begin(sdk, chat_body(), chat_body(surprise=1)))
    assert batch.status == "failed" and batch.errors is not None and batch.errors.data is not None
    assert (batch.errors.data[0].line, batch.errors.data[0].code) == (2, "unknown_parameter")


def test_cancelling_and_conflicts(sdk: openai.OpenAI) -> None:
    batch = begin(sdk, *[chat_body("[long][slow]")] * 20)
    with pytest.raises(openai.ConflictError) as in_use:
        sdk.files.delete(batch.input_file_id)
    assert in_use.value.code == "file_in_use"
    assert sdk.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    assert ended(sdk, batch).status == "cancelled"
    completed = ended(sdk, begin(sdk, chat_body()))
    with pytest.raises(openai.ConflictError) as over:
        sdk.batches.cancel(completed.id)
    assert over.value.code == "batch_not_cancellable"
    with pytest.raises(openai.NotFoundError):
        sdk.batches.retrieve("batch_none")
