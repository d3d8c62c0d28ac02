"""What is known of a full page before its tokens are read.

Keys are their page's mean plus alpha_t R^T sign(R (k_t - mean)): one bit per dimension and one scale per token.
Queries are scored against it in full precision, as in RaBitQ (Gao and Long, SIGMOD 2024, arXiv:2405.12497), but with
the scale of least squares instead of the unbiased one: it is E[q k | code] that is wanted, so that E[exp(q k) | code]
follows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from deepseek.attention.rotation import rotate

PAGE = 64
MOST_VARIANCE = 3.0
"""Of log weights within a page, as far as its means are believed."""


@dataclass(frozen=True, slots=True)
class PageIndex:
    """The index of P pages of one KV head.

    Attributes:
        key_mean: fp32 [P, D], rounded to int8 steps.
        codes: fp32 [P, 64, D] of 1 and -1, in the rotated space.
        alpha: fp32 [P, 64], rounded to uint8 steps.
        noise: fp32 [P], mean squared error of a code, per dimension.
        variance: fp32 [P], mean squared distance of a key from the mean, per dimension.
        value_mean: fp32 [P, Dv], rounded to int8 steps.
        spread: fp32 [P], mean squared distance of a value from the mean.
        longest: fp32 [P], the largest norm of a value.
    """

    key_mean: Tensor
    codes: Tensor
    alpha: Tensor
    noise: Tensor
    variance: Tensor
    value_mean: Tensor
    spread: Tensor
    longest: Tensor


def build_index(keys: Tensor, values: Tensor) -> PageIndex:
    """The index of fp32 ``keys`` [P * 64, D] and ``values`` [P * 64, Dv] of one KV head."""
    keys, values = (x.reshape(len(x) // PAGE, PAGE, x.shape[-1]) for x in (keys, values))
    key_mean, value_mean = _rounded(keys.mean(1), 127), _rounded(values.mean(1), 127)
    apart = keys - key_mean.unsqueeze(1)
    turned = rotate(apart)
    alpha = turned.abs().mean(-1)
    squares = apart.square().mean(-1)
    return PageIndex(
        key_mean=key_mean,
        codes=torch.where(turned >= 0, 1.0, -1.0),
        alpha=_rounded(alpha, 255),
        noise=(squares - alpha.square()).mean(-1).clamp(min=0.0),
        variance=squares.mean(-1),
        value_mean=value_mean,
        spread=(values - value_mean.unsqueeze(1)).square().sum(-1).mean(-1),
        longest=values.norm(dim=-1).amax(-1),
    )


def _rounded(x: Tensor, steps: int) -> Tensor:
    """Rows rounded to ``steps`` steps of their largest magnitude."""
    scale = x.abs().amax(-1, keepdim=True) / steps
    return torch.where(scale > 0, torch.round(x / scale) * scale, x)


def log_weights(queries: Tensor, index: PageIndex) -> tuple[Tensor, Tensor]:
    """For scaled ``queries`` [G, D]: log E[exp(q k_t) | code] of all tokens [G, P, 64], and the variance of q k_t that
    the codes leave open, [G, P]."""
    norms = queries.square().sum(-1)
    variance = (norms[:, None] * index.noise).clamp(max=MOST_VARIANCE)
    base = queries @ index.key_mean.T
    scores = torch.einsum("gd,ptd->gpt", rotate(queries), index.codes) * index.alpha
    return base.unsqueeze(-1) + scores + variance.unsqueeze(-1) / 2, variance


def log_page_weights(queries: Tensor, index: PageIndex) -> tuple[Tensor, Tensor]:
    """By the means alone: log of a page's mean weight [G, P], as if keys were normally distributed around their mean,
    and the variance of log weights within it [G, P]."""
    variance = (queries.square().sum(-1)[:, None] * index.variance).clamp(max=MOST_VARIANCE)
    return queries @ index.key_mean.T + variance / 2, variance
