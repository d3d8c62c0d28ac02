"""Every backend against the reference, over the same cases."""

from __future__ import annotations

import pytest
import torch

from deepseek.kernels import reference
from deepseek.kernels.int8_cache import dequantize, quantize
from deepseek.kernels.ops import Ops
from deepseek.kernels.paging import KVScales
from deepseek.kernels.registry import REGISTRY, bind
from tests.kernels.cases import HEADS, RAGGED, Ragged, assert_same, randn

BACKENDS = [b.name for b in REGISTRY.backends if b.device == "cpu" and b.name != "reference" and b.obstacle() is None]
ROWS = [1, 2, 3, 7, 32, 65]
HALF = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(params=BACKENDS)
def ops(request: pytest.FixtureRequest) -> Ops:
    return bind("cpu", request.param)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (64, 48), (97, 33)])
@pytest.mark.parametrize("bias", [False, True])
def test_linear(ops: Ops, rows: int, shape: tuple[int, int], bias: bool) -> None:
    x, weight = randn(rows, shape[1], seed=1), randn(*shape, seed=2)
    b = randn(shape[0], seed=3) if bias else None
    assert_same(ops.linear(x, weight, b), reference.linear(x, weight, b), tolerance=1e-4)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("shape", [(1, 1), (1, 64), (3, 33), (33, 576), (4, 6, 16)])
def test_rms_norm(ops: Ops, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    x, weight = randn(*shape, seed=1, dtype=dtype), randn(shape[-1], seed=2, dtype=dtype)
    before = x.clone()
    assert_same(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5), tolerance=HALF[dtype])
    assert torch.equal(x, before)


@pytest.mark.parametrize("magnitude", [0.0, 1e-20, 1e-6, 1e-3, 1e4, 1e15, 1e30])
@pytest.mark.parametrize("eps", [1e-6, 1e-5])
def test_rms_norm_of_extremes(ops: Ops, magnitude: float, eps: float) -> None:
    x, weight = randn(3, 40) * magnitude, randn(40, seed=2)
    assert_same(ops.rms_norm(x, weight, eps), reference.rms_norm(x, weight, eps))


def test_rms_norm_keeps_nan_and_inf_in_their_rows(ops: Ops) -> None:
    x, weight = randn(4, 16), randn(16, seed=2)
    x[1, 3], x[2, 5] = float("nan"), float("inf")
    assert_same(ops.rms_norm(x, weight, 1e-5), reference.rms_norm(x, weight, 1e-5))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rows", ROWS)
def test_add_rms_norm(ops: Ops, rows: int, dtype: torch.dtype) -> None:
    x, residual, weight = (randn(*s, seed=i, dtype=dtype) for i, s in enumerate([(rows, 24), (rows, 24), (24,)]))
    expected = reference.add_rms_norm(x, residual, weight, 1e-6)
    for actual, wanted in zip(ops.add_rms_norm(x, residual.clone(), weight, 1e-6), expected, strict=True):
        assert_same(actual, wanted, tolerance=HALF[dtype])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rows", [1, 5, 33])
