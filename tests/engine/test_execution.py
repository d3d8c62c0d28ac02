"""Which execution a checkpoint gets, and that the engine runs what native kernels make of experts and latents."""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path

import pytest
import torch

from deepseek.config import EngineConfig
from deepseek.engine.execution import NativeExecution, TorchExecution, choose_execution
from deepseek.errors import BackendUnavailableError, ConfigurationError
from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.kernels.cpu.extension import obstacle
from deepseek.models.base import Model
from deepseek.models.registry import parse_config
from deepseek.quant.schemes import quantize
from tests.fakes import greedy, make_engine, run, tokens_of
from tests.parity import tiny
from tests.parity.driver import Driver

NOWHERE = Path()

pytestmark = pytest.mark.skipif(obstacle() is not None, reason=f"native kernels: {obstacle()}")

MODELS = ["qwen3-moe-mixed", "deepseek-v2-wide", "deepseek-v3-wide"]
PROMPTS = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2, 6], [7]]


class Stored(tiny.MemoryCheckpoint):
    """All experts as integers, like a quantized checkpoint."""

    def quantized(self, name: str) -> QuantizedMatrix | None:  # type: ignore[override]
        return quantize(self.tensors[name], 8) if re.search(r"experts\.\d+\.", name) else None

    def load(self, name: str, dtype: torch.dtype) -> torch.Tensor:
        stored = self.quantized(name)
        return super().load(name, dtype) if stored is None else stored.dequantize(dtype)


@cache
def checkpoint(name: str) -> Stored:
    plain = tiny.checkpoint(tiny.build(name))
    return Stored(plain.config, plain.tensors)


def narrow_answer(model: Model, prompt: list[int], count: int) -> list[int]:
    """Greedy tokens of a sequence alone, every row narrow."""
    driver, chunk, answer = Driver(model, page_size=16), prompt, []
    for _ in range(count):
        logits = driver.step([(0, chunk)], last_only=True, narrow_rows=len(chunk))[0]
        chunk = [int(logits.argmax())]
        answer += chunk
    return answer


@pytest.mark.parametrize("dtype", ["auto", "int8", "int4", "fp16"])
@pytest.mark.parametrize("name", MODELS)
def test_experts_and_latents_run_natively(name: str, dtype: str) -> None:
    stored = checkpoint(name)
    config = EngineConfig(model=name, dtype=dtype, threads=2, page_size=16)
    execution = choose_execution(config, stored, parse_config(stored.config), NOWHERE)
    assert isinstance(execution, NativeExecution)
    assert execution.scheme == dtype
    model = execution.load(stored, name, None)
    assert execution.backends(model)["model"].startswith("native")
    engine = make_engine(model, page_size=16, max_batch_tokens=8)  # type: ignore[arg-type]
    for index, prompt in enumerate(PROMPTS):
        engine.add(greedy(str(index), prompt, max_tokens=12))
    events = run(engine)
    # Batches of at most eight rows are narrow.
    alone = [narrow_answer(model, prompt, 12) for prompt in PROMPTS]
    assert [tokens_of(events, str(index)) for index in range(len(PROMPTS))] == alone


def test_latents_in_int8_are_refused_before_anything_is_loaded() -> None:
    stored = checkpoint("deepseek-v2-wide")
    config = EngineConfig(model="m", dtype="int8", kv_dtype="int8")
    execution = choose_execution(config, stored, parse_config(stored.config), NOWHERE)
    heard: list[int] = []
    with pytest.raises(ConfigurationError, match="kv_dtype fp16 or auto"):
        execution.load(stored, "m", lambda done, _: heard.append(done))
    assert heard == []


def test_widths_without_native_kernels(caplog: pytest.LogCaptureFixture) -> None:
    """Refused where native kernels are asked for, else computed by torch, with a warning."""
    stored = checkpoint("deepseek-v3")
    parsed = parse_config(stored.config)
    with pytest.raises(BackendUnavailableError, match=r"latents of 24 \+ 8 dimensions"):
        choose_execution(EngineConfig(model="m", dtype="int8"), stored, parsed, NOWHERE)
    with caplog.at_level(logging.WARNING):
        assert isinstance(choose_execution(EngineConfig(model="m"), stored, parsed, NOWHERE), TorchExecution)
    assert "latents of 24 + 8" in caplog.text


def test_sparse_attention_is_refused_where_it_cannot_be(caplog: pytest.LogCaptureFixture) -> None:
    """By name only: auto is dense there, and says so once."""
    stored = checkpoint("qwen3-moe-mixed")
    parsed = parse_config(stored.config)
    for options, match in [
        ({"page_size": 32}, "page_size of 64, not 32"),
        ({"page_size": 32, "backend": "torch"}, "page_size of 64, not 32"),
        ({"tensor_parallel_size": 2}, "one process"),
    ]:
        with pytest.raises(ConfigurationError, match=match):
            choose_execution(EngineConfig(model="m", attention="sparse", **options), stored, parsed, NOWHERE)  # type: ignore[arg-type]
        caplog.clear()
        with caplog.at_level(logging.INFO):
            execution = choose_execution(EngineConfig(model="m", **options), stored, parsed, NOWHERE)  # type: ignore[arg-type]
        told = [record.message for record in caplog.records if "attention is dense" in record.message]
        assert len(told) == (0 if "tensor_parallel_size" in options else 1)
        assert not getattr(execution, "indexed", False)


@pytest.mark.parametrize("options", [{"backend": "torch"}, {"dtype": "fp32"}, {"backend": "torch", "kv_dtype": "int8"}])
def test_torch_attends_sparsely_if_asked_to(options: dict[str, str], caplog: pytest.LogCaptureFixture) -> None:
    stored = checkpoint("qwen3-moe-mixed")
    parsed = parse_config(stored.config)
    for attention, sparse, said in [
        ("auto", False, "only if asked to"),
        ("sparse", True, "slow"),
        ("dense", False, ""),
    ]:
        caplog.clear()
        with caplog.at_level(logging.INFO):
            config = EngineConfig(model="m", attention=attention, **options)  # type: ignore[arg-type]
            execution = choose_execution(config, stored, parsed, NOWHERE)
        assert isinstance(execution, TorchExecution)
        assert said in caplog.text
        assert execution.load(stored, "m", None).sparse == sparse


@pytest.mark.parametrize("attention,sparse", [("dense", False), ("auto", True), ("sparse", True)])
def test_an_index_is_kept_unless_attention_is_dense(attention: str, sparse: bool) -> None:
    stored = checkpoint("qwen3-moe-mixed")
    config = EngineConfig(model="m", attention=attention, threads=2)
    model = choose_execution(config, stored, parse_config(stored.config), NOWHERE).load(stored, "m", None)
    assert model.sparse == sparse
