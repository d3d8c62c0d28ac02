"""Native mixture of experts: routing against torch, the experts' sums against their weights' exact values, and the same
bits whatever computes them."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from deepseek.kernels import reference
from deepseek.kernels.cpu.extension import native, obstacle
from deepseek.layers.moe import Routing, route
from tests.kernels.test_native_matrix import GGUF, blocks, quantized

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")

ISAS = list(native().available_isas()) if obstacle() is None else []
FORMATS = ["Q4_1", "Q4_K", "Q6_K", "Q8_0", "int8_channel", "fp16", "bf16"]
EXPERTS, TOP_K = 6, 2

ROUTINGS = {
    "softmax": (8, Routing(top_k=3)),
    "all of them": (3, Routing(top_k=3)),
    "normalised": (6, Routing(top_k=2, normalize=True)),
    "deepseek v2": (160, Routing(top_k=6, groups=8, top_groups=3, scale=16.0)),
    "deepseek v3": (
        256,
        Routing(top_k=8, scoring="sigmoid", groups=8, top_groups=4, group_score="top2", normalize=True, scale=2.5),
    ),
    "one group's experts": (8, Routing(top_k=2, scoring="sigmoid", groups=4, top_groups=1, group_score="top2")),
    "an odd number": (61, Routing(top_k=5, normalize=True)),
}

# name -> per row the experts that compute it
CHOICES: dict[str, list[list[int]]] = {
    "one row": [[4, 1]],
    "all rows to two experts": [[2, 5]] * 21,
    "experts without rows": [[0, 5], [5, 0], [0, 1]],
    "a tile and one": [[0, 1 + i % 2] for i in range(17)],
    "every expert": [[i % 6, (i + 1 + i % 4) % 6] for i in range(23)],
    "ragged": [[0, 1]] * 5 + [[1, 2]] * 16 + [[3, 1]] + [[5, 4]] * 33,
}


def spec_of(routing: Routing, router: Tensor, bias: Tensor | None, gate_up: Any, down: Any, inner: int) -> Any:
    spec = native().ExpertsSpec()
    spec.routing = native().Routing(
        experts=len(router),
        top_k=routing.top_k,
        groups=routing.groups,
        top_groups=routing.top_groups,
        sigmoid=routing.scoring == "sigmoid",
        best_two=routing.group_score == "top2",
        normalize=routing.normalize,
        scale=routing.scale,
    )
    spec.set_router(router.numpy())
    spec.bias = [] if bias is None else bias.tolist()
    spec.gate_up, spec.down, spec.inner, spec.activation = gate_up, down, inner, 0
    return spec


def router_of(name: str, hidden: int, biased: bool) -> tuple[Any, Tensor, Tensor | None]:
    """(native experts, router, bias); the experts' own matrices are not used."""
    experts, routing = ROUTINGS[name]
    generator = torch.Generator().manual_seed(len(name))
    router = torch.randn(experts, hidden, generator=generator) * hidden**-0.5
    bias = torch.randn(experts, generator=generator) * 0.1 if biased else None
    gate_up = native().Matrix("fp16", 64, hidden)
    down = native().Matrix("fp16", hidden, 32)
    return spec_of(routing, router, bias, [gate_up] * experts, [down] * experts, 32), router, bias


def routed(spec: Any, x: Tensor, top_k: int, isa: str = "auto", threads: int = 1) -> tuple[Tensor, Tensor]:
    ids, weights = torch.empty(len(x), top_k, dtype=torch.int32), torch.empty(len(x), top_k)
    native().route(spec, x.numpy(), ids.numpy(), weights.numpy(), isa, threads)
    return ids, weights


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("rows", [1, 3, 4, 17])
@pytest.mark.parametrize("name", ROUTINGS)
def test_routing(name: str, rows: int, biased: bool, isa: str) -> None:
    spec, router, bias = router_of(name, 72, biased)
    routing = ROUTINGS[name][1]
    x = torch.randn(rows, 72, generator=torch.Generator().manual_seed(rows)) * 2
    expected_ids, expected_weights = route(x @ router.T, routing, bias)
    ids, weights = routed(spec, x, routing.top_k, isa)
    assert torch.equal(ids.long(), expected_ids)
    torch.testing.assert_close(weights, expected_weights, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("name", ROUTINGS)
def test_routing_depends_on_nothing_around_a_row(name: str) -> None:
    spec, _, _ = router_of(name, 72, biased=True)
    top_k = ROUTINGS[name][1].top_k
    x = torch.randn(13, 72, generator=torch.Generator().manual_seed(1))
    alone = [routed(spec, x[i : i + 1], top_k, "avx2") for i in range(13)]
    for isa in ISAS:
        for threads in (1, 2, 3):
            for rows in (1, 5, 13):
                ids, weights = routed(spec, x[:rows], top_k, isa, threads)
                for i in range(rows):
                    assert torch.equal(ids[i], alone[i][0][0]), (isa, threads, rows)
                    assert torch.equal(weights[i], alone[i][1][0]), (isa, threads, rows)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ROUTINGS)
