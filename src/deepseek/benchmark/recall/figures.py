"""From scores to figures with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

RESAMPLES = 2000
MODES = ("dense", "sparse", "sparse_question")
"""Everything dense; the text sparse and the question dense; both sparse."""


def compare(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean score of each mode, and of each sparse one its ratio to the dense one's on the same items.

    Intervals are 95%, by the paired bootstrap (percentile; Efron 1979) over items: they say how far other questions
    about these texts would move the figures.

    Args:
        items: at least one, each with ``chance`` and, under the names of :data:`MODES`, scores.

    Returns:
        ``items``, ``chance``, and per mode the mean with ``_interval``; ``ratio``, ``ratio_question`` with
        ``_interval``, None where the dense mean is 0; ``informative``: the dense mean is surely above chance. A model
        that cannot do a task densely says nothing about attending sparsely.
    """
    scores = np.array([[item[mode] for item in items] for mode in MODES], dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, len(items), (RESAMPLES, len(items)))
    means = scores[:, picks].mean(axis=-1)
    chance = math.fsum(item["chance"] for item in items) / len(items)
    result: dict[str, Any] = {"items": len(items), "chance": chance}
    for mode, own, drawn in zip(MODES, scores, means, strict=True):
        result[mode] = float(own.mean())
        result[f"{mode}_interval"] = interval(drawn)
    usable = means[0] > 0
    for name, mode, drawn in (("ratio", "sparse", means[1]), ("ratio_question", "sparse_question", means[2])):
        defined = result["dense"] > 0 and bool(usable.any())
        result[name] = result[mode] / result["dense"] if defined else None
        result[f"{name}_interval"] = interval(drawn[usable] / means[0][usable]) if defined else None
    result["informative"] = result["dense_interval"][0] > chance
    return result


def interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    """The middle 95%."""
    low, high = np.quantile(values, (0.025, 0.975))
    return [float(low), float(high)]


def perplexity_figures(losses: Mapping[str, Sequence[float]], *, block: int = 256) -> dict[str, Any]:
    """Perplexities of one text and the sparse one's ratio to the dense one's, with a 95% bootstrap interval over
    blocks of tokens, neighbours being alike.

    Args:
        losses: ``dense`` and ``sparse``: negative log-likelihood of each token.
        block: tokens that are drawn together.
    """
    dense, sparse = (np.array(losses[mode], dtype=np.float64) for mode in ("dense", "sparse"))
    edges = np.arange(0, len(dense), block)
    extra, counts = np.add.reduceat(sparse - dense, edges), np.add.reduceat(np.ones_like(dense), edges)
    picks = np.random.default_rng(0).integers(0, len(edges), (RESAMPLES, len(edges)))
    drawn = np.exp(extra[picks].sum(axis=1) / counts[picks].sum(axis=1))
    return {
        "tokens": len(dense),
        "dense": math.exp(dense.mean()),
        "sparse": math.exp(sparse.mean()),
        "ratio": math.exp((sparse - dense).mean()),
        "ratio_interval": interval(drawn),
    }
