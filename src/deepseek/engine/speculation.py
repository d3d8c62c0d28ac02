"""Guessing tokens, to be verified in the step that would have computed only the next one.

While a step waits for the weights to arrive from memory, a few more rows are nearly free. A drafter guesses what comes
next; the step computes logits behind each guess, and the engine samples every position exactly as it would have without
speculation, keeping the guesses that equal what was sampled. So the answer is the same, and not only its distribution
(the general scheme is speculative sampling: Leviathan et al., arXiv:2211.17192).

Prompt lookup (Saxena 2023, "Prompt Lookup Decoding") guesses that a passage repeats: where the last tokens stood
before, in the prompt or the answer, what followed them there is the guess.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Protocol

from deepseek.engine.request import Sequence
from deepseek.engine.scheduler import Chunk

ROW_COST = 0.15
"""Time of one more row in a step, as a share of a step of one row. Weights are read once for all rows."""

EXPERTS_ROW_COST = 0.7
"""The same where rows go to experts of their own, so that more rows read more weights."""

MAX_DRAFT = 7
"""Longest draft: with the row it stands behind, two tiles of four rows."""

_PRIOR = 0.5
_RATE = 0.15
_PROBE_INTERVAL = 32
_PROBE_LENGTH = 2
_SIZES = (3, 2)
_INDEXED_PER_STEP = 16_384  # positions: a prompt of a million tokens must not hold up a step for seconds


class Drafter(Protocol):
    """Guesses tokens.

    Attributes:
        cost: time to draft one token, as a share of a step of one row.
    """

    cost: float

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Up to ``wanted[sequence]`` tokens that may follow each sequence's tokens; none where there is no guess."""
        ...

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended. Unknown ones are ignored."""
        ...


@dataclass
class Gate:
    """How often the guesses for one sequence come true, and so how many are worth their time.

    Attributes:
        acceptance: moving average of the share of verified guesses that were right.
        declined: drafts declined in a row because they would not have paid.
    """

    acceptance: float = _PRIOR
    declined: int = 0

    def length(self, limit: int, tokens: float, rows: int, row_cost: float, draft_cost: float) -> int:
        """The draft length of at most ``limit`` with which the step gives the most tokens per time; 0 if it pays not to
        draft, but for a rare short probe.

        Args:
            limit: longest draft possible.
            tokens: what the step is expected to give without this draft.
            rows: rows of the step without this draft.
            row_cost: time of a further row, as a share of a step of one row.
            draft_cost: time to draft one token, in the same unit.
        """
        spent = 1 + row_cost * (rows - 1)
        best, best_speed = 0, tokens / spent
        chance = 1.0
        for length in range(1, limit + 1):
            chance *= self.acceptance
            tokens += chance
            speed = tokens / (spent + (row_cost + draft_cost) * length)
            if speed <= best_speed:
                break  # every further guess is less likely than this one
            best, best_speed = length, speed
        if best or not limit:
            self.declined = 0
            return best
        self.declined += 1
        if self.declined < _PROBE_INTERVAL or row_cost * rows > 1:
            return 0
        self.declined = 0
        return min(limit, _PROBE_LENGTH)

    def expected(self, length: int) -> float:
        """Guesses of a draft of ``length`` that will be accepted: a + a^2 + ... + a^length."""
        total, chance = 0.0, 1.0
        for _ in range(length):
            chance *= self.acceptance
            total += chance
        return total

    def verified(self, drafted: int, accepted: int) -> None:
        """Note that of ``drafted`` tokens the first ``accepted`` were right. Those behind the first wrong one were not
        tried."""
        for _ in range(accepted):
            self.acceptance += _RATE * (1 - self.acceptance)
        if accepted < drafted:
            self.acceptance -= _RATE * self.acceptance


class Speculation:
    """Decides which sequences get drafts, and how long ones.

    Args:
        drafter: makes the guesses.
        row_cost: time of one more row in a step, as a share of a step of one row.
        max_draft: longest draft.
    """

    def __init__(self, drafter: Drafter, *, row_cost: float = ROW_COST, max_draft: int = MAX_DRAFT) -> None:
        self.drafter = drafter
        self.row_cost = row_cost
        self.max_draft = max_draft
        self._gates: dict[Sequence, Gate] = {}

    def draft(self, chunks: Seq[Chunk], max_rows: int) -> dict[Sequence, list[int]]:
        """Guesses for the chunks of a step of at most ``max_rows`` rows, where the gates let them pass.

        Only sequences that decode get drafts. The more rows a step has, the less a further one is free, and the surer
        a guess must be; next to a prompt's chunk none is.
        """
        rows = sum(chunk.num_tokens for chunk in chunks)
        tokens = float(rows)
        wanted: dict[Sequence, int] = {}
        for chunk in chunks:
            sequence = chunk.sequence
            if not (sequence.params is not None and chunk.completes and chunk.num_tokens == 1):
                continue
            limit = min(self.max_draft, max_rows - rows, sequence.max_length - len(sequence.tokens) - 1)
            if limit <= 0:
                continue
            gate = self._gates.get(sequence)
            if gate is None:
                gate = self._gates[sequence] = Gate()
            length = gate.length(limit, tokens, rows, self.row_cost, self.drafter.cost)
            if length and not sequence.unknown:
                wanted[sequence] = length
                rows += length
                tokens += gate.expected(length)
        if not wanted:
            return {}
        return {sequence: guess for sequence, guess in self.drafter.draft(wanted).items() if guess}

    def pays(self, sequences: Iterable[Sequence]) -> bool:
        """Whether a guess for one of these running sequences may be worth its time, or is due as a probe."""
        rows = 0
        gates: list[Gate] = []
        for sequence in sequences:
            rows += 1
            if sequence.params is not None:
                gates.append(self._gates.get(sequence) or Gate())
        return any(replace(gate).length(1, rows, rows, self.row_cost, self.drafter.cost) for gate in gates)

    def verified(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        """Learn from a verified draft."""
        self._gates[sequence].verified(drafted, accepted)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._gates.pop(sequence, None)
        self.drafter.forget(sequence)


class LookupDrafter:
    """Prompt lookup: guesses by what followed the last tokens where they stood before."""

    cost = 0.0

    def __init__(self) -> None:
        self._indices: dict[Sequence, LookupIndex] = {}

    def draft(self, wanted: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        drafts = {}
        for sequence, length in wanted.items():
            index = self._indices.get(sequence)
            if index is None:
                index = self._indices[sequence] = LookupIndex(sequence.tokens)
            drafts[sequence] = index.guess(length)
        return drafts

    def forget(self, sequence: Sequence) -> None:
        self._indices.pop(sequence, None)


class LookupIndex:
    """Where the n-grams of a growing token list stood last, kept up to date in O(1) per token. The index of a long
    prompt is made over several steps; until it is there, guesses come from the prompt's beginning.

    A passage once found is followed while its guesses come true: going to the latest place of each n-gram anew loses
    the thread where a phrase is frequent (on edits of this project's own files, a quarter of the speed).

    Args:
        tokens: the list; it may grow, and what it holds must not change.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._tokens = tokens
        self._followers: dict[int, dict[tuple[int, ...], int]] = {size: {} for size in _SIZES}
        self._indexed = 0  # n-grams that end before this position are in the index
        self._seen = len(tokens)
        self._source: int | None = None  # the position that foretold position `_seen`

    def guess(self, length: int) -> list[int]:
        """Up to ``length`` tokens that may come next; empty when the last tokens are new."""
        source = self._follow()
        if source is None:
            return []
        period = len(self._tokens) - source  # a passage that runs into the end of the list repeats itself
        return [self._tokens[source + i % period] for i in range(length)]

    def _follow(self) -> int | None:
        """The position whose token is the guess for the next one."""
        tokens, end, source = self._tokens, len(self._tokens), self._source
        new = end - self._seen
        if source is not None and tokens[source : source + new] == tokens[self._seen :]:
            self._source = source + new
        else:
            self._source = self._look_up()
        self._seen = end
        return self._source

    def _look_up(self) -> int | None:
        tokens = self._tokens
        end = min(len(tokens), self._indexed + _INDEXED_PER_STEP)
        for size, followers in self._followers.items():
            # The n-gram at the very end has no follower yet.
            for stop in range(max(self._indexed, size), end):
                followers[tuple(tokens[stop - size : stop])] = stop
        self._indexed = end
        for size, followers in self._followers.items():
            found = followers.get(tuple(tokens[-size:]))
            if found is not None:
                return found
        return None
