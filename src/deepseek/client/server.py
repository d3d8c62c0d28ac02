"""This server's endpoints that the OpenAI API does not have, as steps of either client."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import openai

from deepseek.client.steps import Sleep, Steps
from deepseek.errors import UnreachableError

PROBE_SECONDS = 5.0  # longest wait for one answer of /health/ready
BETWEEN_PROBES = 0.25


class Tokens(openai.BaseModel):
    """``tokens`` and how many they are; ``max_model_len`` is the model's context."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class UsageResult(openai.BaseModel):
    """What was used in a bucket, of one model or (``model`` None) of all."""

    model: str | None = None
    requests: int
    errors: int
    cancelled: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    reasoning_tokens: int


class UsageBucket(openai.BaseModel):
    """Use from ``start_time`` to ``end_time``, Unix seconds."""

    start_time: int
    end_time: int
    results: list[UsageResult]


class UsagePage(openai.BaseModel):
    data: list[UsageBucket]


class _Text(openai.BaseModel):
    prompt: str


@dataclass(frozen=True, slots=True)
class Health:
    """Whether a request sent now would be served; if not, the server's ``status`` and perhaps the ``reason``."""

    ready: bool
    status: str
    reason: str | None = None


def root(client: openai.OpenAI | openai.AsyncOpenAI) -> str:
    """The server's address without ``/v1``, with a slash at the end."""
    return str(client.base_url).rstrip("/").removesuffix("/v1") + "/"


def tokenize(
    client: Any, text: str | Sequence[Mapping[str, Any]], model: str | None, options: Mapping[str, Any]
) -> Steps[Tokens]:
    given = {"prompt": text} if isinstance(text, str) else {"messages": text}
    body = {"model": model, **given, **options}
    tokens: Tokens = yield lambda: client.post(root(client) + "tokenize", body=body, cast_to=Tokens)
    return tokens


def detokenize(client: Any, tokens: Sequence[int], model: str | None) -> Steps[str]:
    body = {"model": model, "tokens": list(tokens)}
    text: _Text = yield lambda: client.post(root(client) + "detokenize", body=body, cast_to=_Text)
    return text.prompt


def usage(
    client: Any, start_time: int | None, end_time: int | None, width: Literal["1h", "1d"], by_model: bool
) -> Steps[list[UsageBucket]]:
    group_by = "model" if by_model else None
    query = {"bucket_width": width, "start_time": start_time, "end_time": end_time, "group_by": group_by}
    given = {name: value for name, value in query.items() if value is not None}
    page: UsagePage = yield lambda: client.get("/usage", options={"params": given}, cast_to=UsagePage)
    return page.data


def health(client: Any) -> Steps[Health]:
    options = {"max_retries": 0, "timeout": PROBE_SECONDS}
    try:
        yield lambda: client.get(root(client) + "health/ready", options=options, cast_to=object)
    except openai.InternalServerError as error:
        body: Mapping[str, Any] = error.body if isinstance(error.body, Mapping) else {}
        return Health(False, str(body.get("status", "unavailable")), body.get("reason"))
    return Health(True, "ready")


def wait_ready(client: Any, timeout: float) -> Steps[None]:
    deadline = time.monotonic() + timeout
    while True:
        try:
            found = yield from health(client)
            state = f"it is {found.status}" + (f" ({found.reason})" if found.reason else "")
        except UnreachableError as error:
            found, state = None, str(error)
        if found is not None and found.ready:
            return
        if time.monotonic() >= deadline:
            raise UnreachableError(f"The server at {root(client)} was not ready after {timeout:g} s: {state}")
        yield Sleep(BETWEEN_PROBES)


def metrics(client: Any) -> Steps[dict[str, float]]:
    text: str = yield lambda: client.get(root(client) + "metrics", cast_to=str)
    samples = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}
