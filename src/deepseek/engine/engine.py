"""One engine: requests in, one forward of the mixed batch per step, events out. Single-threaded; no I/O."""

from __future__ import annotations

import secrets
from concurrent.futures import FIRST_COMPLETED, Future, wait

import torch
from torch import Tensor

from deepseek.attention.plan import SparsePlan
from deepseek.attention.policy import DEFAULT_ERROR, QUESTION_TOKENS, policy_of
from deepseek.config import MAX_ADAPTERS
from deepseek.engine.adapters import Adapters, ServedAdapter
from deepseek.engine.batch import StepBatch, build_batch
from deepseek.engine.block_pool import BlockPool
from deepseek.engine.constraints import ConstraintError, Constraints, Matcher
from deepseek.engine.events import (
    INVALID_CONSTRAINT,
    AdapterInfo,
    ContextLimit,
    EmbedEvent,
    EmbedRequest,
    EngineEvent,
    EngineRequest,
    EngineStats,
    FinishReason,
    ScoreEvent,
    ScoreRequest,
    TokenEvent,
    TokenLogprobs,
)
from deepseek.engine.request import Sequence
from deepseek.engine.sampler import logprobs_of, sample, scores_of
from deepseek.engine.scheduler import Chunk, Scheduler
from deepseek.engine.speculation import Speculation
from deepseek.engine.spill import Spill
from deepseek.engine.validation import check_request
from deepseek.errors import InvalidRequestError
from deepseek.kernels.sampling import finite_rows
from deepseek.models.base import Model, SpillSpace

_COMPILE_WAIT = 0.005  # seconds
MOST_RECOMPUTED = 3
"""Times that a request is started anew because the spill file was corrupt."""
_CORRUPT = (
    f"the spill file damaged the keys and values of this request {MOST_RECOMPUTED + 1} times. The disk may be failing: "
    "start the server with another kv_spill_dir, or without kv_spill_bytes."
)
_NOT_FINITE = (
    "the model produced NaN or infinite logits for this request, so no token can be chosen. "
    "The weights may be damaged or overflow in this dtype: try --dtype fp32."
)


