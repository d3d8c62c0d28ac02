"""The two clients: what they add to the SDK's is in the modules beside this one."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal
from urllib.parse import urlsplit

import openai
from openai.types.chat import ChatCompletionMessageParam

from deepseek.client import batch, server
from deepseek.client.batch import BatchResult, Progress, Requests
from deepseek.client.errors import connection_error, errors_in_stream, status_error
from deepseek.client.server import Health, Tokens, UsageBucket
from deepseek.client.steps import run, run_async
from deepseek.config import PUBLIC_NAME

DEFAULT_URL = "http://127.0.0.1:8000/v1"
URL_VARIABLE = "DEEPSEEK_BASE_URL"
KEY_VARIABLE = "DEEPSEEK_API_KEY"
NO_KEY = "none"  # the SDK insists on one; a server without keys does not look at it
MAX_RETRIES = 4  # after 0.5, 1, 2 and 4 s, or when the server says (Retry-After)
CHAT = "/v1/chat/completions"

Messages = str | Iterable[ChatCompletionMessageParam]


class Client(openai.OpenAI):
    """A synchronous client: :class:`openai.OpenAI`, and batches, streamed text and this server's own endpoints.

    Errors are both the SDK's and those of :mod:`deepseek.errors`. Requests are tried again (``max_retries``) after
    connection errors, 408, 409, 429 and 5xx; ``Retry-After`` of up to two minutes is obeyed. A silence of ten minutes
    or a connection that takes five seconds is a timeout; ``timeout`` changes that.

    Args:
        base_url: None takes ``$DEEPSEEK_BASE_URL``, else ``http://127.0.0.1:8000/v1``; a bare host gets ``/v1``.
        api_key: None takes ``$DEEPSEEK_API_KEY``; a server without keys needs none.
        options: everything else that :class:`openai.OpenAI` takes.
    """

    def __init__(
        self,
        *,
        base_url: Any = None,
        api_key: Any = None,
        max_retries: int = MAX_RETRIES,
        http_client: Any = None,
        **options: Any,
    ) -> None:
        url = _url(base_url)
        if http_client is None and _is_loopback(url):
            http_client = openai.DefaultHttpxClient(trust_env=False)
        super().__init__(
            base_url=url, api_key=_key(api_key), max_retries=max_retries, http_client=http_client, **options
        )

    def request(self, *args: Any, **options: Any) -> Any:
        try:
            return super().request(*args, **options)
        except openai.APIConnectionError as error:
            raise connection_error(error) from error.__cause__

    def _make_status_error(self, *args: Any, **options: Any) -> openai.APIStatusError:
        return status_error(super()._make_status_error(*args, **options))

    def stream_text(self, messages: Messages, *, model: str = PUBLIC_NAME, **options: Any) -> Iterator[str]:
        """The answer's text as it comes; a string is one message of the user. ``options`` are those of the chat."""
        given = _chat(messages, model, options)
        with errors_in_stream(), self.chat.completions.create(**given) as chunks:
            for chunk in chunks:
                if text := _text_of(chunk):
                    yield text

    def batch(
        self,
        requests: Requests,
        *,
        endpoint: str = CHAT,
        poll: float = 2.0,
        timeout: float | None = None,
        progress: Progress | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> list[BatchResult]:
        """Send requests as a batch, wait for its end, and return the results in the order of the requests.

        Args:
            requests: bodies, as for a live request; or custom id -> body.
            poll: seconds between looks.
            timeout: seconds to wait for the end; None waits for it.
            progress: called with the batch at each look: its ``id``, ``status`` and ``request_counts``.

        Raises BatchError with the batch's id if it fails or ``timeout`` passes; :meth:`batch_results` takes up there.
        A server that goes away while this waits is given ten minutes to come back.
        """
        batch_id, order = run(batch.submit(self, requests, endpoint, metadata))
        steps = batch.results(self, batch_id, poll=poll, timeout=timeout, progress=progress, order=order)
        return run(steps)

    def submit_batch(
        self, requests: Requests, *, endpoint: str = CHAT, metadata: Mapping[str, str] | None = None
    ) -> str:
        """Begin a batch and return its id, for :meth:`batch_results` of this process or another."""
        return run(batch.submit(self, requests, endpoint, metadata))[0]

    def batch_results(
        self, batch_id: str, *, poll: float = 2.0, timeout: float | None = None, progress: Progress | None = None
    ) -> list[BatchResult]:
        """Wait for the end of a batch and return its results, as :meth:`batch`."""
        return run(batch.results(self, batch_id, poll=poll, timeout=timeout, progress=progress))

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until the server answers requests. Raises UnreachableError after ``timeout`` seconds."""
        run(server.wait_ready(self, timeout))

    def health(self) -> Health:
        """Whether a request sent now would be served. Raises UnreachableError if there is no server."""
        return run(server.health(self))

    def tokenize(self, text: str | Sequence[Mapping[str, Any]], *, model: str | None = None, **options: Any) -> Tokens:
        """The tokens of a text or of a conversation; ``options`` are the fields of ``/tokenize``."""
        return run(server.tokenize(self, text, model, options))

    def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """The text of these tokens."""
        return run(server.detokenize(self, tokens, model))

    def usage(
        self,
        *,
        start_time: int | None = None,
        end_time: int | None = None,
        bucket_width: Literal["1h", "1d"] = "1d",
        by_model: bool = False,
    ) -> list[UsageBucket]:
        """What the key has used, in buckets; times are Unix seconds."""
        return run(server.usage(self, start_time, end_time, bucket_width, by_model))

    def metrics(self) -> dict[str, float]:
        """The node's metrics: each sample's name with its labels, and its value."""
        return run(server.metrics(self))


class AsyncClient(openai.AsyncOpenAI):
    """The asynchronous client; see :class:`Client`."""

    def __init__(
        self,
        *,
        base_url: Any = None,
        api_key: Any = None,
        max_retries: int = MAX_RETRIES,
        http_client: Any = None,
        **options: Any,
    ) -> None:
        url = _url(base_url)
        if http_client is None and _is_loopback(url):
            http_client = openai.DefaultAsyncHttpxClient(trust_env=False)
        super().__init__(
            base_url=url, api_key=_key(api_key), max_retries=max_retries, http_client=http_client, **options
        )

    async def request(self, *args: Any, **options: Any) -> Any:
        try:
            return await super().request(*args, **options)
        except openai.APIConnectionError as error:
            raise connection_error(error) from error.__cause__

    def _make_status_error(self, *args: Any, **options: Any) -> openai.APIStatusError:
        return status_error(super()._make_status_error(*args, **options))

    async def stream_text(self, messages: Messages, *, model: str = PUBLIC_NAME, **options: Any) -> AsyncIterator[str]:
        """As :meth:`Client.stream_text`."""
        given = _chat(messages, model, options)
        with errors_in_stream():
            async with await self.chat.completions.create(**given) as chunks:
                async for chunk in chunks:
                    if text := _text_of(chunk):
                        yield text

    async def batch(
        self,
        requests: Requests,
        *,
        endpoint: str = CHAT,
        poll: float = 2.0,
        timeout: float | None = None,
        progress: Progress | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> list[BatchResult]:
        """As :meth:`Client.batch`."""
        batch_id, order = await run_async(batch.submit(self, requests, endpoint, metadata))
        steps = batch.results(self, batch_id, poll=poll, timeout=timeout, progress=progress, order=order)
        return await run_async(steps)

    async def submit_batch(
        self, requests: Requests, *, endpoint: str = CHAT, metadata: Mapping[str, str] | None = None
    ) -> str:
        """As :meth:`Client.submit_batch`."""
        return (await run_async(batch.submit(self, requests, endpoint, metadata)))[0]

    async def batch_results(
        self, batch_id: str, *, poll: float = 2.0, timeout: float | None = None, progress: Progress | None = None
    ) -> list[BatchResult]:
        """As :meth:`Client.batch_results`."""
        return await run_async(batch.results(self, batch_id, poll=poll, timeout=timeout, progress=progress))

    async def wait_ready(self, timeout: float = 120.0) -> None:
        """As :meth:`Client.wait_ready`."""
        await run_async(server.wait_ready(self, timeout))

    async def health(self) -> Health:
        """As :meth:`Client.health`."""
        return await run_async(server.health(self))

    async def tokenize(
        self, text: str | Sequence[Mapping[str, Any]], *, model: str | None = None, **options: Any
    ) -> Tokens:
        """As :meth:`Client.tokenize`."""
        return await run_async(server.tokenize(self, text, model, options))

    async def detokenize(self, tokens: Sequence[int], *, model: str | None = None) -> str:
        """As :meth:`Client.detokenize`."""
        return await run_async(server.detokenize(self, tokens, model))

    async def usage(
        self,
        *,
        start_time: int | None = None,
        end_time: int | None = None,
        bucket_width: Literal["1h", "1d"] = "1d",
        by_model: bool = False,
    ) -> list[UsageBucket]:
        """As :meth:`Client.usage`."""
        return await run_async(server.usage(self, start_time, end_time, bucket_width, by_model))

    async def metrics(self) -> dict[str, float]:
        """As :meth:`Client.metrics`."""
        return await run_async(server.metrics(self))


def _url(given: Any) -> str:
    url = str(given or os.environ.get(URL_VARIABLE) or DEFAULT_URL)
    return url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/v1"


def _key(given: Any) -> Any:
    return given or os.environ.get(KEY_VARIABLE) or NO_KEY


def _is_loopback(url: str) -> bool:
    """Whether it is this machine, for which no proxy is asked, whatever the environment says."""
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _chat(messages: Messages, model: str, options: Mapping[str, Any]) -> dict[str, Any]:
    conversation = [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
    return {**options, "model": model, "messages": conversation, "stream": True}


def _text_of(chunk: Any) -> str | None:
    """The next text of the first answer."""
    text: str | None = next((choice.delta.content for choice in chunk.choices if choice.index == 0), None)
    return text
