"""A scripted model: the scheduler, the pages and the sampler are tested without weights.

The fake reads the tokens it continues from the cache itself, so a wrong page table, slot or context length shows as a
wrong token. A key also says how its row attended, so that what follows depends on which rows were sparse, and together
with which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import torch
from torch import Tensor

from deepseek.attention.policy import SparsePolicy
from deepseek.attention.stats import AttentionStats
from deepseek.engine.engine import Engine
from deepseek.engine.events import EngineEvent, GenerateRequest, TokenEvent
from deepseek.kernels.sampling import Choice, choose_tokens
from deepseek.models.base import Batch, KVCache, LayerCacheSpec, SpillSpace
from deepseek.sampling import SamplingParams

Script = Callable[[Sequence[int]], Tensor]


def counting(vocab_size: int) -> Script:
    """Continues 5 with 6, 6 with 7, ..."""

    def script(context: Sequence[int]) -> Tensor:
        logits = torch.zeros(vocab_size)
        logits[(context[-1] + 1) % vocab_size] = 10.0
        return logits

    return script


def hashing(vocab_size: int) -> Script:
    """Logits that depend on every token of the context."""

    def script(context: Sequence[int]) -> Tensor:
        seed = 0
        for token in context:
            seed = (seed * 31 + token + 1) % (2**31)
        return torch.randn(vocab_size, generator=torch.Generator().manual_seed(seed))

    return script


class FakeModel:
    """Stores each token's id as its key, and gives the script the context it finds in the cache."""

    def __init__(self, script: Script, *, vocab_size: int = 64, max_context: int = 4096) -> None:
        self.script = script
        self.architecture = "Fake"
        self.vocab_size = vocab_size
        self.hidden_size = 4
        self.max_context = max_context
        self.cache_specs = (LayerCacheSpec(heads=1, key_dim=1, value_dim=0),)
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.stream_device: torch.device | None = None
        self.weights_bytes = 0
        self.row_invariant = False
        self.pages_together = True
        self.sparse = False
        self.stats = AttentionStats()
        self.wide_rows = 12
        self.batch_sizes: list[int] = []
        self.rows_computed = 0
        self.forwards: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
        """Per forward: the first token of each sequence, and its rows."""
        self.policies: list[SparsePolicy | None] = []
        """Of each sequence of each forward."""

    def page_bytes(self, page_size: int) -> int:
        return page_size * self.dtype.itemsize

    def index_page_bytes(self) -> int:
        return 0

    def spill_page_bytes(self, page_size: int) -> int:
        return 0

    def new_cache(self, num_pages: int, page_size: int, spill: SpillSpace | None = None) -> KVCache:
        return KVCache(self.cache_specs, num_pages, page_size, self.dtype, self.device)

    def forward(self, batch: Batch, cache: KVCache) -> Tensor:
        layout = batch.layout
        keys = cache.layers[0].keys[:, 0, 0]
        keys[layout.write_slots] = (batch.known_ids() + self.vocab_size * self._sparsity(batch)).to(keys.dtype)
        self.policies += batch.sparse or (None,) * layout.num_sequences
        self.batch_sizes.append(layout.num_sequences)
        self.rows_computed += len(batch.token_ids)
        rows: list[Tensor] = []
        firsts = tuple(int(keys[pages[0] * layout.page_size]) for pages in layout.pages)
        starts = layout.query_starts
        self.forwards.append((firsts, tuple(stop - start for start, stop in pairwise(starts))))
        for i, slots in enumerate(layout.context_slots):
            context = [int(token) for token in keys[slots].tolist()]
            queries = layout.query_starts[i + 1] - layout.query_starts[i]
            start = len(context) - queries
            expected = batch.positions[layout.query_starts[i] : layout.query_starts[i + 1]].tolist()
            assert expected == list(range(start, len(context)))
            rows += [self.script(context[: start + j + 1]) for j in range(queries)]
        logits = torch.stack(rows)
        return logits if batch.logits_rows is None else logits[batch.logits_rows]

    def _sparsity(self, batch: Batch) -> Tensor:
        """Per row 0 if it attends densely, else what its selection depends on: itself, or if it is wide all rows of
        its page that are in the batch."""
        layout, marks = batch.layout, torch.zeros_like(batch.token_ids)
        for i, policy in enumerate(batch.sparse):
            if policy is None or layout.context_lens[i] <= policy.dense_until:
                continue
            start, stop = layout.query_starts[i : i + 2]
            pages = batch.positions[start:stop] // layout.page_size
            shared = (pages[:, None] == pages).sum(1)
            marks[start:stop] = 1 if start < batch.narrow_attention_rows else 1 + shared
        return marks

    def forward_with_hidden(self, batch: Batch, hidden_rows: Tensor, cache: KVCache) -> tuple[Tensor, Tensor]:
        """The hidden state of a row: the logits that the script gives the first tokens of the vocabulary."""
        everything = self.forward(replace(batch, logits_rows=None), cache)
        logits = everything if batch.logits_rows is None else everything[batch.logits_rows]
        return logits, everything[hidden_rows, : self.hidden_size]

    def attention_stats(self) -> AttentionStats:
        return self.stats

    def choose_tokens(self, logits: Tensor, choices: Sequence[Choice]) -> Tensor:
        return choose_tokens(logits, choices)


def make_engine(model: FakeModel, **settings: object) -> Engine:
    options: dict[str, object] = {
        "num_pages": 64,
        "page_size": 4,
        "max_context": 128,
        "max_running": 8,
        "max_batch_tokens": 16,
        "end_ids": frozenset(),
        "seed": 0,
    }
    return Engine(model, **(options | settings))  # type: ignore[arg-type]


def greedy(request_id: str, prompt: Sequence[int], max_tokens: int = 8, **options: object) -> GenerateRequest:
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, **options)  # type: ignore[arg-type]
    return GenerateRequest(request_id, list(prompt), params)


def run(engine: Engine, max_steps: int = 2000) -> list[EngineEvent]:
    """Step until nothing is left to do."""
    events: list[EngineEvent] = []
    for _ in range(max_steps):
        if not engine.has_work:
            return events
        events += engine.step()
    raise AssertionError(f"the engine still has work after {max_steps} steps")


def tokens_of(events: Sequence[EngineEvent], request_id: str) -> list[int]:
    return [
        e.token_id
        for e in events
        if isinstance(e, TokenEvent) and e.request_id == request_id and e.token_id is not None
    ]
