"""Likelihoods of texts: perplexity."""

from __future__ import annotations

import math

from deepseek_eval.metrics import bits_per_byte, perplexity
from deepseek_eval.task import Item, Metric, Output, Score, Scorer

PERPLEXITY_METRICS: tuple[Metric, ...] = (
    bits_per_byte(),
    perplexity("byte_perplexity"),
    perplexity("token_perplexity"),
)


def text_likelihood() -> Scorer:
    """How likely a text is. The prompt is the text.

    Metrics: ``bits_per_byte`` and ``byte_perplexity`` compare models with different tokenizers, ``token_perplexity``
    does not. A first token without anything before it has no likelihood; it is left out of the tokens, not of the
    bytes.
    """

    def score(item: Item, output: Output) -> Score:
        found = output.likelihoods[0]
        assert isinstance(item.prompt, str)
        size = len(item.prompt.encode())
        sums = {"bits_per_byte": size, "byte_perplexity": size, "token_perplexity": found.tokens}
        bits = -found.logprob / size / math.log(2)
        return Score(
            statistics={name: (found.logprob, float(weight)) for name, weight in sums.items()},
            answer=f"{bits:.3f} bits per byte",
            explanation=f"log-probability {found.logprob:.1f} over {found.tokens} tokens and {size} bytes",
        )

    return score
