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
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from deepseek.engine.events import TokenLogprobs
from deepseek.engine.request import Sequence
from deepseek.kernels.sampling import GREEDY, Choice
from deepseek.sampling import SamplingParams

if TYPE_CHECKING:
    from deepseek.engine.constraints import Bits

ChooseTokens = Callable[[Tensor, list[Choice]], list[int | None]]
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


def sample(
    choose_tokens: ChooseTokens, logits: Tensor, sequences: Seq[Sequence], ahead: Seq[Seq[int]] | None = None
) -> list[int | None]:
    """One token per row of fp32 ``logits`` [R, vocab]; row i belongs to ``sequences[i]`` as it would be with the tokens
    ``ahead[i]`` appended. None for a row that holds NaN or infinity. Changes ``logits``.

    Args:
        choose_tokens: how the model's backend does it (:meth:`deepseek.models.base.Model.choose_tokens`).
    """
    choices: list[Choice] = []
    for row, sequence in enumerate(sequences):
        params = sequence.params
        assert params is not None, "score requests are not sampled"
        behind = ahead[row] if ahead else ()
        if params.shifts_logits:
            _shift(logits[row], sequence, params, behind)
        if sequence.matcher is not None:
            _restrict(logits[row], sequence.matcher.allowed(behind))
        if params.greedy:
            choices.append(GREEDY)
        else:
            draw = uniform(sequence.seed, sequence.answer_length + len(behind))
            choices.append(Choice(params.temperature, params.top_k, params.top_p, params.min_p, draw))
    return choose_tokens(logits, choices)


def logprobs_of(logits: Tensor, tokens: Seq[int], top: Seq[int]) -> list[TokenLogprobs]:
    """Log-probability of ``tokens[i]`` in row i of unchanged ``logits`` [R, vocab], and its ``top[i]`` likeliest."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(max(1, *top), dim=-1)
    rows = zip(chosen, top, ids.tolist(), values.tolist(), strict=True)
    return [TokenLogprobs(own, list(zip(i[:k], v[:k], strict=True))) for own, k, i, v in rows]


def scores_of(logits: Tensor, tokens: Seq[int]) -> list[tuple[float, bool]]:
    """Per row of ``logits`` [R, vocab]: the log-probability of ``tokens[i]``, and whether it is the likeliest."""
    wanted = torch.tensor(tokens, dtype=torch.long, device=logits.device)[:, None]
    own = logits.gather(1, wanted)[:, 0]
    logprobs = (own - logits.logsumexp(dim=-1)).tolist()
    greedy = (logits.argmax(dim=-1) == wanted[:, 0]).tolist()
    return list(zip(logprobs, greedy, strict=True))


def _restrict(row: Tensor, allowed: Bits | None) -> None:
    """Forbid all tokens of one row [vocab] but the ``allowed`` ones, in place. None: the row stands behind a guess that
    is not allowed itself, so that nobody will read it."""
    if allowed is None:
        return
    flags = np.unpackbits(allowed, count=min(8 * len(allowed), len(row)), bitorder="little")
    row[: len(flags)].masked_fill_(torch.from_numpy(flags == 0).to(row.device), _FORBIDDEN)
    row[len(flags) :] = _FORBIDDEN  # padding of the vocabulary


def _shift(row: Tensor, sequence: Sequence, params: SamplingParams, ahead: Seq[int]) -> None:
    """Logit bias and penalties of one row [vocab], in place."""
    if params.repetition_penalty != 1.0:
        ids = torch.tensor(list({*sequence.tokens[sequence.before :], *ahead}), device=row.device)
        seen = row[ids]
        shifted = torch.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
        # A penalty near 0 must not make a finite logit infinite.
        row[ids] = torch.where(seen.isfinite(), shifted.clamp(-_LARGEST, _LARGEST), seen)
    if (sequence.answer_counts or ahead) and (params.presence_penalty or params.frequency_penalty):
        seen_counts = Counter(sequence.answer_counts)
        seen_counts.update(ahead)
        ids = torch.tensor(list(seen_counts), device=row.device)
        counts = torch.tensor(list(seen_counts.values()), dtype=row.dtype, device=row.device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(params.logit_bias.values()), dtype=row.dtype, device=row.device)
