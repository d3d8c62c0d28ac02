"""From logits to tokens, for all rows of a step at once: the torch version, to which the native one is held.

Order of operations: temperature, min-p, top-k, top-p. One uniform number per row decides by inverting the cumulative
distribution of what is kept: by rising token id where nothing is filtered, else by falling probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

_CANDIDATES = 1024
_MIN_TEMPERATURE = 1e-6  # as good as greedy; smaller ones would become 0 in fp32


class Choice(NamedTuple):
    """How one row's token is chosen.

    Attributes:
        temperature: 0 takes the likeliest token, and nothing else counts.
        top_k: keep so many of the likeliest; 0 keeps all.
        top_p: keep the likeliest until they have this share of the mass that min-p and top-k left.
        min_p: keep tokens at least this fraction as likely as the likeliest.
        draw: uniform number in [0, 1).
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    draw: float

    @property
    def filtered(self) -> bool:
        return bool(self.top_k or self.top_p < 1.0 or self.min_p)


GREEDY = Choice(0.0, 0, 1.0, 0.0, 0.0)


NO_TOKEN = -1
"""In the place of the token of a row that holds NaN or infinity."""


def choose_tokens(logits: Tensor, choices: Sequence[Choice]) -> Tensor:
    """A token for each row of fp32 ``logits`` [R, vocab]: int64 [R], :data:`NO_TOKEN` where a row holds NaN or
    infinity."""
    finite = finite_rows(logits)
    tokens = torch.where(finite, logits.argmax(dim=-1), NO_TOKEN)
    drawn = [row for row, good in enumerate(finite.tolist()) if good and choices[row].temperature]
    if drawn:
        own = [choices[row] for row in drawn]
        where = torch.tensor(drawn, device=logits.device)
        rows = logits[where]
        temperature = _column([max(choice.temperature, _MIN_TEMPERATURE) for choice in own], rows)
        probabilities = torch.softmax((rows - rows.amax(dim=-1, keepdim=True)) / temperature, dim=-1)
        tokens[where] = torch.tensor(_draw(probabilities, own), device=logits.device)
    return tokens


def listed(tokens: Tensor) -> list[int | None]:
    """Chosen tokens as the host has them: None for :data:`NO_TOKEN`."""
    return [None if token == NO_TOKEN else token for token in tokens.tolist()]


def finite_rows(logits: Tensor) -> Tensor:
    """Which rows [R, vocab] hold numbers only: bool [R]."""
    if logits.device.type == "cpu":  # where asking for the result costs no waiting
        # A finite sum proves it in one pass; an infinite one may be overflow.
        finite = torch.isfinite(logits.sum(dim=-1))
        if finite.all():
            return finite
    return torch.isfinite(logits).all(dim=-1)


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).to(like.dtype)[:, None]


def _draw(probabilities: Tensor, choices: Sequence[Choice]) -> list[int]:
    """One token per row of ``probabilities`` [R, vocab]."""
    draws = torch.tensor([choice.draw for choice in choices], dtype=torch.float64, device=probabilities.device)[:, None]
    filtered = [i for i, choice in enumerate(choices) if choice.filtered]
    plain = [i for i, choice in enumerate(choices) if not choice.filtered]
    tokens = [0] * len(choices)
    if plain:
        rows = torch.tensor(plain, device=probabilities.device)
        for i, token in zip(plain, _invert(probabilities[rows], draws[rows]).tolist(), strict=True):
            tokens[i] = token
    if filtered:
        chosen = _draw_filtered(probabilities, filtered, choices, draws)
        for i, token in zip(filtered, chosen, strict=True):
            tokens[i] = token
    return tokens


def _draw_filtered(probabilities: Tensor, indices: list[int], choices: Sequence[Choice], draws: Tensor) -> list[int]:
    """Rows with min-p, top-k or top-p. Sorting a whole vocabulary is slow and rarely needed: try the likeliest
    candidates first, and sort everything only where the kept set may reach beyond them."""
    rows = torch.tensor(indices, device=probabilities.device)
    tokens = torch.full((len(indices),), -1, dtype=torch.int64, device=probabilities.device)
    vocab = probabilities.shape[1]
    todo = torch.arange(len(indices), device=probabilities.device)
    for width in dict.fromkeys((min(_CANDIDATES, vocab), vocab)):
        options = [choices[indices[i]] for i in todo.tolist()]
        values, ids = probabilities[rows[todo]].topk(width, dim=-1)
        kept, certain = _keep(values, options, vocab)
        picked = _invert(torch.where(kept, values, 0.0), draws[rows[todo]])
        tokens[todo] = ids.gather(1, picked[:, None])[:, 0]
        todo = todo[~certain]
        if not len(todo):
            break
    return [int(token) for token in tokens.tolist()]


def _keep(values: Tensor, choices: Sequence[Choice], vocab: int) -> tuple[Tensor, Tensor]:
    """Which of the ``values`` [R, width] (descending probabilities) are kept, and for which rows [R] that is certain,
    because no token outside of them could be kept too."""
    width = values.shape[1]
    rank = torch.arange(width, device=values.device)
    top_k = torch.tensor([min(c.top_k or vocab, vocab) for c in choices], device=values.device)[:, None]
    top_p = _column([c.top_p for c in choices], values)
    min_p = _column([c.min_p for c in choices], values)
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
