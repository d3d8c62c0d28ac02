"""The engine of an encoder: texts in, vectors out, texts of like length in one forward. No cache, no answers."""

from __future__ import annotations

import time
from typing import Protocol

import torch
from torch import Tensor

from deepseek.engine.events import (
    AdapterInfo,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineRequest,
    EngineStats,
    TokenEvent,
)
from deepseek.engine.pooling import Pooler
from deepseek.engine.validation import check_embed, check_urgency
from deepseek.errors import InvalidRequestError, UnknownAdapterError

_NOT_FINITE = (
    "the model produced NaN or infinite values for this text. The weights may be damaged or overflow in this dtype: "
    "try --dtype fp32."
)


class Encoder(Protocol):
    """What this engine needs of a model; see :class:`deepseek.models.bert.Bert`."""

    @property
    def vocab_size(self) -> int: ...
    @property
    def hidden_size(self) -> int: ...
    def encode(self, texts: list[list[int]]) -> list[Tensor]: ...


class EncoderEngine:
    """Serves embedding requests as :class:`deepseek.engine.engine.Engine` serves all: the same worker process, client
    and supervision stand around it.

    A step takes a text of the highest priority, and with it those waiting texts of that priority whose length is
    nearest, as many as fit: little is computed for padding. Tenants take turns in choosing the text, their oldest, so
    that none waits for another one's thousands.

    Args:
        model: the encoder.
        max_context: tokens of the longest text.
        max_running: texts in one step.
        max_batch_tokens: tokens in one step, padding included; a longer text has a step to itself.
    """

    def __init__(self, model: Encoder, *, max_context: int, max_running: int, max_batch_tokens: int) -> None:
        self.max_context = max_context
        self._model = model
        self._max_running = max_running
        self._max_batch_tokens = max_batch_tokens
        self._waiting: dict[str, EmbedRequest] = {}
        self._pending: list[EngineEvent] = []
        self._turns: dict[str, int] = {}  # of tenants with waiting texts: the step in which they chose last
        self._steps = self._prompt_tokens = self._finished = self._cancelled = self._failed = 0

    @property
    def has_work(self) -> bool:
        return bool(self._waiting or self._pending)

    def add(self, request: EngineRequest) -> None:
        """Queue a text. Raises InvalidRequestError, for whatever is no :class:`EmbedRequest` too, and
        ContextLengthError."""
        if not isinstance(request, EmbedRequest):
            raise InvalidRequestError("this model makes embeddings and cannot generate or score text.", param="model")
        if request.request_id in self._waiting:
            raise InvalidRequestError(f"request id {request.request_id!r} is already in use.", param="request_id")
        model = self._model
        check_embed(
            request,
            vocab_size=model.vocab_size,
            max_context=self.max_context,
            hidden_size=model.hidden_size,
            reason="Split the text, or choose a model with a longer context.",
        )
        check_urgency(request.priority, request.weight)
        self._waiting[request.request_id] = request

    def cancel(self, request_id: str) -> None:
        """Forget a text; the next step reports it as cancelled. Unknown ids are ignored."""
        if self._waiting.pop(request_id, None) is not None:
            self._cancelled += 1
            self._pending.append(TokenEvent(request_id, finish_reason="cancelled"))

    def step(self) -> list[EngineEvent]:
        """Embed one batch, and return what happened since the last step."""
        events, self._pending = self._pending, []
        batch = self._next_batch()
        if not batch:
            return events
        scheduled = time.monotonic()
        with torch.inference_mode():
            states = self._model.encode([request.tokens for request in batch])
            for request, rows in zip(batch, states, strict=True):
                events.append(self._result(request, rows, scheduled))
        self._steps += 1
        return events

    def load_adapter(self, name: str, folder: str) -> AdapterInfo:
        """Raises InvalidRequestError."""
        raise InvalidRequestError("this model is an encoder, and takes no adapters.", param="model")

    def unload_adapter(self, name: str) -> None:
        """Raises UnknownAdapterError."""
        raise UnknownAdapterError(name, ())

    def stats(self) -> EngineStats:
        """Queue and counters; there are no pages."""
        return EngineStats(
            waiting=len(self._waiting),
            running=0,
            pages_total=0,
            pages_free=0,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=0,
            generated_tokens=0,
            preemptions=0,
            finished=self._finished,
            cancelled=self._cancelled,
            failed=self._failed,
        )

    def _next_batch(self) -> list[EmbedRequest]:
        """Taken out of those that wait."""
        if not self._waiting:
            return []
        priority = max(request.priority for request in self._waiting.values())
        peers = [request for request in self._waiting.values() if request.priority == priority]
        first = min(peers, key=lambda request: self._turns.get(request.tenant, -1))
        peers.sort(key=lambda request: (request is not first, abs(len(request.tokens) - len(first.tokens))))
        batch: list[EmbedRequest] = []
        longest = 0
        for request in peers[: self._max_running]:
            longest = max(longest, len(request.tokens))
            if batch and longest * (len(batch) + 1) > self._max_batch_tokens:
                break
            batch.append(request)
        for request in batch:
            del self._waiting[request.request_id]
        self._turns[first.tenant] = self._steps
        tenants = {request.tenant for request in self._waiting.values()}
        self._turns = {tenant: step for tenant, step in self._turns.items() if tenant in tenants}
        return batch

    def _result(self, request: EmbedRequest, states: Tensor, scheduled: float) -> EngineEvent:
        pooler = Pooler.of(request)
        length = len(request.tokens)
        positions = pooler.positions(0, length, length)
        pooler.add(states[positions.start : positions.stop])
        vector = pooler.vector()
        if vector is None:
            self._failed += 1
            return TokenEvent(request.request_id, finish_reason="error", error=_NOT_FINITE)
        self._finished += 1
        self._prompt_tokens += length
        return EmbedEvent(request.request_id, vector, scheduled_at=scheduled)
