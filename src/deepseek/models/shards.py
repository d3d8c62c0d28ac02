"""Tensor parallelism: each process holds a share of every layer (Megatron-LM: Shoeybi et al. 2019, arXiv:1909.08053).

Heads and the inner columns of feed-forwards are divided, so that a layer needs two sums over the processes: behind the
attention's output and behind the feed-forward's. A share is a smaller model with a config of its own, built by the same
code as the whole. Embedding, norms and routers are in every process; the rows of the head are divided.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import Checkpoint
from deepseek.kernels.ops import Ops
from deepseek.kernels.page_index import IndexCache
from deepseek.kernels.paging import PagedLayout
from deepseek.layers.embedding import Head
from deepseek.layers.moe import FeedForward
from deepseek.models.decoder import Decoder, Mixer
from deepseek.models.registry import FAMILIES, architecture_of
from deepseek.models.weights import LoadProgress, WeightSource


@dataclass(frozen=True, slots=True)
class Share:
    """Process ``rank`` of ``size``."""

    rank: int
    size: int

    def part(self, count: int) -> tuple[int, int]:
        """First and end of this process's share of ``count`` things; the last process may get fewer."""
        each = -(-count // self.size)
        return min(self.rank * each, count), min((self.rank + 1) * each, count)


_DIVIDED_ROWS = re.compile(r".*\.(q_proj|q_b_proj|kv_b_proj|gate_proj|up_proj)\.(weight|bias)")
_KEY_VALUE_ROWS = re.compile(r".*\.[kv]_proj\.(weight|bias)")
_DIVIDED_COLUMNS = re.compile(r".*\.(o_proj|down_proj)\.weight")
_ADDED_ONCE = re.compile(r".*\.(o_proj|down_proj)\.bias")
_HEAD = "lm_head.weight"


class ShardedCheckpoint:
    """One process's share of a checkpoint, with the config of that smaller model.

    Raises ConfigurationError: the model cannot be divided by so many processes.
    """

    def __init__(self, checkpoint: Checkpoint, share: Share) -> None:
        self._whole = checkpoint
        self._share = share
        parsed = FAMILIES[architecture_of(checkpoint.config)].parse(checkpoint.config)
        self._kv_heads = _kv_heads(parsed)
        self.config: Mapping[str, Any] = {**checkpoint.config, **_divided(parsed, share, self._kv_heads)}
        self.shapes: Mapping[str, tuple[int, ...]] = {
            name: self._shape(name, shape) for name, shape in checkpoint.shapes.items()
        }

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        whole = self._whole.load(name, dtype)
        if _ADDED_ONCE.fullmatch(name) and self._share.rank:
            return torch.zeros_like(whole)
        cut = self._cut(name, whole.shape)
        return whole if cut is None else whole.narrow(cut[0], cut[1], cut[2] - cut[1])

    def quantized(self, name: str) -> None:
        """Nothing: shares are floats."""

    def close(self) -> None:
        self._whole.close()

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        cut = self._cut(name, shape)
        if cut is None:
            return shape
        axis, start, stop = cut
        return (*shape[:axis], stop - start, *shape[axis + 1 :])

    def _cut(self, name: str, shape: tuple[int, ...]) -> tuple[int, int, int] | None:
        """(axis, first, end) of what this process takes of a tensor; None for all of it."""
        if _DIVIDED_COLUMNS.fullmatch(name):
            return 1, *self._share.part(shape[1])
        if _DIVIDED_ROWS.fullmatch(name) or name == _HEAD:
            return 0, *self._share.part(shape[0])
        if _KEY_VALUE_ROWS.fullmatch(name):
            assert self._kv_heads is not None
            each = shape[0] // self._kv_heads
            count = max(1, self._kv_heads // self._share.size)
            first = self._share.rank * self._kv_heads // self._share.size
            return 0, first * each, (first + count) * each
        return None


def _kv_heads(parsed: Any) -> int | None:
    """Heads of keys and values; None for MLA, whose latents all processes keep."""
    return getattr(_dense_part(parsed), "kv_heads", None)


def _dense_part(parsed: Any) -> Any:
    """Configs of experts on dense attention hold the dense config."""
    return getattr(parsed, "dense", parsed)


def _divided(parsed: Any, share: Share, kv_heads: int | None) -> dict[str, Any]:
    """The keys of a share's config that differ from the whole's."""
    dense = _dense_part(parsed)
    attention = getattr(dense, "attention", dense)
    counts = {"num_attention_heads": attention.heads, "intermediate_size": dense.intermediate}
    if expert := getattr(parsed, "expert_intermediate", None):
        counts["moe_intermediate_size"] = expert
    wrong = [f"{name} {count}" for name, count in counts.items() if count % share.size]
    if kv_heads is not None and kv_heads % share.size and share.size % kv_heads:
        wrong.append(f"num_key_value_heads {kv_heads}")
    if wrong:
        raise ConfigurationError(
            f"tensor_parallel_size {share.size} does not divide this model's {', '.join(wrong)}. Choose another size."
        )
    keys: dict[str, Any] = {name: count // share.size for name, count in counts.items()}
    if kv_heads is None:
        return keys | {"num_key_value_heads": keys["num_attention_heads"]}
    return keys | {"num_key_value_heads": max(1, kv_heads // share.size), "head_dim": dense.head_dim}


class _ShardedSource(WeightSource):
    """Of the head, the rows of this process."""

    def __init__(self, share: Share, checkpoint: Checkpoint, *rest: Any) -> None:
        super().__init__(checkpoint, *rest)
        self._share = share

    def head(self, embedding: Any | None, vocab: int, hidden: int) -> Any:
        start, stop = self._share.part(vocab)
        if embedding is not None:
            return self._pack(embedding[start:stop])
        return self.matrix([_HEAD], [stop - start], hidden)


class _SummedMixer:
    """A share of an attention, its result summed over all processes."""

    def __init__(self, own: Mixer) -> None:
        self._own = own

    def __call__(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        layout: PagedLayout,
        key_cache: Tensor,
        value_cache: Tensor | None,
        index: IndexCache | None = None,
    ) -> Tensor:
        return _summed(self._own(x, rotation, layout, key_cache, value_cache, index))


def _summed_feed_forward(own: FeedForward) -> Callable[[Tensor], Tensor]:
    return lambda x: _summed(own(x))


def _summed(x: Tensor) -> Tensor:
    dist.all_reduce(x)
    return x


class _GatheredHead(Head):
    """Logits of all processes' rows side by side."""

    def __init__(self, own: Head, ops: Ops, share: Share, vocab: int) -> None:
        super().__init__(ops, own.weight, own.softcap)
        self._size = share.size
        self._vocab = vocab
        self._most = -(-vocab // share.size)

    def __call__(self, x: Tensor) -> Tensor:
        own = super().__call__(x)
        padded = own.new_zeros(own.shape[0], self._most)
        padded[:, : own.shape[1]] = own
        parts = [torch.empty_like(padded) for _ in range(self._size)]
        dist.all_gather(parts, padded)
        return torch.cat(parts, dim=1)[:, : self._vocab]


def load_share(
    checkpoint: Checkpoint,
    share: Share,
    *,
    ops: Ops,
    dtype: torch.dtype,
    device: torch.device,
    progress: LoadProgress | None = None,
) -> Decoder:
    """This process's share of the model. Its forwards meet those of the other processes, which must be the same, in
    torch's default process group.

    Raises as :func:`deepseek.models.registry.load_model`, and ConfigurationError for a model that cannot be divided.
    """
    part = ShardedCheckpoint(checkpoint, share)
    family = FAMILIES[architecture_of(part.config)]
    source = _ShardedSource(share, part, dtype, device, ops.pack_linear, progress)
    decoder = family.build(family.parse(part.config), source, ops)
    decoder.layers = tuple(
        replace(
            layer,
            attention=_SummedMixer(layer.attention),
            feed_forward=_summed_feed_forward(layer.feed_forward),
        )
        for layer in decoder.layers
    )
    decoder.head = _GatheredHead(decoder.head, ops, share, decoder.vocab_size)
    return decoder
