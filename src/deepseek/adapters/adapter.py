"""What an adapter is once it is read, and what a model offers to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Place = Literal["qkv", "output", "gate_up", "down"]
Kind = Literal["lora", "prompt", "prefix"]


@dataclass(frozen=True, slots=True)
class Site:
    """A linear layer that an adapter may change.

    Attributes:
        layer: number of the decoder's layer.
        place: the matrix of the layer that it is, or is a part of.
        column: its first output among those of that matrix; for gate and up 0 and the number of gates.
        outputs, inputs: its size.
    """

    layer: int
    place: Place
    column: int
    outputs: int
    inputs: int


@dataclass(frozen=True, slots=True)
class LowRankUpdate:
    """``y += scale * b @ (a @ x)`` (LoRA: Hu et al. 2021, arXiv:2106.09685); fp32 ``a`` [rank, in] and ``b`` [out,
    rank]. With ``magnitude`` [out] the rows of the sum of the matrix and its update get these lengths (DoRA: Liu et al.
    2024, arXiv:2402.09353)."""

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Prefix:
    """Keys and values that stand before every prompt, as they lie in the cache (prefix tuning: Li & Liang 2021,
    arXiv:2101.00190); fp32 [layers, tokens, kv_heads * head_dim]."""

    keys: Tensor
    values: Tensor


@dataclass(frozen=True, slots=True)
class Adapter:
    """One adapter's weights.

    Attributes:
        kind: ``lora`` changes linear layers; ``prompt`` puts vectors before a prompt (prompt tuning, P-Tuning),
            ``prefix`` keys and values.
        digest: of its files; equal digests mean equal results.
        base_model: what it was trained on, as its files say; may be empty.
        updates: of linear layers, by the layers' names.
        vectors: fp32 [tokens, hidden], the inputs of the tokens before a prompt; None for other kinds.
        prefix: None for other kinds.
    """

    kind: Kind
    digest: str
    base_model: str = ""
    updates: Mapping[str, LowRankUpdate] = field(default_factory=dict)
    vectors: Tensor | None = None
    prefix: Prefix | None = None

    @property
    def rank(self) -> int:
        """The highest of its updates; 0 for other kinds."""
        return max((len(update.a) for update in self.updates.values()), default=0)

    @property
    def length(self) -> int:
        """Tokens that it puts before a prompt."""
        if self.vectors is not None:
            return len(self.vectors)
        return 0 if self.prefix is None else self.prefix.keys.shape[1]


@dataclass(frozen=True, slots=True)
class Host:
    """What a model offers to adapters.

    Attributes:
        sites: its linear layers, by the names that checkpoints give them.
        hidden: width of a token's vector.
        layers: number of layers.
        cache_width: keys of a token in a layer, over all heads, and as many values; None where layers differ or keep
            something else (latents).
    """

    sites: Mapping[str, Site]
    hidden: int
    layers: int
    cache_width: int | None
