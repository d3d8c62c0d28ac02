"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864) and the ways checkpoints stretch it.

``linear``: position interpolation (Chen et al. 2023, arXiv:2306.15595). ``llama3``: Llama 3.1's piecewise scaling.
``yarn``: Peng et al. 2023, arXiv:2309.00071, with DeepSeek's mscale. ``dynamic`` (NTK by sequence length) equals the
default as long as no sequence is longer than the trained context, which is where we stop. ``factors`` is how GGUF
files spell out any of them: one divisor per frequency.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_TABLE_BLOCK = 16_384  # positions


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """One kind of rotation.

    Attributes:
        dim: rotated dimensions of a head.
        theta: base of the wavelengths.
        kind: ``default``, ``linear``, ``dynamic``, ``llama3``, ``yarn`` or ``factors``.
        factor: how many times the trained context is stretched.
        original_context: trained context (llama3, yarn).
        low_freq_factor, high_freq_factor: llama3's bounds.
        beta_fast, beta_slow, truncate: yarn's bounds, and whether they are rounded to whole dimensions.
        attention_factor: yarn's factor on cos and sin; None derives it.
        mscale, mscale_all_dim: DeepSeek's yarn factors.
        factors: dim / 2 divisors of the frequencies, for ``factors``.
    """

    dim: int
    theta: float
    kind: str = "default"
    factor: float = 1.0
    original_context: int = 0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 1.0
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    factors: tuple[float, ...] = ()

    @property
    def amplitude(self) -> float:
        """The factor on cos and sin."""
        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return yarn_mscale(self.factor, self.mscale) / yarn_mscale(self.factor, self.mscale_all_dim)
        return yarn_mscale(self.factor, 1.0)

    @property
    def softmax_factor(self) -> float:
        """The factor on the softmax scale (DeepSeek's yarn)."""
        if self.kind != "yarn" or not self.mscale_all_dim:
            return 1.0
        return yarn_mscale(self.factor, self.mscale_all_dim) ** 2


def yarn_mscale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1.0 else 0.1 * mscale * math.log(factor) + 1.0


def inverse_frequencies(config: RopeConfig) -> Tensor:
    """Radians per position, fp32 [dim / 2]."""
    exponents = torch.arange(0, config.dim, 2, dtype=torch.float32) / config.dim
    base = 1.0 / (config.theta**exponents)
    if config.kind == "linear":
        return base / config.factor
    if config.kind == "factors":
        return base / torch.tensor(config.factors, dtype=torch.float32)
    if config.kind == "llama3":
        return _llama3(base, config)
    if config.kind == "yarn":
        return _yarn(base, config)
    return base


def _llama3(base: Tensor, config: RopeConfig) -> Tensor:
    """Short waves stay, long ones are stretched, those between are blended."""
    turns = config.original_context * base / (2 * math.pi)  # turns a wave makes in the trained context
    blend = (turns - config.low_freq_factor) / (config.high_freq_factor - config.low_freq_factor)
    blend = blend.clamp(0.0, 1.0)
    return (1 - blend) * base / config.factor + blend * base


def _yarn(base: Tensor, config: RopeConfig) -> Tensor:
    def dimension(turns: float) -> float:
        """The (fractional) pair that makes this many turns in the trained context."""
        ratio = config.original_context / (turns * 2 * math.pi)
        return config.dim * math.log(ratio) / (2 * math.log(config.theta))

    low, high = dimension(config.beta_fast), dimension(config.beta_slow)
    if config.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    if low == high:
        high += 0.001
    stretch = ((torch.arange(config.dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0.0, 1.0)
    return base / config.factor * stretch + base * (1 - stretch)


class Rotary:
    """Computes a step's angles once, for all layers that share them."""

    def __init__(self, config: RopeConfig, device: torch.device) -> None:
        self.config = config
        self._frequencies = inverse_frequencies(config).to(device, torch.float64)
        self._amplitude = config.amplitude

    def __call__(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """(cos, sin) fp32 [T, dim / 2] of int64 positions [T].

        The angles are fp64: at a million radians those of fp32 are 0.06 apart.
        """
        angles = positions.to(torch.float64).unsqueeze(1) * self._frequencies
        return (angles.cos() * self._amplitude).float(), (angles.sin() * self._amplitude).float()

    def table(self, length: int) -> tuple[Tensor, Tensor]:
        """(cos, sin) of the first ``length`` positions, made in blocks so that the fp64 angles take little room."""
        cos, sin = torch.empty(2, length, self.config.dim // 2)
        for start in range(0, length, _TABLE_BLOCK):
            stop = min(start + _TABLE_BLOCK, length)
            cos[start:stop], sin[start:stop] = self(torch.arange(start, stop))
        return cos, sin
