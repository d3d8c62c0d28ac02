"""Attention kernels against the reference: prompts, decoding in one piece and split, windows, INT8."""

from __future__ import annotations

import pytest
import torch

from deepseek.errors import BackendUnavailableError
from deepseek.kernels import reference
from deepseek.kernels.paging import KVScales
from deepseek.kernels.triton import decode_attention
from deepseek.kernels.triton.attention import paged_attention
from deepseek.kernels.triton.decode_attention import MAX_SPLITS, MIN_SPLIT, num_splits
from deepseek.kernels.triton.device_layout import DeviceLayout
from deepseek.kernels.triton.flash import split_query
from tests.kernels.cases import Ragged, assert_same, randn
from tests.kernels.triton.steps import DEVICE, STEPS, poisoned

# NaN is meant.
pytestmark = pytest.mark.filterwarnings("ignore:.*(NaN|invalid value):RuntimeWarning:triton.*")

# heads, kv_heads, key_dim, value_dim
HEADS = [(2, 2, 16, 16), (6, 2, 20, 12), (8, 1, 8, 24)]
HALF = {torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(params=[True, False], ids=["split", "whole"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Contexts of a few tokens are split too, into as many parts as they have tiles, or are not."""
    monkeypatch.setattr(decode_attention, "MIN_SPLIT", 8 if request.param else 10**6)
    return request.param


def check(
    case: Ragged,
    heads: tuple[int, int, int, int],
    window: int | None,
    dtype: torch.dtype = torch.float32,
    tolerance: float = 2e-5,
) -> None:
    query_heads, kv_heads, key_dim, value_dim = heads
    query = randn(case.rows, query_heads + 2, key_dim, seed=1, dtype=dtype)[:, :query_heads]
    keys, values = poisoned(
        case,
        randn(case.slots, kv_heads, key_dim, seed=2, dtype=dtype),
        randn(case.slots, kv_heads, value_dim, seed=3, dtype=dtype),
    )
    expected = reference.paged_attention(query, keys, values, case.layout(), 0.3, window)
    actual = paged_attention(query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE), case.layout(), 0.3, window)
    assert_same(actual.cpu(), expected, tolerance=tolerance)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("name", STEPS)
def test_everything_before_a_token(name: str) -> None:
    check(STEPS[name], HEADS[1], None)


@pytest.mark.parametrize("name", ["decode", "few rows each", "prompts"])
@pytest.mark.parametrize("heads", [HEADS[0], HEADS[2]])
def test_groups_and_widths(name: str, heads: tuple[int, int, int, int]) -> None:
    check(STEPS[name], heads, None)


@pytest.mark.parametrize("name", ["few rows each", "mixed"])
@pytest.mark.parametrize("window", [1, 5, 16, 31, 33])
def test_window(name: str, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_attention, "MIN_SPLIT", 8)
    check(STEPS[name], (6, 2, 16, 16), window)


@pytest.mark.parametrize("cached", [0, 31, 32, 33])
@pytest.mark.parametrize("window", [None, 20])
def test_prompts_of_several_tiles(cached: int, window: int | None) -> None:
    check(Ragged(((cached, 70),), scattered=True, page=16), (3, 1, 16, 16), window)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("window", [None, 20])
def test_half_precision(dtype: torch.dtype, window: int | None) -> None:
    check(STEPS["mixed"], (6, 2, 24, 16), window, dtype, HALF[dtype])


def test_a_padded_tile_of_keys() -> None:
    """Tiles of 64 keys in pages of 16 and of 48: page numbers are looked up per token, past the context's last."""
    for page in (16, 48, 64):
        case = Ragged(((65, 1), (100, 20), (63, 1)), scattered=True, page=page)
        check(case, (2, 1, 16, 16), None, torch.float16, HALF[torch.float16])


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("name", ["decode", "mixed"])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("window", [None, 17])
def test_int8_cache(name: str, scale_dtype: torch.dtype, window: int | None) -> None:
    case = STEPS[name]
    generator = torch.Generator().manual_seed(5)
    integers = torch.randint(-127, 128, (2, case.slots, 2, 16), generator=generator, dtype=torch.int8)
    key_scales, value_scales = poisoned(
        case, *(randn(case.slots, 2, seed=i, dtype=scale_dtype).abs() * 0.02 for i in (6, 7))
    )
    query = randn(case.rows, 6, 16, seed=1)
    keys, values = integers[0] * key_scales.float()[..., None], integers[1] * value_scales.float()[..., None]
    expected = reference.paged_attention(query, keys, values, case.layout(), 0.3, window)
    scales = KVScales(key_scales.to(DEVICE), value_scales.to(DEVICE))
    cache = integers.to(DEVICE)
    actual = paged_attention(query.to(DEVICE), cache[0], cache[1], case.layout(), 0.3, window, scales)
    assert_same(actual.cpu(), expected)


@pytest.mark.parametrize("dtype", HALF)
def test_int8_cache_of_small_weights(dtype: torch.dtype) -> None:
    """One key has nearly all the weight, many share the rest, and scales are small: products below fp16's range."""
    case = Ragged(((192, 1), (180, 20)), page=64)
    keys = torch.zeros(case.slots, 1, 16, dtype=torch.int8)
    values = torch.full((case.slots, 1, 16), 100, dtype=torch.int8)
    layout = case.layout()
    for sequence in range(2):
        first = reference.context_slots(layout, sequence)[0]
        keys[first], values[first] = 127, 0
    scales = torch.full((case.slots, 1), 1e-3, dtype=torch.float16)
    query = torch.full((case.rows, 2, 16), 1.0, dtype=dtype)
    scale = 10.0 / (127 * float(scales[0, 0]) * 16)  # the other keys weigh e^-10 of the first
    wide = scales.float()[..., None]
    expected = reference.paged_attention(query.float(), keys.float() * wide, values.float() * wide, layout, scale)
    there = KVScales(scales.to(DEVICE), scales.to(DEVICE))
    actual = paged_attention(query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE), layout, scale, None, there)
    assert ((actual.cpu().float() - expected).abs() < 1e-2 * expected.abs()).all()


@pytest.mark.usefixtures("split")
def test_large_scores() -> None:
    case = STEPS["mixed"]
    query, keys = randn(case.rows, 2, 16, seed=1) * 60, randn(case.slots, 2, 16, seed=2) * 60
    values = randn(case.slots, 2, 16, seed=3)
    actual = paged_attention(query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE), case.layout(), 1.0)
    assert_same(actual.cpu(), reference.paged_attention(query, keys, values, case.layout(), 1.0), tolerance=1e-3)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("broken", [0, 2])
def test_a_broken_sequence_harms_no_other(broken: int) -> None:
    case = STEPS["mixed"]
    layout = case.layout()
    query, keys, values = (randn(n, 2, 16, seed=n).to(DEVICE) for n in (case.rows, case.slots, case.slots))
    clean = paged_attention(query, keys, values, layout, 0.3)
    slots = reference.context_slots(layout, broken)
    keys[slots], values[slots] = float("nan"), float("inf")
    rows = slice(layout.query_starts[broken], layout.query_starts[broken + 1])
    actual = paged_attention(query, keys, values, layout, 0.3)
    assert actual[rows].isnan().all()
    clean[rows] = actual[rows] = 0.0
    assert torch.equal(actual, clean)


def test_a_prompt_beside_it_does_not_change_a_decoded_row() -> None:
    """To the bit: only the number of splits depends on the batch, and it is one here."""
    together = Ragged(((14, 1), (40, 1), (20, 30)), page=16)
    alone = Ragged(together.sequences[:2], page=16)
    query, keys, values = (randn(n, 6, 16, seed=n).to(DEVICE) for n in (together.rows, together.slots, together.slots))
    assert num_splits(3 * 6, 50, 132) == num_splits(2 * 6, 41, 132) == 1
    both = paged_attention(query, keys, values, together.layout(), 0.3)
    assert torch.equal(both[:2], paged_attention(query[:2], keys, values, alone.layout(), 0.3))


@pytest.mark.usefixtures("split")
def test_static_buffers() -> None:
    """A smaller batch in the buffers of a larger one: the rows that pad it are zero."""
    static = DeviceLayout.allocate(DEVICE, sequences=8, rows=8, page_size=16, max_context=64, max_query=2)
    for sequences in (((15, 2), (32, 1), (40, 2)), ((33, 1),), ((1, 2), (14, 2), (15, 2), (62, 2))):
        case = Ragged(sequences, scattered=True, page=16)
        layout = case.layout()
        query, keys, values = (randn(n, 2, 16, seed=n) for n in (8, case.slots, case.slots))
        poisoned(case, keys, values)
        static.fill(layout)
        actual = paged_attention(query.to(DEVICE), keys.to(DEVICE), values.to(DEVICE), layout, 0.3).cpu()
        expected = reference.paged_attention(query[: case.rows], keys, values, layout, 0.3)
        assert_same(actual[: case.rows], expected)
        assert not actual[case.rows :].any()


@pytest.mark.parametrize(
    ("programs", "context", "expected"),
    [
        (8, MIN_SPLIT - 1, 1),
        (8, MIN_SPLIT, 1),
        (8, 2 * MIN_SPLIT, 2),
        (1, 10**6, MAX_SPLITS),
        (8, 10**6, 64),
        (264, 10**6, 1),
        (263, 10**6, 2),
        (10**5, 10**6, 1),
        (0, 0, 1),
    ],
)
def test_number_of_splits(programs: int, context: int, expected: int) -> None:
    assert num_splits(programs, context, 132) == expected


@pytest.mark.parametrize(("width", "main"), [(8, 8), (64, 64), (96, 64), (128, 128), (192, 128), (576, 512)])
def test_cut_of_a_query(width: int, main: int) -> None:
    query = randn(2, 3, width)
    parts = split_query(query)
    assert parts[0].shape[-1] == main
    assert torch.equal(torch.cat(parts, dim=-1), query)


def refused(**changes: object) -> str:
    query_dtype, cache_dtype = changes.pop("dtypes", (torch.float32, torch.float32))
    heads, width = int(changes.pop("heads", 2)), int(changes.pop("width", 16))
    new = int(changes.pop("new", 1))
    case = Ragged(((16, new),), page=int(changes.pop("page", 16)))
    query = torch.zeros(new, heads, width, dtype=query_dtype, device=DEVICE)
    cache = torch.zeros(case.slots, 1, width, dtype=cache_dtype, device=DEVICE)
    with pytest.raises(BackendUnavailableError) as error:
        paged_attention(query, cache, cache, case.layout(), 0.3, None, **changes)
    return str(error.value)


def test_what_is_not_there_is_named() -> None:
    double, single, half, whole = torch.float64, torch.float32, torch.float16, torch.int8
    assert "multiple of 16 tokens, not 8" in refused(page=8)
    assert "fp16, bf16 or fp32, not torch.float64" in refused(dtypes=(double, double))
    assert "the queries' dtype torch.float32, not torch.float16" in refused(dtypes=(single, half))
    assert "not torch.int8" in refused(dtypes=(single, whole))
    assert "up to 512 elements, not 1024" in refused(width=1024)
    assert "query heads per KV head, not 200" in refused(heads=200, new=20)
    scales = torch.ones(32, 1, device=DEVICE)
    assert "an INT8 cache when scales" in refused(scales=KVScales(scales, scales))
    assert "[num_slots, kv_heads]" in refused(dtypes=(single, whole), scales=KVScales(scales[:7], scales))
