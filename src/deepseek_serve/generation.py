"""From a validated request to the deltas of its choices; the same for chat and text, streamed or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

import msgspec

from deepseek.engine.events import GenerateRequest
from deepseek.errors import ContextLengthError, InvalidRequestError
from deepseek.runtime.client import error_of
from deepseek.runtime.output import OutputAssembler, TextDelta
from deepseek.sampling import SamplingParams
from deepseek_serve.protocol.common import seed_of_choice
from deepseek_serve.protocol.responses import CompletionTokensDetails, PromptTokensDetails, Usage
from deepseek_serve.state import ServerState

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
MERGE_BUFFER = 64  # deltas of all choices that wait for a slow reader before the readers of the engine wait too


class Choice:
    """One answer in the making: one request to the engine.

    Attributes:
        index: place in the response's ``choices``.
        prompt: token ids.
        completion_tokens: tokens so far, an end token included.
        cached_tokens: prompt tokens found in the prefix cache.
    """

    def __init__(
        self, state: ServerState, tokenizer: Tokenizer, request: GenerateRequest, index: int, *, continues_text: bool
    ) -> None:
        self._state = state
        self._request = request
        self._tokenizer = tokenizer
        self._continues_text = continues_text
        self.index = index
        self.prompt = request.prompt
        self.completion_tokens = 0
        self.cached_tokens = 0

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """Text as it comes; the last delta has a ``finish_reason``. Raises what the engine failed with.

        Closing it early, as at a stop string, cancels the request in the engine.
        """
        assembler = OutputAssembler(self._tokenizer, self._request.params, continues_text=self._continues_text)
        started = time.monotonic()
        async with aclosing(self._state.client.generate(self._request)) as events:
            async for event in events:
                if event.finish_reason in ("error", "cancelled"):
                    raise error_of(event)
                if self.completion_tokens == 0:
                    self._state.metrics.first_token.observe(time.monotonic() - started)
                self.completion_tokens += 1
                self.cached_tokens += event.cached_tokens
                delta = assembler.push(event)
                yield delta
                if delta.finish_reason is not None:
                    return


class Job:
    """All choices of one HTTP request, choices of one prompt side by side.

    Args:
        name: the response's id, from which the engine's request ids are made.
        prompts: token ids per prompt.
        params: as the client asked; every choice gets ``n`` 1 and its own seed.
        cache_salt: tenant of the prefix cache.
        continues_text: the answers go on the prompt's last words.
    """

    def __init__(
        self,
        state: ServerState,
        tokenizer: Tokenizer,
        name: str,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        cache_salt: str,
        continues_text: bool,
    ) -> None:
        self._state = state
        self.name = name
        self.created = int(time.time())
        self.params = params
        self.choices: list[Choice] = []
        for prompt in prompts:
            for i in range(params.n):
                single = msgspec.structs.replace(params, n=1, seed=seed_of_choice(params, i))
                index = len(self.choices)
                request = GenerateRequest(f"{name}-{index}", prompt, single, cache_salt)
                self.choices.append(Choice(state, tokenizer, request, index, continues_text=continues_text))

    def usage(self) -> Usage:
        """Token counts so far; a prompt counts once, however many choices continue it."""
        firsts = self.choices[:: self.params.n]
        prompt = sum(len(choice.prompt) for choice in firsts)
        cached = sum(choice.cached_tokens for choice in firsts)
        completion = sum(choice.completion_tokens for choice in self.choices)
        return Usage(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_tokens_details=PromptTokensDetails(cached),
            completion_tokens_details=CompletionTokensDetails(),
            prompt_cache_hit_tokens=cached,
            prompt_cache_miss_tokens=prompt - cached,
        )

    def count(self) -> None:
        """Enter the tokens into the metrics; called once, when the job is over."""
        usage = self.usage()
        self._state.metrics.prompt_tokens.inc(usage.prompt_tokens)
        self._state.metrics.cached_tokens.inc(usage.prompt_cache_hit_tokens)
        self._state.metrics.completion_tokens.inc(usage.completion_tokens)

    async def deltas(self) -> AsyncGenerator[tuple[Choice, TextDelta], None]:
        """The deltas of all choices as they come. The first failure ends them all."""
        try:
            if len(self.choices) == 1:
                choice = self.choices[0]
                async with aclosing(choice.deltas()) as deltas:
                    async for delta in deltas:
                        yield choice, delta
            else:
                async with aclosing(self._merged()) as pairs:
                    async for pair in pairs:
                        yield pair
        finally:
            self.count()

    async def _merged(self) -> AsyncGenerator[tuple[Choice, TextDelta], None]:
        queue: asyncio.Queue[tuple[Choice, TextDelta] | Exception | None] = asyncio.Queue(MERGE_BUFFER)

        async def read(choice: Choice) -> None:
            try:
                async with aclosing(choice.deltas()) as deltas:
                    async for delta in deltas:
                        await queue.put((choice, delta))
            except Exception as error:  # noqa: BLE001 - raised again in the reader's task below
                await queue.put(error)
            else:
                await queue.put(None)

        tasks = [asyncio.create_task(read(choice)) for choice in self.choices]
        try:
            open_choices = len(tasks)
            while open_choices:
                item = await queue.get()
                if isinstance(item, Exception):
                    raise item
                if item is None:
                    open_choices -= 1
                else:
                    yield item
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def off_loop(state: ServerState, function: Callable[[], T]) -> T:
    """Run tokenization or a template where it does not stop the event loop."""
    return await asyncio.get_running_loop().run_in_executor(state.executor, function)


def check_prompts(
    prompts: Sequence[list[int]], *, max_tokens: int | None, max_context: int, vocab_size: int, param: str
) -> None:
    """Refuse what the engine would refuse, while the client can still be told with a 400."""
    for prompt in prompts:
        if not prompt:
            raise InvalidRequestError("The prompt is empty; it needs at least one token.", param=param)
        if min(prompt) < 0 or max(prompt) >= vocab_size:
            raise InvalidRequestError(
                f"The prompt has token ids outside of 0 to {vocab_size - 1}.", param=param, code="invalid_value"
            )
        wanted = max_tokens or 1
        if len(prompt) + wanted > max_context:
            of_answer = f"{wanted} for the answer" if max_tokens else "at least 1 for the answer"
            raise ContextLengthError(
                f"This model's maximum context length is {max_context} tokens. However, you requested "
                f"{len(prompt) + wanted} tokens ({len(prompt)} in the {param}, {of_answer}). "
                f"Please reduce the length of the {param} or of the answer.",
                param=param,
            )


def cache_salt(tenant: str, user_id: str | None) -> str:
    """Prefix-cache tenant: the API key's, divided further by DeepSeek's ``user_id``."""
    return f"{tenant}:{user_id}" if user_id else tenant