def test_a_broken_row_is_still_routed_somewhere(name: str, value: float) -> None:
    spec, _, _ = router_of(name, 72, biased=False)
    experts, routing = ROUTINGS[name]
    x = torch.randn(5, 72, generator=torch.Generator().manual_seed(2))
    clean = routed(spec, x, routing.top_k)
    x[2] = value
    ids, weights = routed(spec, x, routing.top_k)
    assert len(set(ids[2].tolist())) == routing.top_k
    assert 0 <= int(ids[2].min()) <= int(ids[2].max()) < experts
    assert weights[2].isnan().all()
    others = [0, 1, 3, 4]
    assert torch.equal(ids[others], clean[0][others])
    assert torch.equal(weights[others], clean[1][others])


def put(matrix: Any, kind: str, rows: int, columns: int, rng: np.random.Generator, start: int, alternate: bool) -> Any:
    """Random rows of a format into a matrix; returns their exact values."""
    if kind in GGUF:
        data = blocks(kind, rows, columns, rng)
        assert matrix.put_gguf(kind, data, start, alternate) == -1
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind])
    if kind == "int8_channel":
        q = rng.integers(-127, 128, (rows, columns), dtype=np.int8)
        scale = (rng.random((rows, 1)) * 1e-3).astype(np.float32)
        assert matrix.put_int8(q, scale, columns, start, alternate) == -1
        return q * scale
    values = rng.integers(-128, 129, (rows, columns)).astype(np.float32) / 512
    assert matrix.put_float(values, start, alternate) == -1
    return values


