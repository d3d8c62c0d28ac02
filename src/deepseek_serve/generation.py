"""From a validated request to the deltas of its choices; the same for chat and text, streamed or not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from contextlib import aclosing
from typing import TypeVar

import msgspec

from deepseek.engine.events import EngineInfo, FinishReason, GenerateRequest, TokenEvent
from deepseek.engine.validation import check_attention, context_reason
from deepseek.errors import ContextLengthError, InvalidRequestError
from deepseek.runtime.client import error_of
from deepseek.runtime.output import OutputAssembler, TextDelta
from deepseek.sampling import SamplingParams
from deepseek_serve.entry import Entry
from deepseek_serve.errors import api_error
from deepseek_serve.metrics import ModelMetrics
from deepseek_serve.models import ServedModel
from deepseek_serve.observability.record import RequestRecord
from deepseek_serve.parsing.answer import AnswerParser, plain_parser
from deepseek_serve.protocol.common import GenerationRequest, seed_of_choice
from deepseek_serve.protocol.responses import CompletionTokensDetails, PromptTokensDetails, Usage
from deepseek_serve.state import ServerState
from deepseek_serve.store.usage import Outcome, Tokens

T = TypeVar("T")
MERGE_BUFFER = 64  # deltas of all choices that wait for a slow reader before the readers of the engine wait too


class Choice:
    """One answer in the making: one request to the engine.

    Attributes:
        index: place in the response's ``choices``.
        prompt: token ids.
        completion_tokens: tokens so far, an end token included.
        cached_tokens: prompt tokens found in the prefix cache.
        reasoning_tokens: those of ``completion_tokens`` that the model thinks with; whoever reads the deltas counts.
        finish_reason: None before the end.
    """

    def __init__(
        self,
        metrics: ModelMetrics,
        model: ServedModel,
        request: GenerateRequest,
        index: int,
        record: RequestRecord,
        *,
        continues_text: bool,
        shown: Collection[str],
    ) -> None:
        self._metrics = metrics
        self._shown = shown
        self._record = record
        self._model = model
        self._request = request
        self._continues_text = continues_text
        self.index = index
        self.prompt = request.prompt
        self.completion_tokens = self.reasoning_tokens = 0
        self.cached_tokens = 0
        self.finish_reason: FinishReason | None = None

    async def deltas(self) -> AsyncGenerator[TextDelta, None]:
        """Text as it comes; the last delta has a ``finish_reason``. Raises what the engine failed with.

        Closing it early, as at a stop string, cancels the request in the engine.
        """
        tokenizer = self._model.tokenizer
        assert tokenizer is not None, "the prompt could not have been encoded"
        assembler = OutputAssembler(
            tokenizer, self._request.params, continues_text=self._continues_text, shown=self._shown
        )
        observe = self._metrics.between_tokens.observe if self._record.live else _unseen
        submitted = before = time.monotonic()
        self._record.submitted = self._record.submitted or submitted
        async with aclosing(self._model.generate(self._request)) as events:
            async for event in events:
                if event.finish_reason in ("error", "cancelled"):
                    raise error_of(event)
                now = time.monotonic()
                if self.completion_tokens:
                    observe(now - before)
                else:
                    self._begun(event, submitted, now)
                before = now
                self.completion_tokens += 1
                self.cached_tokens += event.cached_tokens
                delta = assembler.push(event)
                if delta.finish_reason is not None:
                    self.finish_reason = delta.finish_reason
                    self._record.last_token = now
                yield delta
                if delta.finish_reason is not None:
                    return

    def _begun(self, event: TokenEvent, submitted: float, now: float) -> None:
        """Note when the first token came, and when the engine began to work on it."""
        record = self._record
        record.first_token = record.first_token or now
        if event.scheduled_at:
            scheduled = min(max(event.scheduled_at, submitted), now)
            record.scheduled = record.scheduled or scheduled
        if record.live:
            self._metrics.first_token.observe(now - record.started)
            if event.scheduled_at:
                self._metrics.queue.observe(scheduled - submitted)


class Job:
    """All choices of one HTTP request, choices of one prompt side by side.

    Args:
        model: who answers.
        name: the response's id, from which the engine's request ids are made.
        prompts: token ids per prompt.
        params: as the client asked; every choice gets ``n`` 1 and its own seed.
        entry: on whose account; it hears of first tokens and of the end.
        continues_text: the answers go on the prompt's last words.
        shown: spellings of special tokens that are part of the answers' text.
        attention, attention_error: as in :class:`deepseek.engine.events.GenerateRequest`.
        parser: makes the reader of one answer of a chat.
    """

    def __init__(
        self,
        state: ServerState,
        model: ServedModel,
        name: str,
        prompts: Sequence[list[int]],
        params: SamplingParams,
        *,
        entry: Entry,
        continues_text: bool,
        shown: Collection[str] = (),
        attention: str | None = None,
        attention_error: float | None = None,
        parser: Callable[[], AnswerParser] = plain_parser,
    ) -> None:
        self.parser = parser
        self._state = state
        self._metrics = state.metrics.of(model)
        self._entry = entry
        self.name = name
        self.fingerprint = model.fingerprint
        self._real_name = model.real_name
        self.created = int(time.time())
        self.params = params
        self.service_tier = entry.service_tier
        self.choices: list[Choice] = []
        for prompt in prompts:
            for i in range(params.n):
                single = msgspec.structs.replace(params, n=1, seed=seed_of_choice(params, i))
                index = len(self.choices)
                request = GenerateRequest(
                    f"{name}-{index}",
                    prompt,
                    single,
                    cache_salt=entry.cache_salt,
                    priority=entry.priority,
                    tenant=entry.tenant,
                    weight=entry.weight,
                    attention=attention,
                    attention_error=attention_error,
                )
                self.choices.append(
                    Choice(
                        self._metrics, model, request, index, entry.record, continues_text=continues_text, shown=shown
                    )
                )
        _describe(entry.record, self, model)

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
            completion_tokens_details=CompletionTokensDetails(sum(choice.reasoning_tokens for choice in self.choices)),
            prompt_cache_hit_tokens=cached,
            prompt_cache_miss_tokens=prompt - cached,
        )

    def count(self, outcome: Outcome) -> None:
        """Enter the tokens into metrics and usage; called once, when the job is over, however it ended.

        A prompt counts if it was computed: at least one of its choices has begun to answer.
        """
        n, usage = self.params.n, self.usage()
        groups = [self.choices[i : i + n] for i in range(0, len(self.choices), n)]
        prompt = sum(len(group[0].prompt) for group in groups if any(choice.completion_tokens for choice in group))
        reasoning = usage.completion_tokens_details.reasoning_tokens
        tokens = Tokens(prompt, usage.prompt_cache_hit_tokens, usage.completion_tokens, reasoning)
        self._observe(tokens, outcome)
        self._state.store.usage.add(self._entry.account, self._real_name, tokens, outcome)
        self._entry.ended(tokens.prompt_tokens + tokens.completion_tokens)

    def _observe(self, tokens: Tokens, outcome: Outcome) -> None:
        metrics, record = self._metrics, self._entry.record
        metrics.prompt_tokens.inc(tokens.prompt_tokens)
        metrics.cached_tokens.inc(tokens.cached_tokens)
        metrics.generation_tokens.inc(tokens.completion_tokens)
        record.prompt_tokens, record.cached_tokens = tokens.prompt_tokens, tokens.cached_tokens
        record.completion_tokens = tokens.completion_tokens
        record.cancelled = outcome == "cancelled"
        for choice in self.choices:
            reason = choice.finish_reason or ("error" if outcome == "failed" else "cancelled")
            record.finish_reasons.append(reason)
            metrics.answers[reason].inc()
        if outcome == "finished" and record.live:
            metrics.whole.observe(time.monotonic() - record.started)

    async def deltas(self) -> AsyncGenerator[tuple[Choice, TextDelta], None]:
        """The deltas of all choices as they come. The first failure ends them all."""
        outcome: Outcome = "cancelled"  # what closes this generator from outside is no Exception
        try:
            if len(self.choices) == 1:
                choice = self.choices[0]
                async with aclosing(choice.deltas()) as deltas:
                    async for delta in deltas:
                        self._entry.begun(0)
                        yield choice, delta
            else:
                async with aclosing(self._merged()) as pairs:
                    async for choice, delta in pairs:
                        self._entry.begun(choice.index // self.params.n)
                        yield choice, delta
            outcome = "finished"
        except Exception as error:
            outcome = "failed"
            self._entry.record.error_code = api_error(error).body.code
            raise
        finally:
            self.count(outcome)

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


def _describe(record: RequestRecord, job: Job, model: ServedModel) -> None:
    """Enter what is asked for."""
    record.model, record.response_id, record.choices = model.name, job.name, len(job.choices)
    asked = {name: getattr(job.params, name) for name in ("max_tokens", "temperature", "top_p", "top_k", "seed")}
    record.sampling = {name: value for name, value in asked.items() if value is not None}


def _unseen(seconds: float) -> None:
    """Times of batches' lines are not observed."""


