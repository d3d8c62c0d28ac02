"""The rotary embedding, and writing keys and values, as they are and as INT8."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from deepseek.errors import BackendUnavailableError
from deepseek.kernels import reference
from deepseek.kernels.paging import KVScales
from deepseek.kernels.triton.write_kv import rotary_write_kv
from tests.kernels.cases import assert_same, randn
from tests.kernels.triton.steps import DEVICE, STEPS

# NaN is meant.
pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning:triton.*")

SLOTS = 23


def some_slots(rows: int, skip: int | None = None) -> Tensor:
    slots = torch.randperm(SLOTS, generator=torch.Generator().manual_seed(1))[:rows]
    if skip is not None:
        slots[skip] = -1
    return slots


def write(
    key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor, scales: KVScales | None = None
) -> None:
    """Of keys that do not turn."""
    still = (function(len(key), 1, device=DEVICE) for function in (torch.ones, torch.zeros))
    rotary_write_kv(
        key.to(DEVICE).clone(), key.to(DEVICE), value.to(DEVICE), *still, keys, values, slots.to(DEVICE), False, scales
    )


def quantized(x: Tensor, scale_dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Integers and scales of ``x`` [..., dim], straight from their definition."""
    scales = (x.float().abs().amax(dim=-1) / 127.0).to(scale_dtype)
    divisor = torch.where(scales == 0, 1.0, scales.float())[..., None]
    return (x.float() / divisor).round().clamp(-127, 127).to(torch.int8), scales


def int8_cache(*widths: int, heads: int, dtype: torch.dtype) -> tuple[list[Tensor], KVScales]:
    caches = [torch.zeros(SLOTS, heads, width, dtype=torch.int8, device=DEVICE) for width in widths]
    return caches, KVScales(*(torch.zeros(SLOTS, heads, dtype=dtype, device=DEVICE) for _ in range(2)))