class Engine:
    """Continuous batching over one model.

    Args:
        model: any :class:`deepseek.models.base.Model`.
        num_pages: pages of KV cache.
        page_size: tokens per page.
        spill: where pages lie that are not in memory; None if all are.
        max_context: tokens per request, prompt and answer; at most what the pages hold.
        context_limit: why ``max_context`` is no larger.
        max_running: sequences in one step.
        max_batch_tokens: rows in one step.
        end_ids: token ids that end an answer.
        prefix_cache: reuse the pages of equal prompt beginnings.
        seed: seeds requests that bring none; None draws a seed for each.
        speculation: guesses tokens to be verified in the same step; None guesses none. Answers do not depend on it.
        constraints: compiles the constraints of requests; None refuses requests that bring one.
        attention, attention_error, question_tokens: of requests that do not say, as in
            :class:`deepseek.config.EngineConfig`. A model without sparse attention is dense.
        on_gpu: the model runs on one, where ``auto`` is dense in longer contexts.
        max_adapters: adapters that may be loaded.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_pages: int,
        page_size: int,
        spill: SpillSpace | None = None,
        max_context: int,
        max_running: int,
        max_batch_tokens: int,
        end_ids: frozenset[int],
        prefix_cache: bool = True,
        seed: int | None = None,
        speculation: Speculation | None = None,
        constraints: Constraints | None = None,
        context_limit: ContextLimit = "model",
        attention: str = "auto",
        attention_error: float = DEFAULT_ERROR,
        question_tokens: int = QUESTION_TOKENS,
        on_gpu: bool = False,
        max_adapters: int = MAX_ADAPTERS,
    ) -> None:
        self.model = model
        self.page_size = page_size
        self.max_context = min(max_context, num_pages * page_size)
        self.context_limit: ContextLimit = "kv_cache" if self.max_context < max_context else context_limit
        self._attention = (attention, attention_error, question_tokens)
        self._on_gpu = on_gpu
        self.end_ids = end_ids
        self.cache = model.new_cache(num_pages, page_size, spill)
        self.pool = BlockPool(num_pages, resident=spill.resident if spill else None, prefix_cache=prefix_cache)
        self._spill = Spill(self.cache, self.pool, page_size) if spill else None
        self.scheduler = Scheduler(
            self.pool,
            page_size=page_size,
            max_running=max_running,
            max_batch_tokens=max_batch_tokens,
            intact=self._spill.intact if self._spill else None,
            given=self._given,
        )
        self.adapters = Adapters(model, limit=max_adapters, max_tokens=self.max_context, prefixes=self._spill is None)
        self._seed = seed
        self._speculation = speculation
        self._constraints = constraints
        self._preparing: dict[Sequence, Future[Matcher]] = {}
        self._max_batch_tokens = max_batch_tokens
        self._drafted_tokens = self._accepted_tokens = 0
        self._live: dict[str, Sequence] = {}
        self._pending: list[EngineEvent] = []
        self._steps = self._prompt_tokens = self._cached_prompt_tokens = self._generated_tokens = 0
        self._finished = self._cancelled = self._failed = 0

    @property
    def has_work(self) -> bool:
        """True while :meth:`step` has something to do or to report."""
        return bool(self._live or self._pending)

    def add(self, request: EngineRequest) -> None:
        """Queue a request.

        Raises:
            InvalidRequestError: an id in use, a token id outside of the vocabulary, an empty prompt, no such adapter.
            ContextLengthError: the prompt leaves no room for one token of answer.
        """
        name = None if isinstance(request, EmbedRequest) else request.adapter
        adapter = None if name is None else self.adapters.acquire(name)
        try:
            self._check(request, adapter)
        except InvalidRequestError:
            if adapter is not None:
                self.adapters.release(adapter)
            raise
        seed = secrets.randbits(63) if self._seed is None else self._seed
        sequence = Sequence.of(
            request,
            end_ids=self.end_ids,
            seed=seed,
            max_context=self.max_context,
            isolate_seeds=not self.model.row_invariant,
            sparse=self._sparse_plan(request, adapter),
            adapter=adapter,
        )
        self._live[request.request_id] = sequence
        if sequence.params is not None and sequence.params.constraint is not None:
            assert self._constraints is not None
            self._preparing[sequence] = self._constraints.matcher(sequence.params.constraint)
        else:
            self.scheduler.add(sequence)

    def cancel(self, request_id: str) -> None:
        """End a request; the next step reports it as cancelled. Unknown ids are ignored: it may just have ended."""
        sequence = self._live.get(request_id)
        if sequence is not None:
            self._pending.append(self._end(sequence, "cancelled"))

    def step(self) -> list[EngineEvent]:
        """Compute one mixed batch, and one isolated sequence if there are any, and return what happened,
        cancellations since the last step included."""
        if self._preparing:
            self._take_prepared()
        events, self._pending = self._pending, []
        if self._spill is not None and (corrupt := self._spill.check_next()) is not None:
            for sequence in self.scheduler.recompute(corrupt):
                if sequence.recomputed > MOST_RECOMPUTED:
                    events.append(self._end(sequence, "error", _CORRUPT))
        chunks = self.scheduler.schedule()
        isolated = [chunk for chunk in chunks if chunk.sequence.isolated]
        mixed = self._with_drafts([chunk for chunk in chunks if not chunk.sequence.isolated])
        if self._spill is not None:
            self._spill.place([*mixed, *isolated], self.scheduler.running)
        for group in (mixed, isolated):
            if group:
                step = build_batch(group, self.page_size, self.model)
                with torch.inference_mode():
                    if step.hidden_rows is None:
                        logits = self.model.forward(step.batch, self.cache)
                    else:
                        logits, hidden = self.model.forward_with_hidden(step.batch, step.hidden_rows, self.cache)
                        events += self._embedded(step, hidden)
                    events += self._results(step, logits)
        self._steps += bool(chunks)
        return events

    def stats(self) -> EngineStats:
        """A snapshot of queue, pages and counters."""
        return EngineStats(
            waiting=len(self.scheduler.waiting) + len(self._preparing),
            running=len(self.scheduler.running),
            pages_total=self.pool.num_pages,
            pages_free=self.pool.num_free,
            steps=self._steps,
            prompt_tokens=self._prompt_tokens,
            cached_prompt_tokens=self._cached_prompt_tokens,
            generated_tokens=self._generated_tokens,
            preemptions=self.scheduler.preemptions,
            finished=self._finished,
            cancelled=self._cancelled,
            failed=self._failed,
            drafted_tokens=self._drafted_tokens,
            accepted_tokens=self._accepted_tokens,
            kv_spill_pages=self._spill.pages if self._spill else 0,
            kv_spill_moved=self._spill.moved if self._spill else 0,
            kv_spill_checked=self._spill.checked if self._spill else 0,
            kv_spill_corrupt=self._spill.corrupt if self._spill else 0,
            attention=self.model.attention_stats(),
            adapters=len(self.adapters),
            adapter_bytes=self.adapters.bytes,
        )

    def load_adapter(self, name: str, folder: str) -> AdapterInfo:
        """See :meth:`deepseek.engine.adapters.Adapters.load`."""
        return self.adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """See :meth:`deepseek.engine.adapters.Adapters.unload`."""
        self.adapters.unload(name)

    def _given(self, sequence: Sequence) -> int:
        """Put the keys and values that a sequence's adapter gives into its pages; returns the tokens that are there."""
        if sequence.adapter is None:
            return sequence.computed
        return self.adapters.write_prefix(
            self.cache, sequence.adapter, sequence.pages, self.page_size, sequence.computed
        )

    def _sparse_plan(self, request: EngineRequest, adapter: ServedAdapter | None) -> SparsePlan | None:
        """Which tokens of a request are attended to sparsely; None if all are dense. Keys that are given, not computed,
        have no index."""
        given = adapter is not None and adapter.adapter.prefix is not None
        if isinstance(request, EmbedRequest) or not self.model.sparse or given:
            return None
        before = 0 if adapter is None else adapter.adapter.length
        mode, error, question_tokens = self._attention
        mode = mode if request.attention is None else request.attention
        error = error if request.attention_error is None else request.attention_error
        if isinstance(request, ScoreRequest):
            policy, length = policy_of(mode, error, 0, on_gpu=self._on_gpu), before + len(request.tokens) - 1
        else:
            asked = request.question_tokens
            asked = question_tokens if asked is None else asked
            policy = policy_of(mode, error, asked, on_gpu=self._on_gpu)
            length = before + len(request.prompt)
        return None if policy is None else SparsePlan.of(policy, length, self.page_size)

    def _check(self, request: EngineRequest, adapter: ServedAdapter | None) -> None:
        if request.request_id in self._live:
            raise InvalidRequestError(f"request id {request.request_id!r} is already in use.", param="request_id")
        check_request(
            request,
            vocab_size=self.model.vocab_size,
            max_context=self.max_context,
            context_limit=self.context_limit,
            hidden_size=self.model.hidden_size,
            constraints=self._constraints is not None,
            sparse=self.model.sparse,
            before=0 if adapter is None else adapter.adapter.length,
        )

    def _take_prepared(self) -> None:
        """Queue the sequences whose constraints are compiled, and refuse those whose are not to be had. An idle engine
        waits a moment for the next one."""
        if not (self._pending or self.scheduler.running or self.scheduler.waiting):
            wait(self._preparing.values(), _COMPILE_WAIT, FIRST_COMPLETED)
        for sequence, future in [(s, f) for s, f in self._preparing.items() if f.done()]:
            try:
                sequence.matcher = future.result()
            except InvalidRequestError as error:
                self._pending.append(self._end(sequence, "error", str(error), INVALID_CONSTRAINT))
                continue
            del self._preparing[sequence]
            self.scheduler.add(sequence)

    def _with_drafts(self, chunks: list[Chunk]) -> list[Chunk]:
        """The chunks of the mixed batch, with drafts to verify where that pays. Isolated sequences get none: the shapes
        of their forwards are fixed."""
        if self._speculation is None or not chunks:
            return chunks
        drafts = self._speculation.draft(chunks, self._max_batch_tokens)
        for sequence, draft in drafts.items():
            if sequence.matcher is not None:
                del draft[sequence.matcher.acceptable(draft) :]
        return [
            self.scheduler.with_draft(chunk, drafts[chunk.sequence]) if chunk.sequence in drafts else chunk
            for chunk in chunks
        ]

    def _results(self, step: StepBatch, logits: Tensor) -> list[EngineEvent]:
        for chunk in step.silent:
            self.scheduler.completed(chunk)
        events: list[EngineEvent] = []
        if step.scored:
            count = sum(1 + len(chunk.draft) for chunk in step.sampled)
            events += self._scored(step, logits[count:])
            logits = logits[:count]
        if not step.sampled:
            return events
        tokens, logprobs = _choose(self.model, step.sampled, logits)
        row = 0
        for chunk in step.sampled:
            end = row + 1 + len(chunk.draft)
            events += self._verified(chunk, tokens[row:end], logprobs[row:end])
            row = end
        return events

    def _verified(
        self, chunk: Chunk, tokens: list[int | None], logprobs: list[TokenLogprobs | None]
    ) -> list[EngineEvent]:
        """Append the token sampled behind the known ones, and one more for each token of the draft that equals what was
        sampled in its place. None is a row whose logits were not finite."""
        sequence = chunk.sequence
        events: list[EngineEvent] = []
        for accepted, token in enumerate(tokens):
            if token is None:
                return [*events, self._end(sequence, "error", _NOT_FINITE)]
            if (problem := _follow(sequence, token)) is not None:
                return [*events, self._end(sequence, "error", problem, INVALID_CONSTRAINT)]
            event = self._advance(sequence, token, logprobs[accepted])
            events.append(event)
            if event.finish_reason or (token,) != chunk.draft[accepted : accepted + 1]:
                break
        self.scheduler.completed(chunk, accepted)
        if self._speculation is not None and chunk.draft:
            self._speculation.verified(sequence, len(chunk.draft), accepted)
            self._drafted_tokens += len(chunk.draft)
            self._accepted_tokens += accepted
        if event.finish_reason:
            self._finished += 1
            self._remove(sequence)
        return events

    def _scored(self, step: StepBatch, logits: Tensor) -> list[EngineEvent]:
        finite = finite_rows(logits)
        events: list[EngineEvent] = []
        row = 0
        for chunk, first, count in step.scored:
            sequence = chunk.sequence
            if all(finite[row : row + count]):
                self.scheduler.completed(chunk)
                sequence.scores += scores_of(logits[row : row + count], sequence.tokens[first : first + count])
                if not sequence.remaining:
                    events.append(self._end_scored(sequence))
            else:
                events.append(self._end(sequence, "error", _NOT_FINITE))
            row += count
        return events

    def _embedded(self, step: StepBatch, hidden: Tensor) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        row = 0
        for chunk, count in step.embedded:
            sequence = chunk.sequence
            assert sequence.pooler is not None
            self.scheduler.completed(chunk)
            sequence.pooler.add(hidden[row : row + count])
            row += count
            if not sequence.remaining:
                vector = sequence.pooler.vector()
                if vector is None:
                    events.append(self._end(sequence, "error", _NOT_FINITE))
                else:
                    events.append(self._end_embedded(sequence, vector))
        return events

    def _advance(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> TokenEvent:
        """Append a sampled token and report it, as the last one if the answer ends with it."""
        first = not sequence.answer_length
        cached = sequence.cached_tokens or 0
        if first:
            self._prompt_tokens += sequence.prompt_length - sequence.before
            self._cached_prompt_tokens += cached
        sequence.append(token)
        self._generated_tokens += 1
        stop = token in sequence.stop_ids
        ends = stop or (sequence.matcher is not None and sequence.matcher.finished)
        reason: FinishReason | None = (
            "stop" if ends else "length" if len(sequence.tokens) >= sequence.max_length else None
        )
        return TokenEvent(
            sequence.request_id,
            token_id=token,
            stop_token=stop,
            logprobs=logprobs,
            cached_tokens=cached if first else 0,
            finish_reason=reason,
            scheduled_at=sequence.scheduled_at if first else 0.0,
        )

    def _end_embedded(self, sequence: Sequence, vector: bytes) -> EmbedEvent:
        self._end_computed(sequence)
        return EmbedEvent(sequence.request_id, vector, sequence.cached_tokens or 0, sequence.scheduled_at)

    def _end_computed(self, sequence: Sequence) -> None:
        """Take a sequence out whose result is there without a token of answer."""
        self._finished += 1
        self._prompt_tokens += sequence.prompt_length - sequence.before
        self._cached_prompt_tokens += sequence.cached_tokens or 0
        self._remove(sequence)

    def _end_scored(self, sequence: Sequence) -> ScoreEvent:
        self._end_computed(sequence)
        logprobs, greedy = zip(*sequence.scores, strict=True)
        return ScoreEvent(sequence.request_id, list(logprobs), list(greedy))

    def _end(
        self, sequence: Sequence, reason: FinishReason, error: str | None = None, code: str | None = None
    ) -> TokenEvent:
        """Take a sequence out before its natural end."""
        if reason == "cancelled":
            self._cancelled += 1
        else:
            self._failed += 1
        self._remove(sequence)
        return TokenEvent(sequence.request_id, finish_reason=reason, error=error, error_code=code)

    def _remove(self, sequence: Sequence) -> None:
        preparing = self._preparing.pop(sequence, None)
        if preparing is not None:
            preparing.cancel()
        else:
            self.scheduler.remove(sequence)
        if self._speculation is not None:
            self._speculation.forget(sequence)
        if sequence.adapter is not None:
            self.adapters.release(sequence.adapter)
        del self._live[sequence.request_id]


def _follow(sequence: Sequence, token: int) -> str | None:
    """Take a constrained sequence's matcher behind the next token; returns what is wrong if that fails."""
    if sequence.matcher is None:
        return None
    try:
        sequence.matcher.check()
        if token not in sequence.stop_ids:
            sequence.matcher.accept(token)
    except ConstraintError as error:
        return str(error)
    return None


def _choose(model: Model, chunks: list[Chunk], logits: Tensor) -> tuple[list[int | None], list[TokenLogprobs | None]]:
    """Token and log-probabilities for each row of ``logits`` [R, vocab]: one row behind each chunk's known tokens, and
    one behind each token of its draft. None where a row is not finite, or log-probabilities were not asked for."""
    owners = [chunk.sequence for chunk in chunks for _ in range(1 + len(chunk.draft))]
    ahead = [chunk.draft[:length] for chunk in chunks for length in range(1 + len(chunk.draft))]
    wanted = [row for row, sequence in enumerate(owners) if _top_wanted(sequence) is not None]
    unchanged = logits[torch.tensor(wanted, device=logits.device)] if wanted else None
    tokens = sample(model.choose_tokens, logits, owners, ahead)
    logprobs: list[TokenLogprobs | None] = [None] * len(owners)
    if unchanged is not None:
        top = [_top_wanted(owners[row]) or 0 for row in wanted]
        chosen = [tokens[row] or 0 for row in wanted]
        for row, entry in zip(wanted, logprobs_of(unchanged, chosen, top), strict=True):
            logprobs[row] = entry
    return tokens, logprobs


def _top_wanted(sequence: Sequence) -> int | None:
    assert sequence.params is not None
    return sequence.params.logprobs
