"""When attention is sparse, and how exact it must then be."""

from __future__ import annotations

from dataclasses import dataclass

ATTENTION_MODES = ("auto", "dense", "sparse")
DEFAULT_ERROR = 0.02
MAX_ERROR = 0.5
AUTO_DENSE_UNTIL = 4096
GPU_AUTO_DENSE_UNTIL = 16384
"""A GPU reads so many tokens in less time than the kernels of a selection take to begin; not measured yet."""
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


def policy_of(
    mode: str, error: float, question_tokens: int = QUESTION_TOKENS, *, on_gpu: bool = False
) -> SparsePolicy | None:
    """The policy that a mode of :data:`ATTENTION_MODES` stands for; None is dense, as is an error of 0."""
    if mode == "dense" or error == 0.0:
        return None
    auto = GPU_AUTO_DENSE_UNTIL if on_gpu else AUTO_DENSE_UNTIL
    return SparsePolicy(error, auto if mode == "auto" else SPARSE_DENSE_UNTIL, question_tokens)
