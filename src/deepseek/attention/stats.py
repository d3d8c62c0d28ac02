"""What sparse attention did: counters since the model was loaded."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class AttentionStats:
    """Cumulative counters. A *selection* is what one row of a batch reads in one layer and KV head; a row counts once
    in ``rows`` and once per layer and KV head in everything else.

    Attributes:
        rows: rows attended to sparsely.
        selections: of these rows, over layers and KV heads.
        context_tokens: tokens that dense attention would have read for them.
        read_tokens: tokens whose keys and values were read exactly.
        kv_bytes: bytes of keys and values read.
        index_bytes: bytes of the index read.
        dense_fallbacks: selections so large that everything was read instead.
        estimated_error: sum over selections of the relative error of the output that was estimated for each.
        checks: selections that were computed densely too, to be compared (shadow checks).
        checked_estimate: sum of the errors that were estimated for these.
        checked_error: sum of the errors that were measured in them.
        violations: checks in which the error was above its bound.
    """

    rows: int = 0
    selections: int = 0
    context_tokens: int = 0
    read_tokens: int = 0
    kv_bytes: int = 0
    index_bytes: int = 0
    dense_fallbacks: int = 0
    estimated_error: float = 0.0
    checks: int = 0
    checked_estimate: float = 0.0
    checked_error: float = 0.0
    violations: int = 0
