"""Packed rows against the same examples one by one: logits, losses and gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deepseek.errors import UnsupportedModelError
from deepseek_tune import attention
from deepseek_tune.attention import Packing, packed_attention, runs
from deepseek_tune.data.packing import IGNORED, PackedRow
from deepseek_tune.forward import PackedModel
from tests.parity.tiny import VOCAB, build

LENGTHS = (17, 16, 16, 16, 15, 8, 7, 6, 1)
FAMILIES = ("llama", "llama-tied-linear-rope", "llama-multi-query-yarn", "llama-biases-llama3-rope", "qwen2-window")
FAMILIES += ("qwen3", "gemma3-untied-scaled-softcap", "deepseek-v2-lite", "deepseek-v3", "qwen3-moe")


def row_of(lengths: tuple[int, ...], *, padding: int = 0, seed: int = 0) -> PackedRow:
    """Random tokens; every other one is an answer's."""
    random = np.random.default_rng(seed)
    targets = random.integers(0, VOCAB, sum(lengths) + padding)
    targets[::2] = IGNORED
    targets[sum(lengths) :] = IGNORED
    positions = np.concatenate([*map(np.arange, lengths), np.zeros(padding, int)])
    ids = random.integers(0, VOCAB, len(targets))
    return PackedRow(ids, positions, targets, lengths, tuple(range(len(lengths))))


def single(row: PackedRow, index: int) -> PackedRow:
    start, end = row.cu_seqlens[index : index + 2]
    part = slice(start, end)
    return PackedRow(row.ids[part], row.positions[part], row.targets[part], (int(end - start),), (index,))


def gradients(model: Any) -> dict[str, torch.Tensor]:
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return found


def test_runs() -> None:
    assert runs(LENGTHS) == ((1, 17), (3, 16), (1, 15), (1, 8), (1, 7), (1, 6), (1, 1))
    assert runs(()) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_one_by_one(family: str) -> None:
    model = build(family)
    row = row_of(LENGTHS)
    plain = torch.nn.CrossEntropyLoss(reduction="sum", ignore_index=IGNORED)
    expected = torch.zeros(())
    for index in range(len(LENGTHS)):
        alone = single(row, index)
        logits = model(input_ids=torch.from_numpy(alone.ids)[None], use_cache=False).logits[0]
        expected = expected + plain(logits.float(), torch.from_numpy(alone.targets))
    expected.backward()
    wanted = gradients(model)
    packed = PackedModel(model)
    loss = packed.loss(row)
    loss.backward()
    assert abs(loss.item() / expected.item() - 1) < 1e-5
    found = gradients(model)
    assert found.keys() == wanted.keys()
    scale = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in found.items():
        assert float((grad - wanted[name]).abs().max()) < 1e-5 * scale, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("short", [0, attention.SHORT])
def test_a_shared_beginning_is_computed_once(family: str, short: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With plain products and with SDPA: losses and gradients are those of the whole examples."""
    monkeypatch.setattr(attention, "SHORT", short)
    model = build(family)
    packed = PackedModel(model)
    apart = row_of(LENGTHS)
    shared, tails = 5, tuple(length - 5 for length in LENGTHS if length > 5)
    beginning = apart.ids[:shared]
    starts = apart.cu_seqlens
    ids, targets, positions = [], [], []
    for index, length in enumerate(LENGTHS[: len(tails)]):
        ids.append(np.concatenate([beginning, apart.ids[starts[index] + shared : starts[index] + length]]))
        target = apart.targets[starts[index] : starts[index] + length].copy()
        target[:shared] = IGNORED
        targets.append(target)
        positions.append(np.arange(length))
    lengths, examples = LENGTHS[: len(tails)], tuple(range(len(tails)))
    loss = packed.loss(PackedRow(*map(np.concatenate, (ids, positions, targets)), lengths, examples))
    loss.backward()
    wanted = gradients(model)
    once = (
        np.concatenate([first, *(values[shared:] for values in each)])
        for first, each in ((beginning, ids), (np.arange(shared), positions), (np.full(shared, IGNORED), targets))
    )
    found = packed.loss(PackedRow(*once, tails, examples, shared))
    found.backward()
    assert found.item() == pytest.approx(loss.item(), rel=1e-5)
    scale = max(float(grad.abs().max()) for grad in wanted.values())
    for name, grad in gradients(model).items():
        assert float((grad - wanted[name]).abs().max()) < 1e-5 * scale, name


def test_padding_changes_nothing() -> None:
    model = build("llama")
    packed = PackedModel(model)
    row = row_of(LENGTHS)
    packed.loss(row).backward()
    wanted = gradients(model)
    padded = row_of(LENGTHS, padding=7)
    padded.ids[: len(row.ids)] = row.ids
    padded.targets[: len(row.ids)] = row.targets
    loss = packed.loss(padded)
    loss.backward()
    for name, grad in gradients(model).items():
        assert torch.allclose(grad, wanted[name], rtol=1e-5, atol=1e-6), name
    unused = next(token for token in range(VOCAB) if token not in row.ids)
    padded.ids[len(row.ids) :] = unused
    with torch.no_grad():
        model.get_input_embeddings().weight[unused] = float("nan")
        assert torch.equal(packed.loss(padded), loss.detach())


def test_attention_itself_does_not_read_padding() -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, 20, 8) for heads in (4, 2, 2))
    module = torch.nn.Identity()
    clean, _ = packed_attention(module, query, key, value, None, packing=Packing(0, runs((9, 4, 4))))
    for tensor in (query, key, value):
        tensor[:, :, 17:] = float("nan")
    out, _ = packed_attention(module, query, key, value, None, packing=Packing(0, runs((9, 4, 4))))
    assert torch.equal(out, clean) and not out[:, 17:].any()


@pytest.mark.parametrize("window", [3, 4, 5])
def test_windows_count_the_token_itself(window: int) -> None:
    torch.manual_seed(1)
    query, key, value = (torch.randn(1, 2, 4, 8) for _ in range(3))
    out, _ = packed_attention(torch.nn.Identity(), query, key, value, None, sliding_window=window)
    scores = (query @ key.transpose(2, 3)) * 8**-0.5
    distance = torch.arange(4)[:, None] - torch.arange(4)[None]
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    assert torch.allclose(out, (scores.softmax(-1) @ value).transpose(1, 2), atol=1e-6)


def test_models_that_packing_would_change_are_refused() -> None:
    model = build("llama")
    model.config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(UnsupportedModelError, match="linear_attention"):
        PackedModel(model)
    model = build("llama")
    forward = model.forward
    model.forward = lambda *args, **kwargs: _scaled(forward(*args, **kwargs))
    with pytest.raises(UnsupportedModelError, match="other logits"):
        PackedModel(model)
    tensors = [torch.randn(1, 2, 4, 8)] * 3
    for unsupported in ({"softcap": 5.0}, {"is_causal": False}, {"s_aux": torch.zeros(2)}):
        with pytest.raises(UnsupportedModelError):
            packed_attention(torch.nn.Identity(), *tensors, None, **unsupported)


def _scaled(output: Any) -> Any:
    output.logits = output.logits * 0.5
    return output
