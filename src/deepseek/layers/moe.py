"""Mixture of experts: who computes a token, and what comes out."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek.kernels.ops import Ops
from deepseek.layers.linear import GatedMLP

SCORINGS = ("softmax", "sigmoid")


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How experts are chosen.

    Attributes:
        top_k: experts per token.
        scoring: ``softmax`` or ``sigmoid`` of the router's logits.
        groups: experts stand in this many equal groups; 1 means no grouping.
        top_groups: groups a token may use.
        group_score: a group is as good as its ``max`` (DeepSeek-V2) or the sum of its two best, ``top2`` (V3).
        normalize: chosen weights are divided by their sum.
        scale: and multiplied by this.
    """

    top_k: int
    scoring: str = "softmax"
    groups: int = 1
    top_groups: int = 1
    group_score: str = "max"
    normalize: bool = False
    scale: float = 1.0


def route(logits: Tensor, routing: Routing, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose experts: logits fp32 [T, experts] -> (ids int64 [T, top_k], weights fp32 [T, top_k]).

    ``bias`` fp32 [experts] counts in the choice, not in the weights (auxiliary-loss-free balancing, DeepSeek-V3,
    arXiv:2412.19437). Group limits as in DeepSeek-V2, arXiv:2405.04434.
    """
    scores = logits.softmax(dim=-1) if routing.scoring == "softmax" else logits.sigmoid()
    choice = scores if bias is None else scores + bias
    if routing.groups > 1:
        grouped = choice.view(choice.shape[0], routing.groups, -1)
        quality = grouped.amax(dim=-1) if routing.group_score == "max" else grouped.topk(2, dim=-1).values.sum(dim=-1)
        allowed = torch.zeros_like(quality, dtype=torch.bool)
        allowed.scatter_(1, quality.topk(routing.top_groups, dim=-1).indices, True)
        choice = grouped.masked_fill(~allowed.unsqueeze(-1), -math.inf).flatten(1)
    ids = choice.topk(routing.top_k, dim=-1).indices
    weights = scores.gather(1, ids)
    if routing.normalize:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return ids, weights * routing.scale


class MixtureOfExperts:
    """Routed experts plus, where the model has them, shared experts that see every token.

    Attributes:
        router: fp32 [experts, hidden].
        bias: fp32 [experts], or None.
        gate_up: [experts, 2 * inner, hidden]; down: [experts, hidden, inner]; as
            :meth:`deepseek.models.weights.WeightSource.stacked` packed them.
        inner: width of an expert.
    """

    def __init__(
        self,
        ops: Ops,
        routing: Routing,
        *,
        router: Tensor,
        bias: Tensor | None,
        gate_up: Any,
        down: Any,
        inner: int,
        shared: GatedMLP | None,
        kind: str,
    ) -> None:
        self._ops = ops
        self.routing = routing
        self.router = router
        self.bias = bias
        self.gate_up = gate_up
        self.down = down
        self.inner = inner
        self.shared = shared
        self.kind = kind

    def __call__(self, x: Tensor) -> Tensor:
        logits = self._ops.linear(x.float(), self.router)
        ids, weights = route(logits, self.routing, self.bias)
        routed = self._ops.moe(x, self.gate_up, self.down, ids, weights, self.kind)
        return routed if self.shared is None else routed.add_(self.shared(x))


FeedForward = Callable[[Tensor], Tensor]
