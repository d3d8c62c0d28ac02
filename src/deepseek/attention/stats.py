"""What sparse attention did: counters since the model was loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionStats:
    """Cumulative counters. Rows that choose for themselves (those of answers) count in the first group, whose errors
    are of *outputs*: one per row, layer and query head. Tokens count once per row, layer and KV head.

    Attributes:
        outputs: attention outputs computed sparsely.
        context_tokens: tokens that dense attention would have read for them.
        read_tokens: tokens whose keys and values were read.
        read_bytes: bytes of keys, values and index that were read.
        dense_bytes: bytes of keys and values that dense attention would have read.
        pieces: stretches of contexts that were chosen from.
        dense_pieces: of these, stretches read whole because most of them was chosen: fallbacks to dense.
        unread_weight: sum over outputs of the estimated share of the attention weights that was not read.
        estimated_error: sum over outputs of the estimated relative error.
        error_bound: sum over outputs of its bound, which holds if unread tokens weigh at most twice what is estimated.

        prompt_pages: pages that blocks of prompt rows could choose from, per layer and KV head.
        prompt_pages_read: pages that they read.

        checks: outputs that were computed densely too, to compare (shadow checks).
        checked_error: sum over these of the relative error that was measured.
        violations: checks in which it was above its bound.
    """

    outputs: int = 0
    context_tokens: int = 0
    read_tokens: int = 0
    read_bytes: int = 0
    dense_bytes: int = 0
    pieces: int = 0
    dense_pieces: int = 0
    unread_weight: float = 0.0
    estimated_error: float = 0.0
    error_bound: float = 0.0
    prompt_pages: int = 0
    prompt_pages_read: int = 0
    checks: int = 0
    checked_error: float = 0.0
    violations: int = 0
