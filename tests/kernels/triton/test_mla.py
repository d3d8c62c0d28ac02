"""Latent attention in its two forms against the reference."""

from __future__ import annotations

import pytest
import torch

from deepseek.errors import BackendUnavailableError
from deepseek.kernels import reference
from deepseek.kernels.paging import KVScales
from deepseek.kernels.triton import decode_attention, mla
from deepseek.kernels.triton.device_layout import DeviceLayout
from deepseek.kernels.triton.mla import break_even, mla_attention
from tests.kernels.cases import Ragged, assert_same, randn
from tests.kernels.triton.steps import DEVICE, STEPS, poisoned

# heads, nope, rope, value_dim, rank
SHAPES = [(3, 10, 8, 6, 24), (5, 16, 4, 16, 32), (1, 4, 2, 8, 9)]


@pytest.fixture(params=[True, False], ids=["split", "whole"])
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_attention, "MIN_SPLIT", 8 if request.param else 10**6)


def arguments(case: Ragged, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    heads, nope, rope, value_dim, rank = shape
    (latents,) = poisoned(case, randn(case.slots, 1, rank + rope, seed=3, dtype=dtype))
    up = (randn(heads, nope + value_dim, rank, seed=4) * rank**-0.5).to(dtype)
    query = randn(case.rows, heads, nope + rope, seed=1, dtype=dtype)
    return query[..., :nope], query[..., nope:], latents, up[:, :nope], up[:, nope:]


def check(
    case: Ragged, shape: tuple[int, ...], mode: str, dtype: torch.dtype = torch.float32, tolerance: float = 2e-5
) -> None:
    given = arguments(case, shape, dtype)
    actual = mla_attention(*(x.to(DEVICE) for x in given), case.layout(), 0.4, mode)
    assert_same(actual.cpu(), reference.mla_attention(*given, case.layout(), 0.4), tolerance=tolerance)


@pytest.mark.usefixtures("split")
@pytest.mark.parametrize("name", ["one token", "decode", "pages of 48"])
@pytest.mark.parametrize("shape", SHAPES)
def test_decoding(name: str, shape: tuple[int, ...]) -> None:
    check(STEPS[name], shape, "auto")


@pytest.mark.parametrize("mode", ["auto", "absorbed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_prompts_and_decoding(mode: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_attention, "MIN_SPLIT", 8)
    check(STEPS["mixed"], shape, mode)


@pytest.mark.parametrize("name", ["decode", "prompts", "pages of 32"])
@pytest.mark.parametrize("shape", SHAPES)
def test_expanded(name: str, shape: tuple[int, ...]) -> None:
    check(STEPS[name], shape, "expanded")


@pytest.mark.parametrize("name", ["one token", "decode", "mixed"])
@pytest.mark.parametrize("mode", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 3e-2)])
def test_int8(name: str, mode: str, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Latents and rotated keys have scales of their own. With fp16 queries weights are rounded to bf16."""
    monkeypatch.setattr(decode_attention, "MIN_SPLIT", 8)
    case, shape = STEPS[name], SHAPES[0]
    nope, rope, _, key_up, value_up = arguments(case, shape, dtype)
    rank = shape[4]
    generator = torch.Generator().manual_seed(7)
    latents = torch.randint(-127, 128, (case.slots, 1, rank + shape[2]), generator=generator, dtype=torch.int8)
    own, others = poisoned(case, *(randn(case.slots, 1, seed=i).abs() * 0.01 * i for i in (2, 5)))
    given = (nope, rope, latents, key_up, value_up)
    expected = reference.mla_attention(*given, case.layout(), 0.1, mode, KVScales(own, others))
    scales = KVScales(own.to(DEVICE), others.to(DEVICE))
    actual = mla_attention(*(x.to(DEVICE) for x in given), case.layout(), 0.1, mode, scales)
    assert_same(actual.cpu(), expected, tolerance=tolerance)


@pytest.mark.parametrize("mode", ["auto", "expanded", "absorbed"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 4e-3)])
def test_half_precision(mode: str, dtype: torch.dtype, tolerance: float) -> None:
    check(STEPS["mixed"], SHAPES[0], mode, dtype, tolerance)


def test_auto_expands_long_prompts_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Above the break-even, and where keys and values fit their room; what does not fit is absorbed all the same."""
    expanded: list[int] = []
    expand = mla._expand

    def watched(latents: torch.Tensor, slots: torch.Tensor, *up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        expanded.append(len(slots))
        return expand(latents, slots, *up)

    monkeypatch.setattr(mla, "_expand", watched)
    case = Ragged(((16, 12), (0, 13), (20, 14), (40, 1)), scattered=True, page=16)
    assert break_even(*arguments(case, SHAPES[0])[3:]) == 24 * 16 // 32 == 12
    check(case, SHAPES[0], "auto")
    assert expanded == [13, 34]
    expanded.clear()
    heads, nope, rope, value_dim, _ = SHAPES[0]
    monkeypatch.setattr(mla, "EXPANDED_BYTES", 33 * heads * (nope + rope + value_dim) * 4)
    check(case, SHAPES[0], "auto")
    assert expanded == [13]


@pytest.mark.usefixtures("split")
def test_static_buffers() -> None:
    """Nothing but bounds is asked on the host, so a graph may be captured; rows that pad the batch are zero."""
    static = DeviceLayout.allocate(DEVICE, sequences=4, rows=4, page_size=16, max_context=64, max_query=1)
    case = Ragged(((15, 1), (40, 1)), scattered=True, page=16)
    layout = case.layout()
    static.fill(layout)
    nope, rope, *others = arguments(case, SHAPES[0])
    padding = torch.ones(2, *nope.shape[1:]), torch.ones(2, *rope.shape[1:])
    query = (torch.cat([nope, padding[0]]), torch.cat([rope, padding[1]]))
    actual = mla_attention(*(x.to(DEVICE) for x in (*query, *others)), layout, 0.4).cpu()
    assert_same(actual[:2], reference.mla_attention(nope, rope, *others, layout, 0.4))
    assert not actual[2:].any()


@pytest.mark.parametrize(("page", "mode", "reason"), [(8, "auto", "not 8"), (16, "folded", "not 'folded'")])
def test_what_is_not_there_is_named(page: int, mode: str, reason: str) -> None:
    case = Ragged(((9, 1),), page=page)
    given = (x.to(DEVICE) for x in arguments(case, SHAPES[0]))
    with pytest.raises(BackendUnavailableError, match=reason):
        mla_attention(*given, case.layout(), 0.4, mode)
