"""A model behind an OpenAI-compatible or Anthropic API: asked in parallel, with patience, and within a budget."""

from __future__ import annotations

import asyncio
import os
import queue
import threading
import time
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import reduce
from typing import Any, TypeVar, cast

import msgspec

from deepseek.errors import ConfigurationError, DeepSeekError, EvaluationError, SpendingCapError
from deepseek_eval.models.dialects import AnthropicDialect, ChatDialect, CompletionDialect, Dialect
from deepseek_eval.models.rendering import asks_for_label
from deepseek_eval.models.spending import Spending
from deepseek_eval.task import (
    Choose,
    Generate,
    Item,
    Likelihood,
    Measure,
    Message,
    ModelCard,
    Output,
    Prompt,
    Sample,
    Task,
)

APIS = ("chat", "completions", "anthropic")
LABEL_TOKENS = 16
_MOST_FAILURES = 24
"""Items in a row without an answer after which an endpoint counts as gone."""
_Post = Callable[[dict[str, Any]], Awaitable[Any]]


_T = TypeVar("_T")


class _Fatal(Exception):
    """No further item can be answered; the message says why."""


class EndpointModel:
    """A model behind an address.

    An answer that does not come, has another form or says that it failed makes its item unanswered, after some tries:
    connection errors, time-outs, 408, 409, 429 and 5xx are tried again after growing waits, or after those that
    ``Retry-After`` asks for. A wrong key or name ends the run; so does an endpoint that answers nothing any more.

    Args:
        name: of the model there.
        base_url: ``https://host/v1``, or Anthropic's without the ``/v1``; None is the provider's own.
        api: ``chat``, ``completions`` (texts are continued as they are; with log-probabilities where the server echoes
            them) or ``anthropic``.
        api_key_env: variable that holds the key; else ``OPENAI_API_KEY`` or ``ANTHROPIC_API_KEY``, if there is one.
        concurrency: requests at a time.
        timeout: seconds for one try.
        retries: tries after the first.
        price_in, price_out: dollars per million tokens of prompts and answers.
        extra_body: fields that each request gets besides, or in place of its own; None leaves a field out. For models
            that refuse a temperature: ``{"temperature": None}``.
        thinking_tokens: room beside that for the answer, for models that think first.
        max_cost: dollars; nothing is asked that might go beyond. Needs both prices.
        seed: sent with each request that the API takes a seed with.

    Raises ConfigurationError for settings that cannot work.
    """

    def __init__(
        self,
        name: str,
        *,
        base_url: str | None = None,
        api: str = "chat",
        api_key_env: str | None = None,
        concurrency: int = 8,
        timeout: float = 120.0,
        retries: int = 5,
        price_in: float | None = None,
        price_out: float | None = None,
        max_cost: float | None = None,
        extra_body: Mapping[str, Any] | None = None,
        thinking_tokens: int = 0,
        seed: int = 0,
    ) -> None:
        if api not in APIS:
            raise ConfigurationError(f"api must be one of {', '.join(APIS)}, not {api!r}.")
        if base_url is not None and not base_url.startswith(("http://", "https://")):
            raise ConfigurationError(f"base_url must begin with http:// or https://, unlike {base_url!r}.")
        if base_url is not None and "@" in base_url.split("/")[2]:
            raise ConfigurationError("base_url holds a name or a password, and results record it: use api_key_env.")
        if concurrency < 1 or timeout <= 0 or retries < 0 or thinking_tokens < 0:
            raise ConfigurationError(
                "concurrency must be at least 1, timeout above 0, retries and thinking_tokens at least 0."
            )
        self._name = name
        self._base_url = base_url
        self._api = api
        self._key = _key(api, api_key_env)
        self._concurrency, self._timeout, self._retries = concurrency, timeout, retries
        self._seed = seed
        self._extra, self._thinking_tokens = dict(extra_body or {}), thinking_tokens
        self._dialect = _dialect(api, base_url)
        self.spending = Spending(price_in, price_out, max_cost)
        self._failures = 0
        likelihoods = api == "completions" and self._echoes()
        self.card = ModelCard(
            name=name,
            kind="endpoint",
            evidence="re-run",
            details={
                "address": base_url or "the provider's own",
                "api": api,
                "extra_body": self._extra,
                "thinking_tokens": thinking_tokens,
            },
            likelihoods=likelihoods,
        )

    def close(self) -> None:
        return

    def answer(self, task: Task, items: Sequence[Item]) -> Iterator[tuple[int, Output]]:
        results: queue.SimpleQueue[tuple[int, Output] | Exception | None] = queue.SimpleQueue()
        stop = threading.Event()

        def work() -> None:
            try:
                asyncio.run(self._answer_all(items, results.put, stop))
            except Exception as error:  # noqa: BLE001 - handed to the caller's thread
                results.put(error)
            results.put(None)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        try:
            while (found := results.get()) is not None:
                if isinstance(found, _Fatal):
                    raise EvaluationError(f"{self._name}: {found}")
                if isinstance(found, Exception):
                    raise found
                yield found
        finally:
            stop.set()
            thread.join()

    async def _answer_all(
        self, items: Sequence[Item], put: Callable[[tuple[int, Output]], None], stop: threading.Event
    ) -> None:
        """Workers take the items in order. The first one that finds that it cannot go on ends the others."""
        waiting = iter(enumerate(items))
        async with AsyncExitStack() as stack:
            post = await self._connect(stack)

            async def worker() -> None:
                for position, item in waiting:
                    if stop.is_set():
                        return
                    put((position, await self._answer_one(post, item)))

            workers = [asyncio.ensure_future(worker()) for _ in range(min(self._concurrency, len(items)))]
            watch = asyncio.ensure_future(_cancel_when(stop, workers))
            problem: BaseException | None = None
            for done in asyncio.as_completed(workers):
                try:
                    await done
                except asyncio.CancelledError:
                    continue
                except SpendingCapError as error:  # the others end what they have begun
                    problem = problem or error
                except _Fatal as error:
                    problem = problem or error
                    stop.set()
            watch.cancel()
            if problem is not None:
                raise problem

    async def _answer_one(self, post: _Post, item: Item) -> Output:
        started = time.monotonic()
        try:
            output = await self._ask(post, item)
            self._failures = 0
        except DeepSeekError:
            raise
        except _Unanswered as error:
            self._failures += error.counts
            if self._failures >= _MOST_FAILURES:
                raise _Fatal(f"{self._failures} items in a row had no answer; the last: {error}") from error
            output = Output(error=str(error))
        return msgspec.structs.replace(output, seconds=time.monotonic() - started)

    async def _ask(self, post: _Post, item: Item) -> Output:
        ask, prompt = item.ask, item.prompt
        if isinstance(ask, Generate):
            return await self._generate(post, item.id, prompt, ask)
        if self.card.likelihoods:
            texts = ask.continuations if isinstance(ask, Choose) else ("",)
            return await self._likelihoods(post, prompt, texts)
        if isinstance(ask, Measure):
            return Output(error="this endpoint gives no log-probabilities, which the item needs")
        if not ask.labels:
            return Output(error="this endpoint gives no log-probabilities, and the item cannot be asked in words")
        messages = tuple(Message(turn["role"], turn["content"]) for turn in asks_for_label(prompt, ask))
        return await self._generate(post, item.id, messages, Generate(max_tokens=LABEL_TOKENS))

    async def _generate(self, post: _Post, name: str, prompt: Prompt, ask: Generate) -> Output:
        samples: list[Sample] = []
        tokens_in = tokens_out = 0
        cost: float | None = None
        ask = msgspec.structs.replace(ask, max_tokens=ask.max_tokens + self._thinking_tokens)
        for part in range(ask.samples):
            seed = zlib.crc32(f"{self._seed}/{name}/{part}".encode())
            body = self._dialect.body(self._name, prompt, ask, seed)
            with self.spending.reserve(prompt, ask.max_tokens) as account:
                answer = await _meaning(post, body, self._dialect.read)
                own = account.settle(answer.prompt_tokens, answer.completion_tokens)
            cost = own if cost is None else cost + (own or 0.0)
            samples.append(msgspec.structs.replace(answer.sample, text=_cut(answer.sample.text, ask.stop)))
            tokens_in += answer.prompt_tokens or 0
            tokens_out += answer.completion_tokens or 0
        return Output(samples=tuple(samples), prompt_tokens=tokens_in, completion_tokens=tokens_out, cost=cost)

    async def _likelihoods(self, post: _Post, prompt: Prompt, continuations: Sequence[str]) -> Output:
        dialect = cast(CompletionDialect, self._dialect)
        text = prompt if isinstance(prompt, str) else "\n".join(turn.content for turn in prompt)
        found: list[Likelihood] = []
        tokens_in = 0
        cost: float | None = None
        for continuation in continuations:
            whole, start = text + continuation, len(text) if continuation else 0

            def read(answer: Any, start: int = start, end: int = len(whole)) -> tuple[Likelihood, int | None]:
                return dialect.read_likelihood(answer, start, end)

            with self.spending.reserve(whole, 1) as account:
                body = dialect.likelihood_body(self._name, whole)
                likelihood, tokens = await _meaning(post, body, read)
                own = account.settle(tokens, 1)
            cost = own if cost is None else cost + (own or 0.0)
            found.append(likelihood)
            tokens_in += tokens or 0
        return Output(likelihoods=tuple(found), prompt_tokens=tokens_in, cost=cost)

    async def _connect(self, stack: AsyncExitStack) -> _Post:
        """A function that posts a body and returns the decoded answer. Raises _Unanswered and _Fatal."""
        options: dict[str, Any] = {
            "api_key": self._key,
            "base_url": self._base_url,
            "timeout": self._timeout,
            "max_retries": self._retries,
        }
        library: Any
        if self._api == "anthropic":
            import anthropic as library

            client = await stack.enter_async_context(library.AsyncAnthropic(**options))
        else:
            import openai as library

            client = await stack.enter_async_context(library.AsyncOpenAI(**options))
        added = {name: value for name, value in self._extra.items() if value is not None}
        create = reduce(getattr, self._dialect.resource, client).with_raw_response.create
        whole = self._timeout * (1 + self._retries)  # a server that sends a byte now and then never times out

        async def post(body: dict[str, Any]) -> Any:
            body = {name: value for name, value in body.items() if name not in self._extra}
            try:
                raw = await asyncio.wait_for(create(**body, extra_body=added), whole)
                return msgspec.json.decode(raw.http_response.content)
            except (library.AuthenticationError, library.PermissionDeniedError, library.NotFoundError) as error:
                raise _Fatal(f"the endpoint refuses: {_short(error)}") from error
            except (library.APITimeoutError, TimeoutError) as error:
                raise _Unanswered("no answer in time", counts=1) from error
            except library.APIConnectionError as error:
                raise _Unanswered(f"no connection: {_short(error.__cause__ or error)}", counts=1) from error
            except library.APIStatusError as error:
                counts = int(error.status_code >= 500 or error.status_code == 429)
                raise _Unanswered(f"HTTP {error.status_code}: {_short(error)}", counts=counts) from error
            except (library.APIError, msgspec.DecodeError, UnicodeDecodeError) as error:
                raise _Unanswered(f"the answer makes no sense: {_short(error)}") from error

        return post

    def _echoes(self) -> bool:
        """Whether the server gives log-probabilities of a text that it is sent."""

        async def probe() -> bool:
            async with AsyncExitStack() as stack:
                post = await self._connect(stack)
                dialect = cast(CompletionDialect, self._dialect)
                try:
                    answer = await post(dialect.likelihood_body(self._name, "One two three"))
                    dialect.read_likelihood(answer, 3, 13)
                except _Fatal as error:
                    raise EvaluationError(f"{self._name}: {error}") from error
                except (_Unanswered, msgspec.ValidationError):
                    return False
                return True

        return asyncio.run(probe())