async def off_loop(state: ServerState, function: Callable[[], T]) -> T:
    """Run tokenization or a template where it does not stop the event loop."""
    return await asyncio.get_running_loop().run_in_executor(state.executor, function)


async def check_constraint(state: ServerState, body: GenerationRequest, params: SamplingParams) -> None:
    """Refuse a form of the answer that no engine could keep to, while the client can still be told with a 400."""
    constraint = params.constraint
    if constraint is None:
        return
    try:
        await asyncio.get_running_loop().run_in_executor(state.checks, state.checker.check, constraint)
    except InvalidRequestError as error:
        field = "structured_outputs" if body.structured_outputs is not None else "response_format"
        raise InvalidRequestError(str(error), param=field, code=error.code) from error


def check_reading(body: GenerationRequest, info: EngineInfo) -> None:
    """Refuse an attention that the engine does not have. Raises :class:`InvalidRequestError`."""
    check_attention(body.attention, body.attention_error, sparse=info.sparse)


def check_prompts(prompts: Sequence[list[int]], info: EngineInfo, *, max_tokens: int | None, param: str) -> None:
    """Refuse what the engine would refuse, while the client can still be told with a 400."""
    max_context, vocab_size = info.max_context, info.vocab_size
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
                f"Please reduce the length of the {param} or of the answer. "
                f"{context_reason(info.context_limit)}",
                param=param,
            )
