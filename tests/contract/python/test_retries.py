"""What the SDK asks again, after how long, and what it does not ask again."""

from __future__ import annotations

import itertools
import threading
import time
from typing import Any

import openai
import pytest

from tests.contract.node import FEW_TOKENS, KEY, OF_ONE_KEY, ONE_AT_A_TIME, POOR
from tests.contract.python.conftest import Connect
from tests.contract.python.test_errors import spend
from tests.serve.conftest import chat_body


class Sent:
    """Notes the requests that leave."""

    def __init__(self) -> None:
        self.counts: list[str] = []
        self.times: list[float] = []

    def __call__(self, request: Any) -> None:
        self.counts.append(request.headers["x-stainless-retry-count"])
        self.times.append(time.monotonic())

    @property
    def hooks(self) -> dict[str, Any]:
        return {"event_hooks": {"request": [self]}}


@pytest.mark.parametrize(("key", "answers"), [(ONE_AT_A_TIME, 1), (KEY, OF_ONE_KEY)], ids=["429", "503"])
def test_retry_after_is_obeyed(connect: Connect, key: str, answers: int) -> None:
    busy = connect(key).chat.completions.create(**chat_body("[long][slow]", n=answers, stream=True))
    next(iter(busy))
    sent = Sent()
    refusals: list[float] = []

    def note(response: Any) -> None:
        if response.status_code in (429, 503):
            refusals.append(float(response.headers["retry-after-ms"]) / 1000)
            busy.close()

    hooks = {"event_hooks": {"request": [sent], "response": [note]}}
    raw = connect(key, max_retries=3, **hooks).chat.completions.with_raw_response.create(**chat_body(n=min(answers, 4)))
    assert raw.retries_taken == len(refusals) >= 1
    assert sent.counts == [str(i) for i in range(len(refusals) + 1)]
    pauses = [later - before for before, later in itertools.pairwise(sent.times)]
    for pause, wanted in zip(pauses, refusals, strict=True):
        assert pause >= wanted


@pytest.mark.parametrize(
    ("key", "fields", "status"),
    [(KEY, {"temperature": 9}, 400), ("sk-wrong", {}, 401), (POOR, {}, 402), (FEW_TOKENS, {"max_tokens": 500}, 429)],
)
def test_what_will_not_change_is_not_asked_again(
    connect: Connect, key: str, fields: dict[str, Any], status: int
) -> None:
    """429 too, if it says that the request can never fit."""
    if key == POOR:
        spend(connect(POOR))
    sent = Sent()
    with pytest.raises(openai.APIStatusError) as caught:
        connect(key, max_retries=3, **sent.hooks).chat.completions.create(**chat_body(**fields))
    assert caught.value.status_code == status
    assert sent.counts == ["0"]


def test_a_stream_that_has_begun_is_not_asked_again(connect: Connect) -> None:
    sent = Sent()
    with pytest.raises(openai.APIError, match="not finite"):
        list(connect(max_retries=3, **sent.hooks).chat.completions.create(**chat_body("[nan]", stream=True)))
    assert sent.counts == ["0"]


def test_a_failed_answer_is_asked_again(connect: Connect) -> None:
    sent = Sent()
    with pytest.raises(openai.InternalServerError):
        connect(max_retries=1, **sent.hooks).chat.completions.create(**chat_body("[nan]"))
    assert sent.counts == ["0", "1"]


def test_many_clients_with_room_for_one(connect: Connect) -> None:
    """All are served in the end: nobody is refused for good while he obeys."""
    answers: list[str | None] = []

    def ask() -> None:
        answer = connect(ONE_AT_A_TIME, max_retries=20).chat.completions.create(**chat_body())
        answers.append(answer.choices[0].message.content)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(answers) == 3
