"""From the hidden states of a text's tokens to one vector."""

from __future__ import annotations

import torch
from torch import Tensor

from deepseek.engine.events import EmbedRequest, Pooling

_SMALLEST_NORM = 1e-12


class Pooler:
    """Takes hidden states as the chunks of a text are computed.

    Sums are fp64, so that how a text was cut into chunks does not show in the fp32 result.
    """

    def __init__(self, pooling: Pooling, *, normalize: bool, dimensions: int | None) -> None:
        self._pooling = pooling
        self._normalize = normalize
        self._dimensions = dimensions
        self._sum: Tensor | None = None
        self._count = 0

    @classmethod
    def of(cls, request: EmbedRequest) -> Pooler:
        return cls(request.pooling, normalize=request.normalize, dimensions=request.dimensions)

    def positions(self, first: int, count: int, length: int) -> range:
        """Of the positions ``first`` to ``first + count`` in a text of ``length`` tokens, those that are looked at."""
        wanted = {"mean": range(length), "last": range(length - 1, length), "cls": range(1)}[self._pooling]
        start = max(first, wanted.start)
        return range(start, max(start, min(first + count, wanted.stop)))

    def add(self, hidden: Tensor) -> None:
        """Hidden states [n, dim] of the next positions that are looked at."""
        if len(hidden):
            part = hidden.double().sum(dim=0)
            self._sum = part if self._sum is None else self._sum + part
            self._count += len(hidden)

    def clear(self) -> None:
        """Begin again: the text is computed anew."""
        self._sum, self._count = None, 0

    def vector(self) -> bytes | None:
        """The text's vector as in :class:`deepseek.engine.events.EmbedEvent`; None if a hidden state was not finite."""
        assert self._sum is not None, "the text has not been computed"
        vector = self._sum / self._count
        if not torch.isfinite(vector).all():
            return None
        vector = vector[: self._dimensions]
        if self._normalize:
            vector = vector / vector.norm().clamp_min(_SMALLEST_NORM)
        data: bytes = vector.cpu().numpy().astype("<f4").tobytes()
        return data