@pytest.mark.parametrize("heads,dim,turned", [(1, 2, 2), (3, 8, 8), (4, 12, 8), (2, 64, 64)])
@pytest.mark.parametrize("interleaved", [False, True])
def test_rotary(ops: Ops, rows: int, heads: int, dim: int, turned: int, interleaved: bool, dtype: torch.dtype) -> None:
    whole = randn(rows, heads + 2, dim, seed=1, dtype=dtype)  # heads inside a wider projection, as models have them
    angles = randn(rows, turned // 2, seed=2) * 10
    keys, values = (torch.zeros(rows, heads - heads // 2, dim, dtype=dtype) for _ in range(2))
    query, key, value = whole[:, 1:-1], whole[:, 1 + heads // 2 : -1].clone(), whole[:, -1:].expand(-1, 2, -1)
    value = value[:, : keys.shape[1]]
    expected = [reference.rotary(x, angles.cos(), angles.sin(), interleaved) for x in (query, key)]
    others = whole[:, [0, -1]].clone()
    slots = torch.arange(rows).flip(0)
    actual = ops.rotary_write_kv(query, key, value, angles.cos(), angles.sin(), keys, values, slots, interleaved)
    assert_same(actual, expected[0], tolerance=HALF[dtype])
    assert_same(keys.flip(0), expected[1], tolerance=HALF[dtype])
    assert torch.equal(values.flip(0), value)
    assert torch.equal(whole[:, [0, -1]], others)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_gated_activation(ops: Ops, rows: int, kind: str, dtype: torch.dtype) -> None:
    x = randn(rows, 34, seed=1, dtype=dtype) * 3
    assert_same(ops.gated_activation(x, kind), reference.gated_activation(x, kind), tolerance=HALF[dtype])


def test_gated_activation_of_extremes(ops: Ops) -> None:
    gate = torch.tensor([[0.0, -0.0, 1e-30, -80.0, 80.0, 1e4, -1e4, float("nan"), float("inf")]])
    x = torch.cat([gate, torch.ones_like(gate)], dim=1)
    assert_same(ops.gated_activation(x, "silu"), reference.gated_activation(x, "silu"))


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("latent", [False, True])
@pytest.mark.parametrize("int8", [False, True])
def test_rows_go_to_their_slots(ops: Ops, name: str, latent: bool, int8: bool) -> None:
    case = RAGGED[name]
    layout = case.layout()
    wide = randn(case.rows, 6, 5, seed=1)
    key, value = wide[:, 2:4], wide[:, 4:, :3]
    written = []
    still = torch.ones(case.rows, 1), torch.zeros(case.rows, 1)
    for write in (ops.rotary_write_kv, reference.rotary_write_kv):
        both = torch.zeros(case.slots, 2, 8, dtype=torch.int8 if int8 else torch.float32)
        keys, values = (both[..., :5], both[..., 5:]) if latent else (torch.zeros_like(both[..., :5]), both[..., 5:])
        scales = KVScales(torch.zeros(case.slots, 2), torch.zeros(case.slots, 2)) if int8 else None
        write(key.clone(), key.clone(), value, *still, keys, values, layout.write_slots, False, scales)
        written.append((keys, values, *((scales.key, scales.value) if scales else ())))
    for ours, expected in zip(*written, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_broken_stays_broken_in_int8(bad: float) -> None:
    x = randn(3, 2, 8)
    x[1, 0, 3] = bad
    integers, scales = quantize(x, torch.float32)
    assert dequantize(integers, scales, torch.float32).isfinite().all(dim=-1).tolist() == [
        [True] * 2,
        [False, True],
        [True] * 2,
    ]


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("window", [None, 3])
def test_int8_attention(ops: Ops, name: str, window: int | None) -> None:
    case = RAGGED[name]
    query = randn(case.rows, 6, 16, seed=1)
    keys, values = randn(case.slots, 2, 16, seed=2), randn(case.slots, 2, 12, seed=3)
    poison_others(case, keys, values)
    (keys, key_scales), (values, value_scales) = quantize(keys, torch.float32), quantize(values, torch.float32)
    given = (query, keys, values, case.layout(), 0.3, window, KVScales(key_scales, value_scales))
    assert_same(ops.paged_attention(*given), reference.paged_attention(*given))


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("mode", ["auto", "expanded", "absorbed"])
def test_int8_latents(ops: Ops, name: str, mode: str) -> None:
    case = RAGGED[name]
    heads, nope, rope, value_dim, rank = 3, 6, 4, 5, 24
    latents = randn(case.slots, 1, rank + rope, seed=3)
    latents[..., rank:] *= 30  # a rotated key has another magnitude, and a scale of its own
    poison_others(case, latents)
    (first, key_scales), (rest, value_scales) = (
        quantize(part, torch.float32) for part in (latents[..., :rank], latents[..., rank:])
    )
    query, up = randn(case.rows, heads, nope + rope, seed=1), randn(heads, nope + value_dim, rank, seed=4) * rank**-0.5
    given = (query[..., :nope], query[..., nope:], torch.cat([first, rest], dim=-1), up[:, :nope], up[:, nope:])
    scales = KVScales(key_scales, value_scales)
    actual = ops.mla_attention(*given, case.layout(), 0.1, mode, scales)
    assert_same(actual, reference.mla_attention(*given, case.layout(), 0.1, mode, scales))


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("heads,kv_heads,key_dim,value_dim", HEADS)
@pytest.mark.parametrize("window", [None, 1, 3, 4, 64])
def test_paged_attention(
    ops: Ops, name: str, heads: int, kv_heads: int, key_dim: int, value_dim: int, window: int | None
) -> None:
    case = RAGGED[name]
    query = randn(case.rows, heads + 2, key_dim, seed=1)[:, :heads]
    keys, values = randn(case.slots, kv_heads, key_dim, seed=2), randn(case.slots, kv_heads, value_dim, seed=3)
    poison_others(case, keys, values)
    actual = ops.paged_attention(query, keys, values, case.layout(), 0.3, window)
    assert_same(actual, reference.paged_attention(query, keys, values, case.layout(), 0.3, window))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", [None, 5])
def test_paged_attention_in_half_precision(ops: Ops, dtype: torch.dtype, window: int | None) -> None:
    case = RAGGED["scattered mixed"]
    query, keys, values = (
        randn(*s, seed=i, dtype=dtype)
        for i, s in enumerate([(case.rows, 6, 16), (case.slots, 2, 16), (case.slots, 2, 16)])
    )
    actual = ops.paged_attention(query, keys, values, case.layout(), 0.3, window)
    expected = reference.paged_attention(query, keys, values, case.layout(), 0.3, window)
    assert_same(actual, expected, tolerance=HALF[dtype])


def test_attention_with_large_scores(ops: Ops) -> None:
    case = RAGGED["mixed"]
    query, keys = randn(case.rows, 2, 8, seed=1) * 60, randn(case.slots, 2, 8, seed=2) * 60
    values = randn(case.slots, 2, 8, seed=3)
    actual = ops.paged_attention(query, keys, values, case.layout(), 1.0)
    assert_same(actual, reference.paged_attention(query, keys, values, case.layout(), 1.0), tolerance=1e-3)


def test_a_broken_sequence_harms_no_other(ops: Ops) -> None:
    """NaN in one sequence's query and keys stays in its rows."""
    case = RAGGED["scattered mixed"]
    layout = case.layout()
    query, keys, values = randn(case.rows, 2, 8, seed=1), randn(case.slots, 2, 8, seed=2), randn(case.slots, 2, 8)
    clean = ops.paged_attention(query, keys, values, layout, 0.3)
    broken = reference.context_slots(layout, 1)
    keys[broken], values[broken] = float("nan"), float("inf")
    rows = slice(layout.query_starts[1], layout.query_starts[2])
    actual = ops.paged_attention(query, keys, values, layout, 0.3)
    assert actual[rows].isnan().all()
    clean[rows] = actual[rows] = 0.0
    assert torch.equal(actual, clean)


@pytest.mark.parametrize("name", RAGGED)
@pytest.mark.parametrize("mode", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize("heads,nope,rope,value_dim,rank", [(3, 6, 4, 5, 9), (4, 16, 8, 16, 24), (1, 4, 2, 8, 4)])
def test_mla_attention(
    ops: Ops, name: str, mode: str, heads: int, nope: int, rope: int, value_dim: int, rank: int
) -> None:
    case = RAGGED[name]
    latent = randn(case.slots, 1, rank + rope, seed=3)
    up = randn(heads, nope + value_dim, rank, seed=4) * rank**-0.5
    query = randn(case.rows, heads, nope + rope, seed=1)
    poison_others(case, latent)
    arguments = (query[..., :nope], query[..., nope:], latent, up[:, :nope], up[:, nope:])
    expected = reference.mla_attention(*arguments, case.layout(), 0.4)
    assert_same(ops.mla_attention(*arguments, case.layout(), 0.4, mode), expected)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("experts,top_k", [(1, 1), (4, 2), (8, 8), (16, 3)])
@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_moe(ops: Ops, rows: int, experts: int, top_k: int, kind: str) -> None:
    x, gate_up, down = randn(rows, 12, seed=1), randn(experts, 20, 12, seed=2) * 0.3, randn(experts, 12, 10, seed=3)
    ids = randn(rows, experts, seed=4).topk(top_k).indices
    weights = randn(rows, top_k, seed=5)
    before = x.clone()
    actual = ops.moe(x, gate_up, down, ids, weights, kind)
    assert_same(actual, reference.moe(x, gate_up, down, ids, weights, kind))
    assert torch.equal(x, before)


def test_moe_with_one_busy_expert(ops: Ops) -> None:
    x, gate_up, down = randn(9, 12, seed=1), randn(5, 20, 12, seed=2), randn(5, 12, 10, seed=3)
    ids, weights = torch.full((9, 1), 3), randn(9, 1, seed=5)
    expected = reference.moe(x, gate_up, down, ids, weights, "silu")
    assert_same(ops.moe(x, gate_up, down, ids, weights, "silu"), expected)


@pytest.mark.parametrize("kind", ["relu", ""])
def test_unknown_activation(ops: Ops, kind: str) -> None:
    with pytest.raises(ValueError, match="unknown activation"):
        ops.gated_activation(randn(1, 4), kind)


def poison_others(case: Ragged, *caches: torch.Tensor) -> None:
    """NaN wherever no sequence has a token: a kernel that reads too far shows."""
    layout = case.layout()
    used = {slot for i in range(layout.num_sequences) for slot in reference.context_slots(layout, i)}
    others = [slot for slot in range(case.slots) if slot not in used]
    for cache in caches:
        cache[others] = float("nan")
