"""Sparse attention of single queries: the slow, obvious truth of the native kernel (csrc/sparse.h).

The first page and the last tokens are exact. Of the middle, tokens are read that weigh more than a threshold, and the
rest of each page is its estimated weight times the mean of its other values. What that gets wrong is, in variance,
about the sum over unread tokens of p_t^2 deviation, which is at most threshold * (sum of p_t) * deviation: so the
threshold follows from the error that is allowed. A head that looks at everything evenly reads next to nothing, one
that looks for a needle reads the needle.

Kin: Quest (arXiv:2406.10774) bounds pages, MagicPIG (arXiv:2410.16179) samples by LSH, Twilight (arXiv:2502.02770)
prunes by mass, RetroInfer (arXiv:2505.02922) estimates the rest from centroids, vAttention (arXiv:2510.05688) bounds
the error.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from deepseek.attention.index import MOST_NOISE, PAGE, PageIndex, log_page_weights, log_weights

RECENT = 256
"""Tokens at the end of a context that are always exact."""
THRESHOLD_FACTOR = 2.25
"""Measured: with it the median error is about what is asked for."""
FILTER_PAGES = 2048
"""Middles of more pages are filtered."""
FILTER_FACTOR = 0.25
PIECE_PAGES = 64


@dataclass(frozen=True, slots=True)
class Decoded:
    """What sparse attention made of one query and KV head.

    Attributes:
        output: fp32 [G, Dv].
        read: bool [n], the tokens that were read.
        tail: fp32 [G], estimated share of the weights that was not read.
        estimate: fp32 [G], estimated relative error.
        bound: fp32 [G], of the relative error, if the unread weight is at most twice its estimate: that weight moves by
            at most twice the longest value. No guarantee, as the weight is told by codes.
    """

    output: Tensor
    read: Tensor
    tail: Tensor
    estimate: Tensor
    bound: Tensor


def middle_end(context: int) -> int:
    """Pages [1, middle_end) are the middle of a context of so many tokens."""
    return max(1, (context - RECENT) // PAGE)


def sparse_decode(
    queries: Tensor, keys: Tensor, values: Tensor, index: PageIndex, error: float, *, whole_pieces: bool = True
) -> Decoded:
    """Attention of scaled fp32 ``queries`` [G, D], the heads of one group, to ``keys`` [n, D] and ``values`` [n, Dv].

    ``index`` covers at least the full pages; ``error`` is the relative error that is allowed. ``whole_pieces``: pieces
    of which most tokens are chosen are read whole.
    """
    n, end = len(keys), middle_end(len(keys))
    middle = torch.zeros(n, dtype=torch.bool, device=keys.device)
    middle[PAGE : end * PAGE] = True
    logits = queries @ keys.T
    if end == 1:
        return _combine(logits, values, ~middle, None, index, end)
    given = (logits[:, ~middle], values[~middle], index, slice(1, end), error)
    estimated, variance = _estimates(queries, end > FILTER_PAGES, *given)
    threshold, scale = _threshold(estimated, variance, *given)
    chosen = (estimated >= threshold[:, None, None]).any(0) | (variance >= MOST_NOISE).any(0)[:, None]
    if whole_pieces:
        for piece in torch.split(chosen, PIECE_PAGES):
            if 2 * int(piece.sum()) > piece.numel():
                piece[:] = True
    read = ~middle
    read[PAGE : end * PAGE] = chosen.flatten()
    result = _combine(logits, values, read, estimated, index, end)
    return replace(result, estimate=(scale * result.tail).sqrt())


def _estimates(
    queries: Tensor, filtered: bool, logits: Tensor, values: Tensor, index: PageIndex, pages: slice, error: float
) -> tuple[Tensor, Tensor]:
    """Log weights of the middle's tokens [G, P, 64], and the variance that they leave open [G, P]; if ``filtered``, by
    the codes only where the means of pages tell that it may pay. ``logits`` and ``values`` are of the exact part."""
    estimated, variance = (x[:, pages] for x in log_weights(queries, index))
    if not filtered:
        return estimated, variance
    whole, within = (x[:, pages] for x in log_page_weights(queries, index))
    even = whole.unsqueeze(-1).expand(-1, -1, PAGE)
    threshold, _ = _threshold(even, within, logits, values, index, pages, error)
    kept = (whole + torch.expm1(within).log() >= math.log(FILTER_FACTOR) + threshold[:, None]).any(0)
    return torch.where(kept[:, None], estimated, even), torch.where(kept, variance, within)


def _threshold(
    estimated: Tensor, variance: Tensor, logits: Tensor, values: Tensor, index: PageIndex, pages: slice, error: float
) -> tuple[Tensor, Tensor]:
    """The log weight from which on a token is read [G], and what the unread share of the weights is to be multiplied
    with for the squared relative error [G].

    An unread token is wrong in two ways: its value is not the mean of its page (spread), and its weight is not what its
    code tells (noise), which pulls the result towards that mean.
    """
    total = torch.logsumexp(torch.cat([logits, estimated.flatten(1)], -1), -1)
    mass = (estimated - total[:, None, None]).exp().sum(-1)  # [G, P]
    tail = mass.sum(-1)
    rest = mass @ index.value_mean[pages]
    output = (logits - total[:, None]).exp() @ values + rest
    length2 = output.square().sum(-1)
    spread = mass @ index.spread[pages] / tail
    noise = (mass * torch.expm1(variance)).sum(-1) / tail
    squares = mass @ index.value_mean[pages].square().sum(-1)
    apart = ((squares - 2 * (rest * output).sum(-1)) / tail + length2).clamp(min=0.0)
    deviation = spread + noise * apart
    least = THRESHOLD_FACTOR * error**2 * length2 / (deviation * tail)
    return least.log() + total, least * deviation / length2


def _combine(
    logits: Tensor, values: Tensor, read: Tensor, estimated: Tensor | None, index: PageIndex, end: int
) -> Decoded:
    """Exact attention to the tokens read, and the means of the others' values for the rest."""
    exact = logits.masked_fill(~read, -math.inf)
    shift = exact.amax(-1, keepdim=True)
    weights = (exact - shift).exp()
    output, mass = weights @ values, weights.sum(-1)
    tail, longest = torch.zeros_like(mass), 0.0
    if estimated is not None:
        pages = slice(1, end)
        own = read[PAGE : end * PAGE].view(-1, PAGE)
        rest = ((estimated - shift.unsqueeze(-1)).exp() * ~own).sum(-1)  # [G, P]
        sums = (values[PAGE : end * PAGE].view(-1, PAGE, values.shape[-1]) * own.unsqueeze(-1)).sum(1)
        left = (~own).sum(-1, keepdim=True).clamp(min=1)
        output = output + rest @ ((PAGE * index.value_mean[pages] - sums) / left)
        tail, longest = rest.sum(-1), float(index.longest[pages].amax())
        mass = mass + tail
    output, tail = output / mass[:, None], tail / mass
    return Decoded(output, read, tail, torch.zeros_like(tail), 4 * tail * longest / output.norm(dim=-1))
