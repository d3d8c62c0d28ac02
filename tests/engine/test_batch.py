"""Which rows of a step are narrow, and what a seed is worth when the step's other rows are wide."""

from __future__ import annotations

import pytest

from deepseek.engine.batch import arrange
from deepseek.engine.engine import Engine
from deepseek.engine.events import GenerateRequest
from deepseek.engine.request import Sequence
from deepseek.engine.scheduler import Chunk
from deepseek.kernels.cpu.extension import obstacle
from deepseek.models.registry import load_native_model
from deepseek.sampling import SamplingParams
from tests.fakes import make_engine, run, tokens_of
from tests.parity import tiny


def chunk(name: str, prompt: int, computed: int, rows: int, seed: int | None = None) -> Chunk:
    request = GenerateRequest(name, [1] * prompt, SamplingParams(seed=seed))
    sequence = Sequence.of(request, end_ids=frozenset(), seed=0, max_context=1000, isolate_seeds=False)
    sequence.tokens += [2] * (computed + rows - prompt)
    sequence.computed = computed
    return Chunk.next(sequence, rows)


@pytest.mark.parametrize(
    "chunks,order,narrow,narrow_attention",
    [
        # Few rows: all narrow.
        ([("a", 5, 5, 1), ("b", 4, 0, 4)], "ab", 5, 5),
        # Many: wide, but single rows keep narrow attention.
        ([("a", 5, 5, 1), ("b", 20, 0, 20), ("c", 9, 9, 1)], "acb", 0, 2),
        # A seed's prompt is wide however short, its answer narrow however many others there are.
        ([("a", 5, 5, 1), ("b", 2, 0, 2, 7)], "ab", 1, 1),
        ([("a", 20, 0, 20), ("b", 3, 3, 1, 7), ("c", 2, 0, 2, 7)], "bca", 1, 1),
    ],
)
def test_arrange(chunks: list[tuple[int]], order: str, narrow: int, narrow_attention: int) -> None:
    arranged, *rows = arrange([chunk(*facts) for facts in chunks], 12)
    assert "".join(each.sequence.request_id for each in arranged) == order
    assert rows == [narrow, narrow_attention]


@pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")
@pytest.mark.parametrize("scheme", ["int4", "bf16"])
def test_seeds_hold_among_wide_rows(scheme: str) -> None:
    """A seeded request gives the same tokens alone, in a crowd, with its prompt cached and after preemption."""
    checkpoint = tiny.checkpoint(tiny.build("llama-large"))
    model = load_native_model(checkpoint, scheme=scheme, kv_dtype="fp16", threads=2)
    prompt = [(5 * i * i + 1) % tiny.VOCAB for i in range(70)]

    def seeded(name: str) -> GenerateRequest:
        return GenerateRequest(name, prompt, SamplingParams(seed=11, max_tokens=40, temperature=1.5, ignore_eos=True))

    def engine(pages: int) -> Engine:
        return make_engine(model, page_size=32, num_pages=pages, max_batch_tokens=64, max_running=24)  # type: ignore[arg-type]

    alone = engine(64)
    alone.add(seeded("x"))
    expected = tokens_of(run(alone), "x")
    for pages in (200, 24):
        crowd = engine(pages)
        for index in range(20):
            others = SamplingParams(max_tokens=60, temperature=1.0, ignore_eos=True)
            crowd.add(GenerateRequest(f"other {index}", prompt[: 40 + index], others))
            if index % 7 == 3:
                crowd.add(seeded(f"x{index}"))
        events = run(crowd)
        assert crowd.stats().preemptions > 0 or pages > 100
        assert [tokens_of(events, f"x{index}") for index in (3, 10, 17)] == [expected] * 3
        crowd.add(seeded("again"))
        assert tokens_of(run(crowd), "again") == expected
