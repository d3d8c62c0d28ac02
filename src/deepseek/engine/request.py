"""The state of one live request inside the engine."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepseek.attention.plan import SparsePlan
from deepseek.engine.events import EmbedRequest, EngineRequest, GenerateRequest, ScoreRequest
from deepseek.engine.pooling import Pooler
from deepseek.sampling import SamplingParams

if TYPE_CHECKING:
    from deepseek.engine.adapters import ServedAdapter
    from deepseek.engine.constraints import Matcher

ANSWER_ROWS = 8
"""Rows of a reproducible answer that is computed again, in one chunk: no more than a draft makes, because the rows of
longer chunks choose together what they read."""


@dataclass(eq=False)
class Sequence:
    """A request being worked on.

    Attributes:
        request_id: as in the request.
        tokens: prompt and answer so far; in front of them a 0 for each token that the adapter puts there, behind them
            the places (below 0, as in :class:`deepseek.models.base.Batch`) of those that are being computed.
        unknown: how many of them are such places.
        prompt_length: how many of them are no answer.
        params: sampling options; None for a request that generates nothing.
        seed: seed of the random numbers of this sequence.
        stop_ids: ids that end the answer.
        max_length: length of ``tokens`` at which the answer ends.
        score_start: first position whose log-probability is wanted; None if none is.
        cache_salt: salt of the prefix cache.
        reproducible: the caller gave a seed and is promised the same tokens whatever else runs, or wants a vector or
            log-probabilities that are the same whenever the text is. So how a row is computed depends on its place in
            the request alone (see :func:`deepseek.engine.batch.arrange`), and pages of the prefix cache are shared
            among reproducible requests, those of their prompts only.
        isolated: reproducible, on a model whose rows depend on what else is in the batch: computed in forwards of its
            own, whose shapes depend on nothing but this request.
        priority: higher runs first.
        tenant: on whose account it goes, ``key`` or ``key/user``.
        weight: of the key.
        pages: held pages, enough for ``computed`` tokens and this step's; int32, as kernels read them.
        digests: digests of the full pages of ``tokens``, as far as they were needed.
        computed: tokens whose keys and values are in the cache, or will be when the steps under way are done.
        admission: counts how often it has lost its pages: what was begun before is then no longer in the cache.
        sealed: pages already made findable.
        charged: tokens on the tenant's account, or found in the cache: what a preemption makes compute again is free.
        cached_tokens: tokens found in the prefix cache when first admitted; None before.
        scheduled_at: when it was first admitted, as ``time.monotonic`` has it.
        recomputed: times it was started anew because a page in the spill file was corrupt.
        sparse: which of its tokens are attended to sparsely; None if all are dense.
        pooler: makes the vector that an embedding request wants; None for others.
        adapter: what changes the model for this request; None: nothing does.
        matcher: keeps the answer to its constraint; None without one.
        scores: log-probability and greedy flag of each scored token so far.
        alternatives: tokens whose log-probability is wanted in the last place too.
    """

    request_id: str
    tokens: list[int]
    prompt_length: int
    params: SamplingParams | None
    seed: int
    stop_ids: frozenset[int]
    max_length: int
    score_start: int | None
    cache_salt: str
    reproducible: bool = False
    isolated: bool = False
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    pages: array[int] = field(default_factory=lambda: array("i"))
    digests: list[bytes] = field(default_factory=list)
    unknown: int = 0
    computed: int = 0
    admission: int = 0
    sealed: int = 0
    charged: int = 0
    cached_tokens: int | None = None
    scheduled_at: float = 0.0
    recomputed: int = 0
    sparse: SparsePlan | None = None
    pooler: Pooler | None = None
    adapter: ServedAdapter | None = None
    matcher: Matcher | None = None
    scores: list[tuple[float, bool]] = field(default_factory=list)
    alternatives: list[int] = field(default_factory=list)
    answer_counts: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        request: EngineRequest,
        *,
        end_ids: frozenset[int],
        seed: int,
        max_context: int,
        isolate_seeds: bool,
        sparse: SparsePlan | None = None,
        adapter: ServedAdapter | None = None,
    ) -> Sequence:
        """The initial state of a validated request; ``isolate_seeds`` isolates one that brings a seed."""
        if not isinstance(request, GenerateRequest):
            return cls._without_answer(
                request, seed=seed, reproducible=not isolate_seeds, sparse=sparse, adapter=adapter
            )
        params = request.params
        tokens = _behind(adapter, request.prompt)
        salt = _salt(request.cache_salt, adapter)
        reproducible = params.seed is not None
        # A constrained answer that has come to its end can only end.
        ends = not params.ignore_eos or params.constraint is not None
        room = max_context - len(tokens)
        return cls(
            request_id=request.request_id,
            tokens=tokens,
            prompt_length=len(tokens),
            params=params,
            seed=seed if params.seed is None else params.seed,
            stop_ids=frozenset(params.stop_token_ids) | (end_ids if ends else frozenset()),
            max_length=len(tokens) + min(room, params.max_tokens or room),
            score_start=None,
            cache_salt=f"seeded {salt}" if reproducible else salt,
            reproducible=reproducible,
            isolated=isolate_seeds and reproducible,
            priority=request.priority,
            tenant=request.tenant,
            weight=request.weight,
            sparse=sparse,
            adapter=adapter,
        )

    @classmethod
    def _without_answer(
        cls,
        request: ScoreRequest | EmbedRequest,
        *,
        seed: int,
        reproducible: bool,
        sparse: SparsePlan | None,
        adapter: ServedAdapter | None,
    ) -> Sequence:
        tokens = _behind(adapter, request.tokens)
        before = len(tokens) - len(request.tokens)
        sequence = cls(
            request_id=request.request_id,
            tokens=tokens,
            prompt_length=len(tokens),
            params=None,
            seed=seed,
            stop_ids=frozenset(),
            max_length=len(tokens),
            score_start=before + request.start if isinstance(request, ScoreRequest) else None,
            alternatives=request.alternatives if isinstance(request, ScoreRequest) else [],
            cache_salt=_salt(request.cache_salt, adapter),
            sparse=sparse,
            adapter=adapter,
        )
        if isinstance(request, EmbedRequest):
            sequence.pooler = Pooler.of(request)
            sequence.priority, sequence.tenant, sequence.weight = request.priority, request.tenant, request.weight
        if reproducible and (isinstance(request, EmbedRequest) or request.reproducible):
            sequence.reproducible, sequence.cache_salt = True, f"seeded {request.cache_salt}"
        return sequence

    @property
    def adapter_number(self) -> int:
        """What the model calls its adapter; -1 for the model alone."""
        return -1 if self.adapter is None or self.adapter.number is None else self.adapter.number

    @property
    def before(self) -> int:
        """Tokens that its adapter puts before the prompt."""
        return 0 if self.adapter is None else self.adapter.adapter.length

    @property
    def group(self) -> str:
        """The key in ``tenant``."""
        return self.tenant.partition("/")[0]

    @property
    def user(self) -> str:
        """The user in ``tenant``."""
        return self.tenant.partition("/")[2]

    @property
    def target(self) -> int:
        """Tokens to compute before the next result: a scored sequence's last token predicts nothing asked for."""
        return len(self.tokens) if self.score_start is None else len(self.tokens) - 1

    @property
    def remaining(self) -> int:
        return self.target - self.computed

    @property
    def reusable(self) -> int:
        """Tokens that may come from the prefix cache: at least one row must be computed to get logits, and a vector
        needs all rows that it is made of."""
        if self.isolated:
            return 0
        if self.pooler is not None:
            return self.pooler.positions(0, self.target, self.target).start
        return (self.target if self.score_start is None else self.score_start) - 1

    @property
    def in_prompt(self) -> bool:
        """True if the next token to compute belongs to the prompt."""
        return self.computed < self.prompt_length

    @property
    def next_tokens(self) -> int:
        """Tokens that one chunk may compute: all that remain, but a reproducible sequence's prompt and its answer
        (which is computed again after a preemption) apart."""
        if self.reproducible and self.in_prompt:
            return min(self.remaining, self.prompt_length - self.computed)
        return self.remaining

    def chunk(self, limit: int) -> int:
        """Tokens of the next chunk: at most ``limit``, or the rest of a page where only whole pages are computed."""
        wanted = min(self.next_tokens, limit)
        if self.sparse is None:
            return wanted
        if self.reproducible and not self.in_prompt:
            wanted = min(wanted, ANSWER_ROWS)
        return self.sparse.cut(self.computed, wanted)

    @property
    def marks(self) -> dict[int, str]:
        """What digests of its pages cover besides tokens (see :func:`deepseek.engine.block_pool.page_digests`)."""
        return {} if self.sparse is None else self.sparse.marks(exact=self.reproducible)

    def sealable(self, computed: int) -> int:
        """Of the first ``computed`` tokens, those that the prefix cache may offer to others: none of a text whose like
        cannot use them."""
        if self.pooler is not None and not self.reusable:
            return 0
        return min(computed, self.prompt_length) if self.reproducible else computed

    def isolated_chunk(self, limit: int) -> int:
        """Tokens of the next forward of an isolated sequence: the prompt in equal chunks, the answer one by one, also
        when it is computed again after a preemption."""
        return min(self.prompt_length - self.computed, limit) if self.in_prompt else 1

    @property
    def answer_length(self) -> int:
        """Unknown tokens included."""
        return len(self.tokens) - self.prompt_length

    @property
    def known_tokens(self) -> list[int]:
        """The list itself if all are known."""
        return self.tokens[: -self.unknown] if self.unknown else self.tokens

    def restart(self) -> None:
        """Forget the results of a request that is computed anew."""
        self.scores.clear()
        if self.pooler is not None:
            self.pooler.clear()

    def expect(self, place: int) -> None:
        """One more token, which is being computed and will be found in ``place``."""
        self.tokens.append(~place)
        self.unknown += 1

    def append(self, token_id: int) -> None:
        """The next known token: the first of those expected, if there are any."""
        if self.unknown:
            self.tokens[-self.unknown] = token_id
            self.unknown -= 1
        else:
            self.tokens.append(token_id)
        self.answer_counts[token_id] = self.answer_counts.get(token_id, 0) + 1


def _behind(adapter: ServedAdapter | None, prompt: list[int]) -> list[int]:
    return [0] * (adapter.adapter.length if adapter is not None else 0) + prompt


def _salt(salt: str, adapter: ServedAdapter | None) -> str:
    """Whose cached pages can be whose: an adapter's never the model's, nor another adapter's, whatever their names."""
    return salt if adapter is None else f"adapter {adapter.adapter.digest} {salt}"
