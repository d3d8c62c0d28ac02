"""Which tokens of one request are attended to sparsely: fixed by its prompt's length, whatever else happens to it."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek.attention.policy import SparsePolicy


@dataclass(frozen=True, slots=True)
class SparsePlan:
    """The parts of a request under a policy, in order of position: prompt, question (the prompt's end), answer.

    Prompt and answer are sparse from where their context is longer than ``policy.dense_until``; the question is dense.
    A chunk lies in one part, and in the sparse prompt it is made of whole pages: there, blocks of queries share what
    they read, and whole blocks make results independent of how the prompt was cut.

    Attributes:
        policy: of the sparse parts.
        page_size: tokens per page.
        question: first position of the question, on a page's edge; 0 where all of the prompt is dense.
        answer: first position behind the prompt.
    """

    policy: SparsePolicy
    page_size: int
    question: int
    answer: int

    @classmethod
    def of(cls, policy: SparsePolicy, prompt_length: int, page_size: int) -> SparsePlan:
        """The plan for a prompt."""
        question = prompt_length
        if policy.question_tokens:
            question = max(0, prompt_length - policy.question_tokens) // page_size * page_size
        return cls(policy, page_size, question if question > policy.dense_until else 0, prompt_length)

    @property
    def first_sparse(self) -> int:
        """First position whose key and value depend on the policy."""
        return max(self.policy.dense_until, 0 if self.question else self.answer)

    def marks(self, *, exact: bool) -> dict[int, str]:
        """Page -> what its digest and those of all pages behind it must cover besides the tokens: up to there, sparse
        and dense requests share what is cached.

        With ``exact``, equal digests mean equal keys and values. Without, a page of a question also stands for the
        same tokens in the middle of a longer prompt, and the other way round, so that the next turn of a conversation
        finds the last one's question and answer.
        """
        marks = {self.first_sparse // self.page_size: f"sparse {self.policy.error!r} {self.policy.dense_until}"}
        if exact and 0 < self.question < self.answer:
            marks[self.question // self.page_size] = "question"
        return marks

    def policy_at(self, position: int) -> SparsePolicy | None:
        """What a chunk that begins here is told; None is dense."""
        return None if self.question <= position < self.answer else self.policy

    def cut(self, start: int, wanted: int) -> int:
        """Tokens of a chunk from ``start`` on, of the ``wanted`` ones that may be computed (at least 1). In the sparse
        prompt it is at least a page, so that it gets on in the fullest batch."""
        dense_until = self.policy.dense_until if self.policy_at(start) is not None else 0
        edges = (dense_until, self.question, self.answer)
        room = min((edge - start for edge in edges if edge > start), default=wanted)
        if wanted >= room or not dense_until <= start < self.question:
            return min(wanted, room)
        end = max((start + wanted) // self.page_size, start // self.page_size + 1) * self.page_size
        return min(room, end - start)
