"""Taking tensors out of a checkpoint: named, shape-checked, finite, fused where a layer wants one matrix."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek.errors import CheckpointError
from deepseek.hub.checkpoint import Checkpoint

LoadProgress = Callable[[int, int], None]
"""Called with (tensors loaded, tensors in the checkpoint)."""


class WeightSource:
    """The checkpoint's tensors in one dtype on one device.

    Every method raises CheckpointError, naming the tensor, when it is missing, has another shape than the config
    implies, or holds NaN or infinity.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        dtype: torch.dtype,
        device: torch.device,
        pack: Callable[[Tensor], Any],
        progress: LoadProgress | None = None,
    ) -> None:
        """``pack`` turns a plain matrix into what the kernels want: :meth:`deepseek.kernels.ops.Ops.pack_linear`."""
        self._checkpoint = checkpoint
        self.dtype = dtype
        self.device = device
        self._pack = pack
        self._progress = progress
        self._used: set[str] = set()
        self.bytes = 0

    def has(self, name: str) -> bool:
        return name in self._checkpoint.shapes

    def tensor(self, name: str, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
        """One tensor; ``dtype`` other than the model's where a layer needs it (routers are fp32)."""
        value = self._load(name, tuple(shape), dtype or self.dtype).to(self.device)
        self.bytes += value.nbytes
        return value

    def optional(self, name: str, shape: Sequence[int], wanted: bool) -> Tensor | None:
        return self.tensor(name, shape) if wanted else None

    def fused(self, names: Sequence[str], rows: Sequence[int], columns: int | None = None) -> Tensor:
        """Tensors ``[rows[i], columns]`` (``[rows[i]]`` without columns) on top of each other, in one allocation."""
        rest = () if columns is None else (columns,)
        result = torch.empty(sum(rows), *rest, dtype=self.dtype, device=self.device)
        start = 0
        for name, count in zip(names, rows, strict=True):
            result[start : start + count] = self._load(name, (count, *rest), self.dtype)
            start += count
        self.bytes += result.nbytes
        return result

    def matrix(self, names: Sequence[str], rows: Sequence[int], columns: int, *, gated: bool = False) -> Any:
        """Matrices of the same input on top of each other, as the kernels want them. ``gated``: they are gate and up,
        which kernels may store in turns."""
        return self._pack(self.fused(names, rows, columns))

    def embedding(self, name: str, vocab: int, hidden: int) -> Any:
        """The table of token embeddings."""
        return self.tensor(name, (vocab, hidden))

    def head(self, embedding: Any | None, vocab: int, hidden: int) -> Any:
        """The output matrix: the ``embedding`` where they are tied, else the checkpoint's own."""
        if embedding is not None:
            return self._pack(embedding)
        return self.matrix(["lm_head.weight"], [vocab], hidden)

    def stacked(self, names: Iterable[Sequence[str]], rows: int, columns: int) -> Any:
        """Per expert one fused matrix: [len(names), len(group) * rows, columns], as the kernels want it. Groups of two
        are gate and up."""
        groups = list(names)
        result = torch.empty(len(groups), len(groups[0]) * rows, columns, dtype=self.dtype, device=self.device)
        for index, group in enumerate(groups):
            for part, name in enumerate(group):
                result[index, part * rows : (part + 1) * rows] = self._load(name, (rows, columns), self.dtype)
        self.bytes += result.nbytes
        return result

    def latent_up(self, name: str, heads: int, nope: int, value_dim: int, rank: int) -> tuple[Any, Any]:
        """What expands MLA's latents, [heads * (nope + value_dim), rank] in the checkpoint: that to keys [heads, nope,
        rank] and that to values [heads, value_dim, rank], as the kernels want them."""
        up = self.tensor(name, (heads * (nope + value_dim), rank)).view(heads, nope + value_dim, rank)
        return up[:, :nope], up[:, nope:]

    def finish(self, ignore: Iterable[str] = ()) -> None:
        """Refuse a checkpoint with tensors the model did not ask for, but for those that match ``ignore`` patterns."""
        patterns = [re.compile(pattern) for pattern in (r".*rotary_emb\.inv_freq", *ignore)]
        unused = sorted(
            name
            for name in self._checkpoint.shapes
            if name not in self._used and not any(pattern.fullmatch(name) for pattern in patterns)
        )
        if unused:
            more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
            raise CheckpointError(
                f"the checkpoint has tensors that this architecture does not use: {', '.join(unused[:3])}{more}. "
                "Its config does not describe the model that was saved."
            )

    def _check(self, name: str, shape: tuple[int, ...]) -> None:
        actual = self._checkpoint.shapes.get(name)
        if actual is None:
            raise CheckpointError(f"the checkpoint has no tensor {name!r}; expected one of shape {list(shape)}.")
        if tuple(actual) != shape:
            raise CheckpointError(f"tensor {name!r} has shape {list(actual)}; the config implies {list(shape)}.")

    def _loaded(self, name: str) -> None:
        self._used.add(name)
        if self._progress is not None:
            self._progress(len(self._used), len(self._checkpoint.shapes))

    def _load(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        self._check(name, shape)
        value = self._checkpoint.load(name, dtype)
        if tuple(value.shape) != shape:
            raise CheckpointError(f"tensor {name!r} was read with shape {list(value.shape)} instead of {list(shape)}.")
        # Extremes carry NaN and infinity along: one pass, many times faster than isfinite.
        if not all(torch.isfinite(extreme) for extreme in torch.aminmax(value)):
            raise CheckpointError(f"tensor {name!r} holds NaN or infinity; a damaged file or too narrow a dtype.")
        self._loaded(name)
        return value
