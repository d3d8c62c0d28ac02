"""When attention is sparse, and how exact it must then be."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION_MODES = ("auto", "dense", "sparse")
DEFAULT_ERROR = 0.02
MAX_ERROR = 0.5
AUTO_DENSE_UNTIL = 4096
SPARSE_DENSE_UNTIL = 1024
QUESTION_TOKENS = 256


@dataclass(frozen=True, slots=True)
class SparsePolicy:
    """How one sequence is attended to. A sequence without a policy is dense.

    Attributes:
        error: the relative error of an attention output that a selection aims at, above 0.
        dense_until: contexts of up to this many tokens are dense: reading all of them costs no more than choosing.
        question_tokens: the last so many tokens of a prompt, usually the question, are dense: a question that is itself
            read sparsely may no longer find its answer.
    """

    error: float = DEFAULT_ERROR
    dense_until: int = AUTO_DENSE_UNTIL
    question_tokens: int = QUESTION_TOKENS


def policy_of(mode: str, error: float, question_tokens: int = QUESTION_TOKENS) -> SparsePolicy | None:
    """The policy that a mode of :data:`ATTENTION_MODES` stands for; None is dense, as is an error of 0."""
    if mode == "dense" or error == 0.0:
        return None
    return SparsePolicy(error, AUTO_DENSE_UNTIL if mode == "auto" else SPARSE_DENSE_UNTIL, question_tokens)
