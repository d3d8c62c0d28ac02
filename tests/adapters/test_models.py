"""Models with adapters: against peft, and the promise that a row depends on nothing around it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deepseek.adapters.adapter import Adapter
from deepseek.adapters.read import read_adapter
from deepseek.kernels import reference
from deepseek.kernels.cpu.extension import native, obstacle
from deepseek.kernels.registry import bind
from deepseek.models.base import Model
from deepseek.models.registry import load_model, load_native_model
from tests.adapters import making
from tests.adapters.making import ALL, PROMPT
from tests.kernels.cases import assert_same
from tests.kernels.low_rank_cases import LOW_RANK
from tests.parity import tiny
from tests.parity.driver import Driver

needs_native = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")
FAMILIES = ["llama-wide", "qwen2-wide-window", "qwen3-wide", "gemma3"]
SHAPES = [
    (1, ALL),
    (8, ("q_proj", "v_proj")),
    (15, ("k_proj", "up_proj")),
    (16, ALL),
    (17, ("o_proj", "gate_proj", "down_proj")),
]


@cache
def checkpoint(name: str) -> tiny.MemoryCheckpoint:
    return tiny.checkpoint(tiny.build(name))


def torch_model(name: str) -> Model:
    return load_model(checkpoint(name), ops=bind("cpu", "torch"), dtype=torch.float32, device="cpu")


def native_model(name: str, scheme: str = "fp16", *, threads: int = 2, isa: str = "auto") -> Model:
    return load_native_model(checkpoint(name), scheme=scheme, kv_dtype="fp16", threads=threads, isa=isa)


def logits(model: Model, adapter: Adapter, *, narrow: bool = True) -> Tensor:
    number = model.add_adapter(adapter.updates)
    driver = Driver(model, page_size=16, num_pages=16)
    (result,) = driver.step([(0, PROMPT)], adapters={0: number}, narrow_rows=len(PROMPT) if narrow else 0)
    model.remove_adapter(number)
    return result


def distance(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("rank", "targets"), SHAPES)
def test_logits_are_those_of_peft(name: str, rank: int, targets: Sequence[str], tmp_path: Path) -> None:
    theirs = making.lora(tmp_path, name, rank=rank, targets=targets)
    expected, model = making.logits_of(theirs), torch_model(name)
    adapter = read_adapter(tmp_path, model.host)
    assert distance(logits(model, adapter), expected) < 1e-5
    (base,) = Driver(model, page_size=16, num_pages=16).step([(0, PROMPT)])
    assert distance(base, expected) > 0.1  # it does something
    with making.quiet():
        merged = theirs.merge_and_unload()
    assert distance(making.logits_of(merged), expected) < 1e-5
    if obstacle() is None:
        assert distance(logits(native_model(name), adapter), expected) < 5e-3
        assert distance(logits(native_model(name), adapter, narrow=False), expected) < 5e-3


@pytest.mark.parametrize(
    "options",
    [{"use_rslora": True}, {"rank_pattern": {"q_proj": 7, "layers.1.mlp.up_proj": 2}, "alpha_pattern": {"v_proj": 3}}],
)
def test_scales_and_patterns_are_those_of_peft(options: dict[str, object], tmp_path: Path) -> None:
    theirs = making.lora(tmp_path, **options)
    model = torch_model("llama-wide")
    assert distance(logits(model, read_adapter(tmp_path, model.host)), making.logits_of(theirs)) < 1e-5


@pytest.mark.parametrize("name", ["llama-wide-biases", "qwen2-wide-window", "gemma3"])
@pytest.mark.parametrize("targets", [ALL, ("k_proj", "up_proj", "o_proj")])
def test_dora_is_that_of_peft(name: str, targets: Sequence[str], tmp_path: Path) -> None:
    """With biases, which lengths leave alone; beside a row of the model alone."""
    theirs = making.lora(tmp_path, name, targets=targets, use_dora=True)
    expected, model = making.logits_of(theirs), torch_model(name)
    adapter = read_adapter(tmp_path, model.host)
    assert all(update.magnitude is not None for update in adapter.updates.values())
    assert distance(logits(model, adapter), expected) < 1e-5
    if obstacle() is None:
        served = native_model(name)
        assert distance(logits(served, adapter), expected) < 5e-3
        assert distance(logits(served, adapter, narrow=False), expected) < 5e-3
        number = served.add_adapter(adapter.updates)
        driver = Driver(served, page_size=16, num_pages=16)
        adapted, alone = driver.step([(0, PROMPT), (1, PROMPT)], adapters={0: number}, narrow_rows=1000)
        (never,) = Driver(native_model(name), page_size=16, num_pages=16).step([(0, PROMPT)], narrow_rows=1000)
        assert torch.equal(alone, never)
        assert distance(adapted, expected) < 5e-3


@pytest.mark.parametrize("factor", [1e-6, 1e6])
@needs_native
def test_magnitudes_beyond_fp16(factor: float, tmp_path: Path) -> None:
    """Only the product of A and B counts."""
    making.lora(tmp_path)
    model = native_model("llama-wide")
    adapter = read_adapter(tmp_path, model.host)
    expected = logits(model, adapter)
    for update in adapter.updates.values():
        update.a.mul_(factor)
        update.b.div_(factor)
    assert distance(logits(model, adapter), expected) < 2e-3


@needs_native
@pytest.mark.parametrize("scheme", ["fp16", "bf16", "int8"])
@pytest.mark.parametrize("narrow", [True, False])
def test_a_batch_of_adapters_is_each_alone(scheme: str, narrow: bool, tmp_path: Path) -> None:
    """The model alone and three adapters of different ranks and targets, in one batch: the same to the bit. On any
    instruction set too, where rows are narrow."""
    shapes = {1: (16, ALL), 2: (5, ("q_proj", "down_proj")), 3: (33, ("gate_proj",))}
    for number, (rank, targets) in shapes.items():
        making.lora(tmp_path / str(number), rank=rank, targets=targets, seed=number)
    prompts = {i: PROMPT[: 9 + 3 * i] for i in range(8)}
    model = native_model("llama-wide", scheme)

    def run(isa: str, threads: int, *groups: Sequence[int]) -> dict[int, Tensor]:
        model = native_model("llama-wide", scheme, isa=isa, threads=threads)
        numbers = {i: model.add_adapter(read_adapter(tmp_path / str(i), model.host).updates) for i in shapes}
        results = {}
        for group in groups:
            driver = Driver(model, page_size=16, num_pages=64)
            adapters = {i: numbers[i % 4] for i in group if i % 4}
            for wanted in ([(i, prompts[i]) for i in group], [(i, [i + 5]) for i in group]):
                rows = 1000 if narrow else 0
                found = driver.step(wanted, adapters=adapters, narrow_rows=rows)
                for i, part in zip(group, found, strict=True):
                    results[i] = torch.cat([results[i], part]) if i in results and len(part) == 1 else part
        return results

    alone = run("auto", 1, *([i] for i in prompts))
    for isa in native().available_isas() if narrow else ["auto"]:
        for threads in (1, 3):
            together = run(isa, threads, list(prompts))
            for i in prompts:
                assert torch.equal(together[i], alone[i]), (isa, threads, i)
    base = Driver(model, page_size=16, num_pages=64)
    (never,) = base.step([(0, prompts[0])], narrow_rows=1000 if narrow else 0)
    assert torch.equal(never, alone[0][: len(never)])  # loaded adapters change nothing for the others
    assert not torch.equal(alone[4][: len(prompts[0])], alone[1][: len(prompts[0])])


@needs_native
def test_a_removed_adapter_is_gone(tmp_path: Path) -> None:
    making.lora(tmp_path)
    model = native_model("llama-wide")
    number = model.add_adapter(read_adapter(tmp_path, model.host).updates)
    assert model.adapter_bytes(number) > 0
    model.remove_adapter(number)
    with pytest.raises(IndexError):
        model.remove_adapter(number)
    with pytest.raises(IndexError):
        Driver(model, page_size=16, num_pages=16).step([(0, PROMPT)], adapters={0: number})


@pytest.mark.parametrize("name", LOW_RANK)
def test_low_rank_op(name: str) -> None:
    case = LOW_RANK[name]
    x, y, bias, updates = case.inputs_here()
    expected, before = y.clone(), y.clone()
    reference.low_rank(x, expected, bias, updates)
    bind("cpu", "torch").low_rank(x, y, bias, updates)
    assert_same(y, expected, tolerance=1e-4)
    assert not torch.equal(y, before)
    base = case.rows_without()
    assert torch.equal(y[base], before[base])
