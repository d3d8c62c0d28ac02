"""Runs a model without the engine: pages, layouts and batches by hand."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType

import torch
from torch import Tensor

from deepseek.kernels.paging import PagedLayout
from deepseek.models.base import Batch, KVCache, Model


class Driver:
    """A cache and the sequences in it. ``shuffle`` hands pages out in random order, so that contexts are scattered."""

    def __init__(self, model: Model, *, page_size: int = 4, num_pages: int = 256, shuffle: bool = False) -> None:
        self.model = model
        self.page_size = page_size
        self.cache = model.new_cache(num_pages, page_size)
        if isinstance(self.cache, KVCache):
            for layer in self.cache.layers:
                for tensor in layer.tensors:
                    if tensor.is_floating_point():
                        tensor.fill_(float("nan"))  # whoever reads what was not written shows
        self._free = list(range(num_pages))
        if shuffle:
            random.Random(0).shuffle(self._free)
        self._pages: dict[int, list[int]] = {}
        self._lengths: dict[int, int] = {}

    def step(
        self,
        chunks: Sequence[tuple[int, Sequence[int]]],
        *,
        last_only: bool = False,
        rows: Sequence[int] | None = None,
        narrow_rows: int = 0,
        adapters: Mapping[int, int] = MappingProxyType({}),
    ) -> list[Tensor]:
        """Append tokens to sequences, in one forward; returns per chunk the logits of its rows (or its last row), or
        of the given ``rows`` of the batch as one tensor. The first ``narrow_rows`` rows are narrow. ``adapters`` has
        the numbers of sequences' adapters."""
        starts, tokens, positions, slots = [0], [], [], []
        for sequence, chunk in chunks:
            pages, length = self._pages.setdefault(sequence, []), self._lengths.get(sequence, 0)
            for position in range(length, length + len(chunk)):
                if position // self.page_size == len(pages):
                    pages.append(self._free.pop(0))
                slots.append(pages[position // self.page_size] * self.page_size + position % self.page_size)
                positions.append(position)
            tokens.extend(chunk)
            starts.append(len(tokens))
            self._lengths[sequence] = length + len(chunk)
        layout = PagedLayout(
            page_size=self.page_size,
            query_starts=tuple(starts),
            context_lens=tuple(self._lengths[sequence] for sequence, _ in chunks),
            pages=tuple(tuple(self._pages[sequence]) for sequence, _ in chunks),
            write_slots=torch.tensor(slots),
        )
        wanted = [end - 1 for end in starts[1:]] if last_only else rows
        selected = None if wanted is None else torch.tensor(wanted, dtype=torch.int64)
        with torch.inference_mode():
            segments = tuple(
                (adapters[sequence], start, end)
                for (sequence, _), (start, end) in zip(chunks, pairwise(starts), strict=True)
                if sequence in adapters
            )
            batch = Batch(
                torch.tensor(tokens), torch.tensor(positions), layout, selected, narrow_rows, segments=segments
            )
            logits = self.model.forward(batch, self.cache).clone()
        if rows is not None:
            return [logits]
        if last_only:
            return list(logits.split(1))
        return list(logits.split([len(chunk) for _, chunk in chunks]))

    def greedy(self, prompts: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """``count`` greedy tokens after each prompt; the prompts run together."""
        chunks = [(index, list(prompt)) for index, prompt in enumerate(prompts)]
        answers: list[list[int]] = [[] for _ in prompts]
        for _ in range(count):
            logits = self.step(chunks, last_only=True)
            picked = [int(row.argmax()) for row in logits]
            for answer, token in zip(answers, picked, strict=True):
                answer.append(token)
            chunks = [(index, [token]) for index, token in enumerate(picked)]
        return answers
