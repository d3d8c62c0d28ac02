"""What a step's outputs make of its sequences: tokens appended, events told, and who has come to the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deepseek.engine.batch import StepBatch
from deepseek.engine.computation import Outputs
from deepseek.engine.constraints import ConstraintError
from deepseek.engine.events import (
    INVALID_CONSTRAINT,
    EmbedEvent,
    EngineEvent,
    FinishReason,
    ScoreEvent,
    TokenEvent,
    TokenLogprobs,
)
from deepseek.engine.request import Sequence
from deepseek.engine.sampler import ChosenLogprobs
from deepseek.engine.scheduler import Chunk, Scheduler
from deepseek.engine.speculation import Speculation
from deepseek.kernels.sampling import listed

_NOT_FINITE = (
    "the model produced NaN or infinite logits for this request, so no token can be chosen. "
    "The weights may be damaged or overflow in this dtype: try --dtype fp32."
)


@dataclass
class Counts:
    """What has happened since the engine began."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    generated_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0


class Results:
    """Gives outputs to the sequences they belong to.

    Args:
        scheduler: hears of computed chunks.
        speculation: learns from verified drafts.
        live: whether a sequence has not ended. Outputs of others are dropped: they ended, or were cancelled, while
            their step was under way.
        remove: takes an ended sequence out of the engine.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        speculation: Speculation | None,
        live: Callable[[Sequence], bool],
        remove: Callable[[Sequence], None],
    ) -> None:
        self.counts = Counts()
        self._scheduler = scheduler
        self._speculation = speculation
        self._live = live
        self._remove = remove

    def take(self, step: StepBatch, outputs: Outputs) -> list[EngineEvent]:
        """The events of a step whose outputs are on the host."""
        for chunk in step.silent:
            self._scheduler.completed(chunk)
        events: list[EngineEvent] = self._embedded(step, outputs)
        events += self._scored(step, outputs)
        if outputs.tokens is None:
            return events
        tokens = listed(outputs.tokens)
        logprobs: list[TokenLogprobs | None] = [None] * len(tokens)
        if outputs.logprobs is not None:
            logprobs = _logprobs(step, outputs.logprobs)
        row = 0
        for chunk in step.sampled:
            end = row + 1 + len(chunk.draft)
            if self._live(chunk.sequence):
                events += self._verified(chunk, tokens[row:end], logprobs[row:end])
            row = end
        return events

    def end(
        self, sequence: Sequence, reason: FinishReason, error: str | None = None, code: str | None = None
    ) -> TokenEvent:
        """Take a sequence out before its natural end."""
        if reason == "cancelled":
            self.counts.cancelled += 1
        else:
            self.counts.failed += 1
        self._remove(sequence)
        return TokenEvent(sequence.request_id, finish_reason=reason, error=error, error_code=code)

    def _verified(
        self, chunk: Chunk, tokens: list[int | None], logprobs: list[TokenLogprobs | None]
    ) -> list[EngineEvent]:
        """Append the token sampled behind the known ones, and one more for each token of the draft that equals what was
        sampled in its place. None is a row whose logits were not finite."""
        sequence = chunk.sequence
        events: list[EngineEvent] = []
        for accepted, token in enumerate(tokens):
            if token is None:
                return [*events, self.end(sequence, "error", _NOT_FINITE)]
            if (problem := _follow(sequence, token)) is not None:
                return [*events, self.end(sequence, "error", problem, INVALID_CONSTRAINT)]
            event = self._advance(sequence, token, logprobs[accepted])
            events.append(event)
            if event.finish_reason or (token,) != chunk.draft[accepted : accepted + 1]:
                break
        self._scheduler.completed(chunk, accepted)
        if self._speculation is not None and chunk.draft:
            self._speculation.verified(sequence, len(chunk.draft), accepted)
            self.counts.drafted_tokens += len(chunk.draft)
            self.counts.accepted_tokens += accepted
        if event.finish_reason:
            self.counts.finished += 1
            self._remove(sequence)
        return events

    def _advance(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> TokenEvent:
        """Append a sampled token and report it, as the last one if the answer ends with it."""
        sequence.append(token)
        length = len(sequence.tokens) - sequence.unknown
        first = length == sequence.prompt_length + 1
        if first:
            self._count_prompt(sequence)
        self.counts.generated_tokens += 1
        stop = token in sequence.stop_ids
        ends = stop or (sequence.matcher is not None and sequence.matcher.finished)
        reason: FinishReason | None = "stop" if ends else "length" if length >= sequence.max_length else None
        return TokenEvent(
            sequence.request_id,
            token_id=token,
            stop_token=stop,
            logprobs=logprobs,
            cached_tokens=(sequence.cached_tokens or 0) if first else 0,
            finish_reason=reason,
            scheduled_at=sequence.scheduled_at if first else 0.0,
        )

    def _scored(self, step: StepBatch, outputs: Outputs) -> list[EngineEvent]:
        entries = outputs.scores.entries() if outputs.scores is not None else []
        events: list[EngineEvent] = []
        row = 0
        for chunk, _, count in step.scored:
            sequence, rows = chunk.sequence, entries[row : row + count + len(chunk.alternatives)]
            row += len(rows)
            if not self._current(chunk):
                continue
            good = [entry for entry in rows if entry is not None]
            if len(good) < len(rows):
                events.append(self.end(sequence, "error", _NOT_FINITE))
                continue
            self._scheduler.completed(chunk)
            sequence.scores += good[:count]
            if chunk.completes:
                self._end_computed(sequence)
                logprobs, greedy = zip(*sequence.scores, strict=True)
                events.append(ScoreEvent(sequence.request_id, list(logprobs), list(greedy), good[count:]))
        return events

    def _embedded(self, step: StepBatch, outputs: Outputs) -> list[EngineEvent]:
        events: list[EngineEvent] = []
        row = 0
        for chunk, count in step.embedded:
            sequence, first = chunk.sequence, row
            row += count
            if not self._current(chunk):
                continue
            assert sequence.pooler is not None and outputs.hidden is not None
            self._scheduler.completed(chunk)
            sequence.pooler.add(outputs.hidden[first:row])
            if chunk.completes:
                vector = sequence.pooler.vector()
                if vector is None:
                    events.append(self.end(sequence, "error", _NOT_FINITE))
                else:
                    self._end_computed(sequence)
                    cached = sequence.cached_tokens or 0
                    events.append(EmbedEvent(sequence.request_id, vector, cached, sequence.scheduled_at))
        return events

    def _current(self, chunk: Chunk) -> bool:
        """Whether its sequence has gone on since: one that was preempted computes the chunk anew."""
        return self._live(chunk.sequence) and chunk.admission == chunk.sequence.admission

    def _end_computed(self, sequence: Sequence) -> None:
        """Take a sequence out whose result is there without a token of answer."""
        self.counts.finished += 1
        self._count_prompt(sequence)
        self._remove(sequence)

    def _count_prompt(self, sequence: Sequence) -> None:
        self.counts.prompt_tokens += sequence.prompt_length - sequence.before
        self.counts.cached_prompt_tokens += sequence.cached_tokens or 0


def _logprobs(step: StepBatch, wanted: ChosenLogprobs) -> list[TokenLogprobs | None]:
    """Of each sampled row, None where they were not asked for."""
    logprobs: list[TokenLogprobs | None] = [None] * len(step.row_owners)
    rows, top = step.logprob_rows
    for row, entry in zip(rows, wanted.entries(top), strict=True):
        logprobs[row] = entry
    return logprobs


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
