"""From tokenized texts to their vectors, with everything that is counted on the way."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Sequence

from deepseek.engine.events import EmbeddingInfo, EmbedEvent, EmbedRequest
from deepseek_serve.entry import Entry
from deepseek_serve.errors import api_error
from deepseek_serve.models import ServedModel
from deepseek_serve.state import ServerState
from deepseek_serve.store.usage import Outcome, Tokens

IN_FLIGHT = 256  # texts of a request that the engine has at a time: enough to fill its steps


class EmbeddingJob:
    """All texts of one request.

    Args:
        model: who embeds.
        made: how its vectors are made.
        texts: token ids of each text.
        dimensions: of the vectors, None for all.
        entry: on whose account; it hears of texts that are done and of the end.
    """

    def __init__(
        self,
        state: ServerState,
        model: ServedModel,
        made: EmbeddingInfo,
        texts: Sequence[list[int]],
        dimensions: int | None,
        *,
        entry: Entry,
    ) -> None:
        self._state = state
        self._model = model
        self._made = made
        self._texts = texts
        self._dimensions = dimensions
        self._entry = entry
        self._name = f"embd-{uuid.uuid4().hex}"
        self._done: dict[int, EmbedEvent] = {}
        entry.record.model, entry.record.response_id = model.name, self._name

    @property
    def prompt_tokens(self) -> int:
        """Of all texts."""
        return sum(map(len, self._texts))

    async def vectors(self) -> list[bytes]:
        """The vector of each text, as the engine gives it. The first failure ends the others, and is raised."""
        outcome: Outcome = "cancelled"  # a task that is cancelled raises no Exception
        try:
            await self._embed_all()
            outcome = "finished"
        except Exception as error:
            outcome = "failed"
            self._entry.record.error_code = api_error(error).body.code
            raise
        finally:
            self._count(outcome)
        return [self._done[index].vector for index in range(len(self._texts))]

    async def _embed_all(self) -> None:
        self._entry.record.submitted = time.monotonic()
        indices = iter(range(len(self._texts)))

        async def work() -> None:
            for index in indices:  # shared: each text is taken by one worker
                event = await self._model.embed(self._request(index))
                self._entry.record.scheduled = self._entry.record.scheduled or event.scheduled_at
                self._entry.begun(index)
                self._done[index] = event

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(IN_FLIGHT, len(self._texts))):
                    group.create_task(work())
        except ExceptionGroup as errors:
            raise errors.exceptions[0] from None

    def _request(self, index: int) -> EmbedRequest:
        entry = self._entry
        return EmbedRequest(
            f"{self._name}-{index}",
            self._texts[index],
            self._made.pooling,
            self._made.normalize,
            self._dimensions,
            cache_salt=entry.cache_salt,
            priority=entry.priority,
            tenant=entry.tenant,
            weight=entry.weight,
        )

    def _count(self, outcome: Outcome) -> None:
        """Enter the tokens into metrics and usage; called once, however it ended. A text counts if its vector came."""
        prompt = sum(len(self._texts[index]) for index in self._done)
        cached = sum(event.cached_tokens for event in self._done.values())
        metrics, record = self._state.metrics.of(self._model), self._entry.record
        metrics.prompt_tokens.inc(prompt)
        metrics.cached_tokens.inc(cached)
        record.prompt_tokens, record.cached_tokens = prompt, cached
        record.cancelled = outcome == "cancelled"
        if outcome == "finished" and record.live:
            metrics.whole.observe(time.monotonic() - record.started)
        tokens = Tokens(prompt, cached, 0, 0)
        self._state.store.usage.add(self._entry.account, self._model.real_name, tokens, outcome)
        self._entry.ended(prompt)
