"""What each sequence's options make of its logits, for all sequences of a step at once.

Order of operations: logit bias, penalties, the mask of a constraint, and then :mod:`deepseek.kernels.sampling`. The
uniform number of a token depends on the sequence's seed and the token's index alone, so that a seed gives the same
tokens whatever else is in the batch, after a preemption, and with speculation: a row behind a draft is sampled exactly
as if the draft's tokens had been appended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deepseek.engine.events import TokenLogprobs
from deepseek.engine.request import Sequence
from deepseek.kernels.sampling import GREEDY, Choice, finite_rows, listed
from deepseek.kernels.staging import bring
from deepseek.sampling import SamplingParams

if TYPE_CHECKING:
    from deepseek.engine.constraints import Bits

ChooseTokens = Callable[[Tensor, Seq[Choice]], Tensor]
_MASK = 2**64 - 1
_LARGEST = torch.finfo(torch.float32).max
_FORBIDDEN = -1e30  # finite: an infinite logit means that the model is broken


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) from a seed and a counter: SplitMix64's finalizer (Steele et al., OOPSLA '14), twice."""
    state = (seed & _MASK) ^ 0x9E3779B97F4A7C15
    for word in (0, index):
        state = (state + (word + 1) * 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


@dataclass(frozen=True)
class Draws:
    """How the tokens of a step's rows are chosen: made before the step is computed, applied to its logits.

    Attributes:
        choices: one for each row of the logits.
        changes: change rows of the logits, in place, before tokens are chosen.
    """

    choices: list[Choice]
    changes: list[Callable[[Tensor], None]]

    @classmethod
    def of(cls, sequences: Seq[Sequence], ahead: Seq[Seq[int]] | None = None) -> Draws:
        """Row i belongs to ``sequences[i]`` as it would be with the tokens ``ahead[i]`` appended. Sequences for which
        :func:`needs_tokens` holds must stay as they are until :meth:`choose`."""
        choices: list[Choice] = []
        changes: list[Callable[[Tensor], None]] = []
        for row, sequence in enumerate(sequences):
            params = sequence.params
            assert params is not None, "score requests are not sampled"
            behind = ahead[row] if ahead else ()
            if params.shifts_logits or sequence.matcher is not None:
                changes.append(partial(_change, row=row, sequence=sequence, ahead=behind))
            if params.greedy:
                choices.append(GREEDY)
            else:
                draw = uniform(sequence.seed, sequence.answer_length + len(behind))
                choices.append(Choice(params.temperature, params.top_k, params.top_p, params.min_p, draw))
        return cls(choices, changes)

    def choose(self, choose_tokens: ChooseTokens, logits: Tensor) -> Tensor:
        """One token for each row of fp32 ``logits`` [R, vocab], which is changed: int64 [R] (see ``choose_tokens``).

        Args:
            choose_tokens: how the model's backend does it (:meth:`deepseek.models.base.Model.choose_tokens`).
        """
        for change in self.changes:
            change(logits)
        return choose_tokens(logits, self.choices)


def sample(
    choose_tokens: ChooseTokens, logits: Tensor, sequences: Seq[Sequence], ahead: Seq[Seq[int]] | None = None
) -> list[int | None]:
    """See :class:`Draws`, at once: one token per row, None for a row that holds NaN or infinity."""
    return listed(Draws.of(sequences, ahead).choose(choose_tokens, logits))


def needs_tokens(sequence: Sequence) -> bool:
    """Whether all its tokens must be known before logits of this sequence can be made into the next one."""
    params = sequence.params
    return sequence.matcher is not None or (params is not None and params.penalizes)


@dataclass(frozen=True)
class ChosenLogprobs:
    """Log-probabilities of some rows' chosen tokens, fp32 [L], and of the likeliest ones, [L, k] with their ids."""

    chosen: Tensor
    ids: Tensor
    values: Tensor

    @classmethod
    def of(cls, logits: Tensor, tokens: Tensor, most: int) -> ChosenLogprobs:
        """Of ``tokens`` [L] in unchanged ``logits`` [L, vocab], and of the ``most`` likeliest."""
        logprobs = torch.log_softmax(logits, dim=-1)
        values, ids = logprobs.topk(max(1, most), dim=-1)
        return cls(logprobs.gather(1, tokens.clamp(min=0)[:, None])[:, 0], ids, values)

    def entries(self, top: Seq[int]) -> list[TokenLogprobs]:
        """As events carry them, the ``top[i]`` likeliest of row i."""
        rows = zip(self.chosen.tolist(), top, self.ids.tolist(), self.values.tolist(), strict=True)
        return [TokenLogprobs(own, list(zip(i[:k], v[:k], strict=True))) for own, k, i, v in rows]


@dataclass(frozen=True)
class Scores:
    """Of given tokens in given rows: log-probability, whether it is the likeliest, and whether the row was finite."""

    logprobs: Tensor
    greedy: Tensor
    finite: Tensor

    @classmethod
    def of(cls, logits: Tensor, rows: Tensor, tokens: Tensor) -> Scores:
        """Of ``tokens`` [N] in ``rows`` [N] of ``logits`` [R, vocab]."""
        logprobs = logits[rows, tokens] - logits.logsumexp(dim=-1)[rows]
        return cls(logprobs, logits.argmax(dim=-1)[rows] == tokens, finite_rows(logits)[rows])

    def entries(self) -> list[tuple[float, bool] | None]:
        """Token by token; None for one whose row was not finite."""
        rows = zip(self.logprobs.tolist(), self.greedy.tolist(), self.finite.tolist(), strict=True)
        return [(logprob, greedy) if finite else None for logprob, greedy, finite in rows]


def _change(logits: Tensor, row: int, sequence: Sequence, ahead: Seq[int]) -> None:
    params = sequence.params
    assert params is not None
    if params.shifts_logits:
        _shift(logits[row], sequence, params, ahead)
    if sequence.matcher is not None:
        _restrict(logits[row], sequence.matcher.allowed(ahead))


def _restrict(row: Tensor, allowed: Bits | None) -> None:
    """Forbid all tokens of one row [vocab] but the ``allowed`` ones, in place. None: the row stands behind a guess that
    is not allowed itself, so that nobody will read it."""
    if allowed is None:
        return
    flags = np.unpackbits(allowed, count=min(8 * len(allowed), len(row)), bitorder="little")
    row[: len(flags)].masked_fill_(bring(torch.from_numpy(flags == 0), row.device), _FORBIDDEN)
    row[len(flags) :] = _FORBIDDEN  # padding of the vocabulary


def _shift(row: Tensor, sequence: Sequence, params: SamplingParams, ahead: Seq[int]) -> None:
    """Logit bias and penalties of one row [vocab], in place."""
    if params.repetition_penalty != 1.0:
        ids = bring(torch.tensor(list({*sequence.tokens[sequence.before :], *ahead})), row.device)
        seen = row[ids]
        shifted = torch.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        # A penalty near 0 must not make a finite logit infinite.
        row[ids] = torch.where(seen.isfinite(), shifted.clamp(-_LARGEST, _LARGEST), seen)
    if (sequence.answer_counts or ahead) and (params.presence_penalty or params.frequency_penalty):
        seen_counts = Counter(sequence.answer_counts)
        seen_counts.update(ahead)
        ids = bring(torch.tensor(list(seen_counts)), row.device)
        counts = bring(torch.tensor(list(seen_counts.values()), dtype=row.dtype), row.device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        ids = bring(torch.tensor(list(params.logit_bias)), row.device)
        row[ids] += bring(torch.tensor(list(params.logit_bias.values()), dtype=row.dtype), row.device)
