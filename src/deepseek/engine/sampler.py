"""From logits to tokens, for all sequences of a step at once.

Order of operations: logit bias, penalties, temperature, min-p, top-k, top-p. One uniform number per token decides by
inverting the cumulative distribution; it depends on the sequence's seed and the token's index alone, so that a seed
gives the same tokens whatever else is in the batch, after a preemption, and with speculation: a row behind a draft is
sampled exactly as if the draft's tokens had been appended.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Seq

import torch
from torch import Tensor

from deepseek.engine.events import TokenLogprobs
from deepseek.engine.request import Sequence
from deepseek.sampling import SamplingParams

_CANDIDATES = 1024
_MIN_TEMPERATURE = 1e-6  # as good as greedy; smaller ones would become 0 in fp32
_MASK = 2**64 - 1


def uniform(seed: int, index: int) -> float:
    """A number in [0, 1) from a seed and a counter: SplitMix64's finalizer (Steele et al., OOPSLA '14), twice."""
    state = (seed & _MASK) ^ 0x9E3779B97F4A7C15
    for word in (0, index):
        state = (state + (word + 1) * 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return (state >> 11) * 2.0**-53


def sample(logits: Tensor, sequences: Seq[Sequence], ahead: Seq[Seq[int]] | None = None) -> list[int]:
    """One token per row of fp32 ``logits`` [R, vocab]; row i belongs to ``sequences[i]`` as it would be with the tokens
    ``ahead[i]`` appended. Changes ``logits``."""
    params = [_params(sequence) for sequence in sequences]
    ahead = ahead or [()] * len(sequences)
    for row, (sequence, options) in enumerate(zip(sequences, params, strict=True)):
        _shift(logits[row], sequence, options, ahead[row])
    tokens = logits.argmax(dim=-1).tolist()
    drawn = [row for row, options in enumerate(params) if not options.greedy]
    if not drawn:
        return [int(token) for token in tokens]
    rows = torch.tensor(drawn, device=logits.device)
    temperature = _column([max(params[row].temperature, _MIN_TEMPERATURE) for row in drawn], logits)
    indices = [sequences[row].answer_length + len(ahead[row]) for row in drawn]
    seeds = [sequences[row].seed for row in drawn]
    draws = _column(list(map(uniform, seeds, indices)), logits).double()
    scaled = (logits[rows] - logits[rows].amax(dim=-1, keepdim=True)) / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    for row, token in zip(drawn, _draw(probabilities, [params[row] for row in drawn], draws), strict=True):
        tokens[row] = token
    return [int(token) for token in tokens]


def logprobs_of(logits: Tensor, tokens: Seq[int], top: Seq[int]) -> list[TokenLogprobs]:
    """Log-probability of ``tokens[i]`` in row i of unchanged ``logits`` [R, vocab], and its ``top[i]`` likeliest."""
    logprobs = torch.log_softmax(logits, dim=-1)
    chosen = logprobs.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0].tolist()
    values, ids = logprobs.topk(max(1, *top), dim=-1)
    rows = zip(chosen, top, ids.tolist(), values.tolist(), strict=True)
    return [TokenLogprobs(own, list(zip(i[:k], v[:k], strict=True))) for own, k, i, v in rows]


def scores_of(logits: Tensor, tokens: Seq[int]) -> list[tuple[float, bool]]:
    """Per row of ``logits`` [R, vocab]: the log-probability of ``tokens[i]``, and whether it is the likeliest."""
    wanted = torch.tensor(tokens, device=logits.device)[:, None]
    own = logits.gather(1, wanted)[:, 0]
    logprobs = (own - logits.logsumexp(dim=-1)).tolist()
    greedy = (logits.argmax(dim=-1) == wanted[:, 0]).tolist()
    return list(zip(logprobs, greedy, strict=True))


def _params(sequence: Sequence) -> SamplingParams:
    assert sequence.params is not None, "score requests are not sampled"
    return sequence.params


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).to(like.dtype)[:, None]


def _shift(row: Tensor, sequence: Sequence, params: SamplingParams, ahead: Seq[int]) -> None:
    """Logit bias and penalties of one row [vocab], in place."""
    if params.repetition_penalty != 1.0:
        ids = torch.tensor(list({*sequence.tokens, *ahead}), device=row.device)
        seen = row[ids]
        row[ids] = torch.where(seen > 0, seen / params.repetition_penalty, seen * params.repetition_penalty)
    if (sequence.answer_counts or ahead) and (params.presence_penalty or params.frequency_penalty):
        seen_counts = Counter(sequence.answer_counts)
        seen_counts.update(ahead)
        ids = torch.tensor(list(seen_counts), device=row.device)
        counts = torch.tensor(list(seen_counts.values()), dtype=row.dtype, device=row.device)
        row[ids] -= params.presence_penalty + params.frequency_penalty * counts
    if params.logit_bias:
        ids = torch.tensor(list(params.logit_bias), device=row.device)
        row[ids] += torch.tensor(list(params.logit_bias.values()), dtype=row.dtype, device=row.device)


def _draw(probabilities: Tensor, params: Seq[SamplingParams], draws: Tensor) -> list[int]:
    """One token per row of ``probabilities`` [R, vocab], by ``draws`` float64 [R, 1]."""
    filtered = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1.0 or p.min_p]
    tokens = [0] * len(params)
    plain = [i for i in range(len(params)) if i not in set(filtered)]
    if plain:
        rows = torch.tensor(plain, device=probabilities.device)
        for i, token in zip(plain, _invert(probabilities[rows], draws[rows]).tolist(), strict=True):
            tokens[i] = token
    if filtered:
        chosen = _draw_filtered(probabilities, filtered, params, draws)
        for i, token in zip(filtered, chosen, strict=True):
            tokens[i] = token
    return tokens


def _draw_filtered(probabilities: Tensor, indices: list[int], params: Seq[SamplingParams], draws: Tensor) -> list[int]:
    """Rows with min-p, top-k or top-p. Sorting a whole vocabulary is slow and rarely needed: try the likeliest
    candidates first, and sort everything only where the kept set may reach beyond them."""
    rows = torch.tensor(indices, device=probabilities.device)
    tokens = torch.full((len(indices),), -1, dtype=torch.int64, device=probabilities.device)
    vocab = probabilities.shape[1]
    todo = torch.arange(len(indices), device=probabilities.device)
    for width in dict.fromkeys((min(_CANDIDATES, vocab), vocab)):
        options = [params[indices[i]] for i in todo.tolist()]
        values, ids = probabilities[rows[todo]].topk(width, dim=-1)
        kept, certain = _keep(values, options, vocab)
        picked = _invert(torch.where(kept, values, 0.0), draws[rows[todo]])
        tokens[todo] = ids.gather(1, picked[:, None])[:, 0]
        todo = todo[~certain]
        if not len(todo):
            break
    return [int(token) for token in tokens.tolist()]


def _keep(values: Tensor, params: Seq[SamplingParams], vocab: int) -> tuple[Tensor, Tensor]:
    """Which of the ``values`` [R, width] (descending probabilities) are kept, and for which rows [R] that is certain,
    because no token outside of them could be kept too."""
    width = values.shape[1]
    rank = torch.arange(width, device=values.device)
    top_k = torch.tensor([min(p.top_k or vocab, vocab) for p in params], device=values.device)[:, None]
    top_p = _column([p.top_p for p in params], values)
    min_p = _column([p.min_p for p in params], values)
    kept = (values >= min_p * values[:, :1]) & (rank < top_k)
    inside = ~kept[:, -1:] | (top_k <= width)
    unfiltered = (top_k == vocab) & (min_p == 0)
    # top-p is a share of the mass that min-p and top-k left.
    weights = torch.where(kept, values, 0.0).double()
    mass = torch.where(inside, weights.sum(dim=-1, keepdim=True), 1.0)
    kept &= (weights.cumsum(dim=-1) - weights < top_p * mass) | (rank == 0)
    return kept, (inside | (unfiltered & ~kept[:, -1:]))[:, 0]


def _invert(weights: Tensor, draws: Tensor) -> Tensor:
    """The index [R] at which each row's cumulative weight passes its draw times the total."""
    cumulative = weights.double().cumsum(dim=-1)
    index = torch.searchsorted(cumulative, draws * cumulative[:, -1:], right=True)[:, 0]
    # Rounding may land behind the last positive weight.
    last = weights.shape[1] - 1 - (weights > 0).flip(-1).to(torch.int8).argmax(dim=-1)
    return torch.minimum(index, last)