@pytest.mark.parametrize("name", ["one token", "decode", "mixed"])
@pytest.mark.parametrize("heads,key_dim,value_dim", [(1, 40, 8), (2, 5, 5), (3, 16, 12)])
def test_copy(name: str, heads: int, key_dim: int, value_dim: int) -> None:
    case = STEPS[name]
    slots = case.layout().write_slots
    wide = randn(case.rows, 2 * heads + 1, key_dim, seed=1)
    key, value = wide[:, :heads], randn(case.rows, heads, value_dim, seed=2)
    caches = [torch.zeros(case.slots, heads, key_dim), torch.zeros(case.slots, heads, value_dim)]
    there = [cache.to(DEVICE, copy=True) for cache in caches]
    reference.write_kv(key, value, caches[0], caches[1], slots)
    write(key, value, there[0], there[1], slots)
    assert torch.equal(there[0].cpu(), caches[0])
    assert torch.equal(there[1].cpu(), caches[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_padding_rows(dtype: torch.dtype) -> None:
    slots = some_slots(5, skip=2)
    key, value = randn(5, 2, 16, seed=1, dtype=dtype), randn(5, 2, 16, seed=2, dtype=dtype)
    caches = [torch.zeros(SLOTS, 2, 16, dtype=dtype, device=DEVICE) for _ in range(2)]
    write(key, value, caches[0], caches[1], slots)
    for cache, rows in zip(caches, (key, value), strict=True):
        expected = torch.zeros(SLOTS, 2, 16, dtype=dtype)
        written = slots >= 0
        expected[slots[written]] = rows[written]
        assert torch.equal(cache.cpu(), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale_dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("magnitude", [0.0, 1e-3, 1.0, 1e3])
def test_int8(dtype: torch.dtype, scale_dtype: torch.dtype, magnitude: float) -> None:
    slots = some_slots(7, skip=6)
    key, value = (randn(7, 3, width, seed=width) * magnitude for width in (20, 16))
    key, value = key.to(dtype), value.to(dtype)
    key[1, 1] = 0.0
    (keys, values), scales = int8_cache(20, 16, heads=3, dtype=scale_dtype)
    write(key, value, keys, values, slots, scales)
    for cache, its_scales, rows in ((keys, scales.key, key), (values, scales.value, value)):
        integers, expected = quantized(rows, scale_dtype)
        assert torch.equal(its_scales.cpu()[slots[:6]], expected[:6])
        assert torch.equal(cache.cpu()[slots[:6]], integers[:6])
        others = [slot for slot in range(SLOTS) if slot not in slots.tolist()]
        assert not cache[others].any() and not its_scales[others].any()


def test_halves_round_to_even() -> None:
    row = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0])
    (keys, values), scales = int8_cache(8, 8, heads=1, dtype=torch.float32)
    write(row.view(1, 1, 8), row.view(1, 1, 8), keys, values, torch.tensor([3]), scales)
    assert keys[3, 0].tolist() == [127, 0, 2, 2, 0, -2, -2, -127]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_int8_of_what_is_broken_stays_broken(bad: float) -> None:
    key = randn(2, 2, 8, seed=1)
    key[1, 0, 3] = bad
    (keys, values), scales = int8_cache(8, 8, heads=2, dtype=torch.float32)
    write(key, key, keys, values, torch.tensor([4, 5]), scales)
    finite = (keys.float() * scales.key[..., None])[[4, 5]].isfinite().all(dim=-1)
    assert finite.tolist() == [[True, True], [False, True]]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("heads,kv_heads,dim,turned", [(1, 1, 2, 2), (9, 3, 20, 8), (6, 2, 16, 16), (17, 1, 12, 12)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rotary_and_write(
    heads: int, kv_heads: int, dim: int, turned: int, interleaved: bool, int8: bool, dtype: torch.dtype
) -> None:
    rows, value_dim = 5, 12
    slots = some_slots(rows, skip=3)
    wide = randn(rows, heads + kv_heads, dim, seed=1, dtype=dtype).to(DEVICE)
    query, key = wide[:, :heads], wide[:, heads:]
    value = randn(rows, kv_heads, value_dim, seed=2, dtype=dtype)
    angles = randn(rows, turned // 2, seed=3) * 10
    cos, sin = angles.cos(), angles.sin()
    turned_query, turned_key = (reference.rotary(x.cpu(), cos, sin, interleaved) for x in (query, key))
    before = key.clone()
    if int8:
        (keys, values), scales = int8_cache(dim, value_dim, heads=kv_heads, dtype=torch.float16)
    else:
        keys, values = (torch.zeros(SLOTS, kv_heads, n, dtype=dtype, device=DEVICE) for n in (dim, value_dim))
        scales = None
    there = (x.to(DEVICE) for x in (value, cos, sin))
    result = rotary_write_kv(query, key, *there, keys, values, slots.to(DEVICE), interleaved, scales)
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3
    assert result.data_ptr() == query.data_ptr()
    assert_same(result.cpu(), turned_query, tolerance=tolerance)
    assert torch.equal(key, before)
    written = slots >= 0
    if scales is not None:
        stored_keys = keys.float() * scales.key.float()[..., None]
        stored_values = values.float() * scales.value.float()[..., None]
        step = turned_key.abs().amax() / 127
        assert (stored_keys.cpu()[slots[written]] - turned_key[written].float()).abs().max() < 0.6 * step
        assert torch.equal(values.cpu()[slots[written]], quantized(value, torch.float16)[0][written])
    else:
        stored_keys, stored_values = keys, values
        assert_same(keys.cpu()[slots[written]], turned_key[written], tolerance=tolerance)
        assert torch.equal(values.cpu()[slots[written]], value[written])
    others = [slot for slot in range(SLOTS) if slot not in slots.tolist()]
    assert not stored_keys[others].any() and not stored_values[others].any()


def test_nothing_to_write() -> None:
    cache = torch.zeros(SLOTS, 1, 4, device=DEVICE)
    nothing = torch.zeros(0, 1, 4, device=DEVICE)
    none = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    angles = torch.zeros(0, 2, device=DEVICE)
    assert rotary_write_kv(nothing, nothing, nothing, angles, angles, cache, cache, none) is nothing
    assert not cache.any()


def test_what_is_not_there_is_named() -> None:
    key = torch.zeros(1, 2, 4, device=DEVICE)
    slot = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    (keys, values), scales = int8_cache(4, 4, heads=2, dtype=torch.float32)
    with pytest.raises(BackendUnavailableError, match=r"scales for a cache of torch\.int8"):
        write(key, key, keys, values, slot)
    with pytest.raises(BackendUnavailableError, match="an INT8 cache when scales are given"):
        write(key, key, keys.float(), values.float(), slot, scales)
    with pytest.raises(BackendUnavailableError, match="contiguous"):
        write(key, key, keys, values, slot, KVScales(scales.key[:, :1], scales.value))
    with pytest.raises(BackendUnavailableError, match="side by side"):
        write(key, key, keys.float().transpose(1, 2), values.float(), slot)
