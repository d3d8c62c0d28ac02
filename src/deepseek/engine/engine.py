"""One engine: requests in, one forward of the mixed batch per step, events out. No I/O; one thread calls it.

On a device that computes by itself a step is planned while the one before is under way (as in SGLang 0.4's overlapped
scheduler, and NanoFlow, arXiv:2408.12757).
"""

from __future__ import annotations

import secrets
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from deepseek.attention.plan import SparsePlan
from deepseek.attention.policy import DEFAULT_ERROR, QUESTION_TOKENS, policy_of
from deepseek.config import MAX_ADAPTERS
from deepseek.engine.adapters import Adapters, ServedAdapter
from deepseek.engine.batch import StepBatch, build_batch
from deepseek.engine.block_pool import BlockPool
from deepseek.engine.computation import Compute, Launcher, computation, launcher_for
from deepseek.engine.constraints import Constraints, Matcher
from deepseek.engine.events import (
    INVALID_CONSTRAINT,
    AdapterInfo,
    ContextLimit,
    EmbedRequest,
    EngineEvent,
    EngineRequest,
    EngineStats,
    ScoreRequest,
)
from deepseek.engine.request import Sequence
from deepseek.engine.results import Results
from deepseek.engine.sampler import needs_tokens
from deepseek.engine.scheduler import Chunk, Scheduler
from deepseek.engine.speculation import Speculation
from deepseek.engine.spill import Spill
from deepseek.engine.validation import check_request
from deepseek.errors import InvalidRequestError
from deepseek.models.base import Model, SpillSpace

_COMPILE_WAIT = 0.005  # seconds
MOST_RECOMPUTED = 3
"""Times that a request is started anew because the spill file was corrupt."""
_CORRUPT = (
    f"the spill file damaged the keys and values of this request {MOST_RECOMPUTED + 1} times. The disk may be failing: "
    "start the server with another kv_spill_dir, or without kv_spill_bytes."
)


@dataclass(frozen=True)
class _Flight:
    """A step under way."""

    step: StepBatch
    wait: Compute


def _can_be_followed(chunk: Chunk) -> bool:
    """Whether a step can be planned before this chunk's outcome is known: it gives one token or none, and the next
    needs no more of it than to be read."""
    return not (chunk.draft or (chunk.completes and needs_tokens(chunk.sequence)))


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
        launcher: has steps computed; None: as suits the model.
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
        launcher: Launcher | None = None,
    ) -> None:
        self.model = model
        self.page_size = page_size
        self.max_context = min(max_context, num_pages * page_size)
        self.context_limit: ContextLimit = "kv_cache" if self.max_context < max_context else context_limit
        self._attention = (attention, attention_error, question_tokens)
        self._on_gpu = on_gpu
        self.end_ids = end_ids
        self.cache = model.new_cache(num_pages, page_size, spill)
        self.pool = BlockPool(
            num_pages,
            resident=spill.resident if spill else None,
            prefix_cache=prefix_cache,
            together=model.pages_together,
        )
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
        self._live: dict[str, Sequence] = {}
        self._pending: list[EngineEvent] = []
        self._steps = 0
        self._results = Results(self.scheduler, speculation, self._is_live, self._remove)
        self.launcher = launcher_for(model) if launcher is None else launcher
        self._flight: list[_Flight] = []
        self._previous: Tensor | None = None
        if self.launcher.device is not None:
            self._previous = torch.zeros(1 + max_running, dtype=torch.int64, device=self.launcher.device)

    @property
    def has_work(self) -> bool:
        """True while :meth:`step` has something to do or to report."""
        return bool(self._live or self._pending or self._flight)

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
            self._pending.append(self._results.end(sequence, "cancelled"))

    def step(self) -> list[EngineEvent]:
        """Start one mixed batch, and one isolated sequence if there are any, and return what happened, cancellations
        since the last step included.

        Where the launcher goes ahead, that is the outcome of the step before: this one was planned and started while it
        was under way. Tokens that it samples are then not known yet, and taken from where it leaves them. A sequence
        that turns out to have ended has computed one token too many, which is dropped.
        """
        if self._preparing:
            self._take_prepared()
        events, self._pending = self._pending, []
        if self._spill is not None and (corrupt := self._spill.check_next()) is not None:
            for sequence in self.scheduler.recompute(corrupt):
                if sequence.recomputed > MOST_RECOMPUTED:
                    events.append(self._results.end(sequence, "error", _CORRUPT))
        if self._speculation is not None and self._flight and self._speculation.pays(self.scheduler.running):
            events += self._land()  # guesses need the tokens
        chunks = self.scheduler.schedule()
        isolated = [chunk for chunk in chunks if chunk.sequence.isolated]
        mixed = self._with_drafts([chunk for chunk in chunks if not chunk.sequence.isolated])
        if self._spill is not None:
            self._spill.place([*mixed, *isolated], self.scheduler.running)
        before, self._flight = self._flight, []
        followed = self._previous is not None and all(map(_can_be_followed, (*mixed, *isolated)))
        # The one isolated sequence of a step leaves its token in front of the others'.
        for group, place in ((mixed, 1), (isolated, 0)):
            if group:
                self._flight.append(self._launch(group, place if followed else None))
        self._steps += bool(chunks)
        for flight in before:
            events += self._results.take(flight.step, flight.wait())
        return events if followed else events + self._land()

    def _launch(self, chunks: list[Chunk], place: int | None) -> _Flight:
        """Start a forward, and take its chunks as computed. Its tokens go to ``previous`` from ``place`` on, where the
        next step finds them; None if that step will wait for this one."""
        step = build_batch(chunks, self.page_size, self.model, self._previous)
        left_at = None if place is None else slice(place, place + len(step.sampled))
        wait = self.launcher.start(computation(self.model, self.cache, step, left_at))
        for chunk in chunks:
            self.scheduler.started(chunk)
        if place is not None:
            for at, chunk in enumerate(step.sampled, start=place):
                if len(chunk.sequence.tokens) + 1 < chunk.sequence.max_length:
                    chunk.sequence.expect(at)
        return _Flight(step, wait)

    def _land(self) -> list[EngineEvent]:
        """Wait for the steps under way."""
        flights, self._flight = self._flight, []
        return [event for flight in flights for event in self._results.take(flight.step, flight.wait())]

    def stats(self) -> EngineStats:
        """A snapshot of queue, pages and counters."""
        return EngineStats(
            waiting=len(self.scheduler.waiting) + len(self._preparing),
            running=len(self.scheduler.running),
            pages_total=self.pool.num_pages,
            pages_free=self.pool.num_free,
            steps=self._steps,
            preemptions=self.scheduler.preemptions,
            kv_spill_pages=self._spill.pages if self._spill else 0,
            kv_spill_moved=self._spill.moved if self._spill else 0,
            kv_spill_checked=self._spill.checked if self._spill else 0,
            kv_spill_corrupt=self._spill.corrupt if self._spill else 0,
            attention=self.model.attention_stats(),
            adapters=len(self.adapters),
            adapter_bytes=self.adapters.bytes,
            **asdict(self._results.counts),
        )

    def load_adapter(self, name: str, folder: str) -> AdapterInfo:
        """See :meth:`deepseek.engine.adapters.Adapters.load`."""
        return self.adapters.load(name, folder)

    def _is_live(self, sequence: Sequence) -> bool:
        return self._live.get(sequence.request_id) is sequence

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
                self._pending.append(self._results.end(sequence, "error", str(error), INVALID_CONSTRAINT))
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
