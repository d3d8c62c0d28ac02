"""Log-likelihoods of continuations, and how few forwards they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Score:
    """Log-likelihood of a continuation after its context.

    Attributes:
        token_ids: the continuation's tokens.
        logprobs: natural log-probability of each of them.
        greedy: for each of them, whether it was the likeliest one.
        alternatives: the same for each of the request's alternatives; () unless it had some.
    """

    token_ids: list[int]
    logprobs: list[float]
    greedy: list[bool]
    alternatives: tuple[Score, ...] = ()

    @property
    def total(self) -> float:
        return sum(self.logprobs)

    @property
    def is_greedy(self) -> bool:
        return all(self.greedy)

    @classmethod
    def of(
        cls,
        token_ids: list[int],
        logprobs: list[float],
        greedy: list[bool],
        last: Sequence[int],
        of_last: Sequence[tuple[float, bool]],
    ) -> Score:
        """The score of ``token_ids``, with those of the texts that end with each of ``last`` instead, whose numbers are
        ``of_last``."""
        alternatives = tuple(
            cls([*token_ids[:-1], token], [*logprobs[:-1], logprob], [*greedy[:-1], likeliest])
            for token, (logprob, likeliest) in zip(last, of_last, strict=True)
        )
        return cls(token_ids, logprobs, greedy, alternatives)


@dataclass
class Forward:
    """Continuations that one forward scores: they have all tokens but the last in common.

    Attributes:
        before, after: tokens of the context, and of the first of the continuations.
        alternatives: last tokens of the others.
        places: where these stood among the pairs, the first one included.
    """

    before: list[int]
    after: list[int]
    alternatives: list[int] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def by_place(self, score: Score) -> dict[int, Score]:
        """The scores of all its continuations, from that of the first with its alternatives."""
        return dict(zip(self.places, (score, *score.alternatives), strict=True))


def forwards(pairs: Sequence[tuple[list[int], list[int]]]) -> list[Forward]:
    """The fewest forwards that score each continuation, which has a token at least, behind its context: the choices A,
    B, C and D of one question take one."""
    found: dict[tuple[tuple[int, ...], tuple[int, ...]], Forward] = {}
    for place, (before, after) in enumerate(pairs):
        forward = found.setdefault((tuple(before), tuple(after[:-1])), Forward(before, after))
        if forward.places:
            forward.alternatives.append(after[-1])
        forward.places.append(place)
    return list(found.values())