class _Unanswered(Exception):
    """An item has no answer. ``counts`` is 1 if the endpoint may be gone."""

    def __init__(self, message: str, *, counts: int = 0) -> None:
        super().__init__(message)
        self.counts = counts


async def _meaning(post: _Post, body: dict[str, Any], read: Callable[[Any], _T]) -> _T:
    """Of an answer. Raises _Unanswered and _Fatal."""
    answer = await post(body)
    try:
        return read(answer)
    except msgspec.ValidationError as error:
        raise _Unanswered(f"the answer makes no sense: {error}") from error


async def _cancel_when(stop: threading.Event, workers: Sequence[asyncio.Future[None]]) -> None:
    while not stop.is_set():
        await asyncio.sleep(0.05)
    for worker in workers:
        worker.cancel()


def _key(api: str, variable: str | None) -> str:
    """The key. Raises ConfigurationError if a variable was named that is not set."""
    if variable is not None:
        if not os.environ.get(variable):
            raise ConfigurationError(f"the variable {variable} is not set: it should hold the endpoint's key.")
        return os.environ[variable]
    return os.environ.get("ANTHROPIC_API_KEY" if api == "anthropic" else "OPENAI_API_KEY") or "none"


def _dialect(api: str, base_url: str | None) -> Dialect:
    if api == "anthropic":
        return AnthropicDialect()
    if api == "completions":
        return CompletionDialect()
    own = base_url is None or "api.openai.com" in base_url
    return ChatDialect("max_completion_tokens" if own else "max_tokens")


def _cut(text: str, stops: Sequence[str]) -> str:
    """Up to the first stop string: APIs take few of them, and not all."""
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
