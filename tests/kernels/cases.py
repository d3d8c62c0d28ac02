"""Inputs that every backend must treat as the reference does, and the comparison."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek.kernels.paging import PagedLayout

PAGE = 4


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


@dataclass(frozen=True)
class Ragged:
    """(cached tokens, new tokens) per sequence; ``scattered`` puts every other page elsewhere."""

    sequences: tuple[tuple[int, int], ...]
    scattered: bool = False
    page: int = PAGE

    def layout(self) -> PagedLayout:
        """Page 0 belongs to nobody."""
        counts = [-(-(cached + new) // self.page) for cached, new in self.sequences]
        numbers = list(range(1, 1 + sum(counts)))
        if self.scattered:
            random.Random(0).shuffle(numbers)
        pages, starts, slots = [], [0], []
        for (cached, new), count in zip(self.sequences, counts, strict=True):
            own, numbers = numbers[:count], numbers[count:]
            pages.append(tuple(own))
            starts.append(starts[-1] + new)
            slots += [own[p // self.page] * self.page + p % self.page for p in range(cached, cached + new)]
        return PagedLayout(
            page_size=self.page,
            query_starts=tuple(starts),
            context_lens=tuple(cached + new for cached, new in self.sequences),
            pages=tuple(pages),
            write_slots=torch.tensor(slots),
        )

    @property
    def rows(self) -> int:
        return sum(new for _, new in self.sequences)

    @property
    def slots(self) -> int:
        return self.page * (1 + sum(-(-(cached + new) // self.page) for cached, new in self.sequences))


RAGGED = {
    "one token": Ragged(((0, 1),)),
    "one page less one": Ragged(((0, PAGE - 1),)),
    "one page": Ragged(((0, PAGE),)),
    "one page and one": Ragged(((0, PAGE + 1),)),
    "decode at a page's end": Ragged(((PAGE - 1, 1),)),
    "decode at a page's start": Ragged(((PAGE, 1),)),
    "decode batch": Ragged(((3, 1), (0, 1), (17, 1), (8, 1))),
    "scattered decode batch": Ragged(((30, 1), (5, 1), (17, 1)), scattered=True),
    "chunk behind a prefix": Ragged(((PAGE, 7),)),
    "mixed": Ragged(((9, 1), (0, 13), (6, 6), (21, 1))),
    "scattered mixed": Ragged(((9, 1), (0, 13), (6, 6), (21, 1), (25, 3)), scattered=True),
    "long": Ragged(((0, 150), (130, 70)), scattered=True, page=16),
}

# heads, kv_heads, key_dim, value_dim
HEADS = [(4, 4, 8, 8), (6, 2, 16, 16), (4, 1, 8, 8), (3, 3, 20, 12), (1, 1, 64, 64)]


def assert_same(actual: Tensor, expected: Tensor, *, tolerance: float = 2e-5) -> None:
    """NaN and infinity in the same places, then the error, then the direction; the worst element is named."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    actual, expected = actual.double(), expected.double()
    for name, test in (("NaN", torch.isnan), ("inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = (test(actual) != test(expected)).nonzero()
        assert not len(wrong), f"{name} differs at {wrong[0].tolist()}"
    finite = torch.isfinite(expected)
    error = torch.where(finite, (actual - expected).abs(), 0.0)
    bound = tolerance * (1.0 + torch.where(finite, expected.abs(), 0.0))
    if error.numel() and bool((error > bound).any()):
        worst = int((error - bound).argmax())
        where = [int(i) for i in torch.unravel_index(torch.tensor(worst), error.shape)]
        raise AssertionError(f"worst at {where}: {actual.flatten()[worst]} for {expected.flatten()[worst]}")
    a, b = actual[finite], expected[finite]
    if b.norm() > 0:
        assert 1 - float(a @ b / (a.norm() * b.norm())) < tolerance