def experts_of(kinds: list[str], hidden: int, inner: int) -> tuple[Any, Tensor, Tensor]:
    """(native experts in turns of ``kinds``, gate_up [experts, 2 * inner, hidden], down [experts, hidden, inner])."""
    rng = np.random.default_rng(hidden + inner)
    pool = native().Pool()
    gate_up, down, gate_up_values, down_values = [], [], [], []
    for expert in range(EXPERTS):
        kind = kinds[expert % len(kinds)]
        format = GGUF.get(kind, kind)
        gate_up.append(native().Matrix(format, 2 * (-(-inner // 32) * 32), hidden, pool))
        halves = [put(gate_up[-1], kind, inner, hidden, rng, start, True) for start in (0, 32)]
        gate_up_values.append(np.concatenate(halves))
        down.append(native().Matrix(format, hidden, inner, pool))
        down_values.append(put(down[-1], kind, hidden, inner, rng, 0, False))
    spec = spec_of(Routing(top_k=TOP_K), torch.zeros(EXPERTS, hidden), None, gate_up, down, inner)
    as_tensor = [torch.from_numpy(np.stack(values).astype(np.float32)) for values in (gate_up_values, down_values)]
    return spec, as_tensor[0], as_tensor[1]


def rounded(values: Tensor, kind: str, isa: str) -> Tensor:
    """Operands of wide rows: bf16 on the matrix unit, 8 bits without one; fp16 weights have no wide form."""
    if kind == "fp16" or (kind == "bf16" and isa != "amx"):
        return values
    if isa == "amx":
        return values.to(torch.bfloat16).float()
    return torch.from_numpy(quantized(values.numpy())).float()


def mixed(
    spec: Any, x: Tensor, ids: Tensor, weights: Tensor, isa: str = "auto", threads: int = 1, narrow: int | None = None
) -> Tensor:
    out = torch.empty_like(x)
    native().moe(spec, x.numpy(), ids.int().numpy(), weights.numpy(), out.numpy(), isa, threads, narrow)
    return out


def inputs(name: str, hidden: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    ids = torch.tensor(CHOICES[name])
    return torch.randn(len(ids), hidden, generator=generator), ids, torch.rand(len(ids), TOP_K, generator=generator)


def expected_sum(
    x: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, weights: Tensor, wide: tuple[str, str] | None = None
) -> Tensor:
    """Exact, or with the operands of ``wide`` (format, instruction set) rounded."""

    def product(rows: Tensor, matrix: Tensor) -> Tensor:
        if wide is None:
            return rows @ matrix.T
        return rounded(rows, *wide) @ (rounded(matrix, *wide) if wide[1] == "amx" else matrix).T

    result = torch.zeros_like(x)
    for row in range(len(x)):
        for expert, weight in zip(ids[row].tolist(), weights[row], strict=True):
            inner = reference.gated_activation(product(x[row : row + 1], gate_up[expert]), "silu")
            result[row] += weight * product(inner, down[expert])[0]
    return result


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("name", CHOICES)
def test_sums_of_experts(name: str, kind: str, isa: str) -> None:
    hidden, inner = (256, 512) if kind.endswith("_K") else (96, 160)
    spec, gate_up, down = experts_of([kind], hidden, inner)
    x, ids, weights = inputs(name, hidden)
    exact = expected_sum(x, gate_up, down, ids, weights)
    wide = expected_sum(x, gate_up, down, ids, weights, (kind, isa))
    for threads in (1, 3):
        assert (mixed(spec, x, ids, weights, isa, threads) - exact).norm() < 2e-4 * exact.norm()
        # A value of the inner layer that lies between two numbers may be rounded the other way.
        actual = mixed(spec, x, ids, weights, isa, threads, narrow=0)
        assert (actual - wide).norm() < 2e-3 * wide.norm()


@pytest.mark.parametrize("narrow", [None, 0])
@pytest.mark.parametrize("hidden,inner", [(48, 24), (40, 33), (33, 1), (272, 40)])
@pytest.mark.parametrize("kinds", [["int8_channel"], ["fp16"], ["int8_channel", "fp16", "bf16"]])
def test_ragged_widths_and_mixed_formats(kinds: list[str], hidden: int, inner: int, narrow: int | None) -> None:
    spec, gate_up, down = experts_of(kinds, hidden, inner)
    x, ids, weights = inputs("ragged", hidden)
    expected = expected_sum(x, gate_up, down, ids, weights)
    actual = mixed(spec, x, ids, weights, threads=2, narrow=narrow)
    assert (actual - expected).norm() < (2e-4 if narrow is None else 0.02) * expected.norm()


@pytest.mark.parametrize("kind", [*FORMATS, "mixed"])
def test_a_sum_depends_on_nothing_around_its_row(kind: str) -> None:
    kinds = ["Q4_1", "fp16", "int8_channel", "bf16"] if kind == "mixed" else [kind]
    hidden, inner = (256, 256) if kind.endswith("_K") else (96, 64)
    spec, _, _ = experts_of(kinds, hidden, inner)
    x, ids, weights = inputs("ragged", hidden)
    narrow = mixed(spec, x, ids, weights, "avx2", 1)
    for isa in ISAS:
        wide = mixed(spec, x, ids, weights, isa, 1, 0)
        for threads in (1, 2, 3, 8):
            assert torch.equal(mixed(spec, x, ids, weights, isa, threads), narrow), (isa, threads)
            for first in (0, 1, 7, 16, 40):
                actual = mixed(spec, x, ids, weights, isa, threads, first)
                assert torch.equal(actual, torch.cat([narrow[:first], wide[first:]])), (isa, threads, first)
        for i in range(0, len(x), 7):
            part = slice(i, i + 1 + i % 6)
            own = x[part].contiguous(), ids[part], weights[part].contiguous()
            assert torch.equal(mixed(spec, *own, isa), narrow[part]), (isa, part)
            assert torch.equal(mixed(spec, *own, isa, 1, 0), wide[part]), (isa, part)


@pytest.mark.parametrize("narrow", [None, 0, 5, 6])
@pytest.mark.parametrize("kind", ["Q4_1", "fp16"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_row_harms_no_other(kind: str, value: float, narrow: int | None) -> None:
    spec, _, _ = experts_of([kind], 96, 64)
    x, ids, weights = inputs("every expert", 96)
    clean = mixed(spec, x, ids, weights, narrow=narrow)
    x[5] = value
    actual = mixed(spec, x, ids, weights, threads=2, narrow=narrow)
    assert not actual[5].isfinite().all()
    actual[5] = clean[5]
    assert torch.equal(actual, clean)


def test_descriptions_that_do_not_fit() -> None:
    spec, _, _ = experts_of(["fp16"], 96, 64)
    x, ids, weights = inputs("one row", 96)
    with pytest.raises(ValueError, match="no such expert"):
        mixed(spec, x, ids + EXPERTS, weights)
    with pytest.raises(ValueError, match="hidden"):
        mixed(spec, torch.zeros(1, 64), ids, weights)
    spec.gate_up = spec.gate_up[1:]
    with pytest.raises(ValueError, match="gate and up"):
        mixed(spec, x, ids, weights)
