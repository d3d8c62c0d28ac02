"""A model divided over processes: real processes, and the same answers as in one."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import save_file

from deepseek.config import EngineConfig
from deepseek.engine.computation import Launcher
from deepseek.engine.execution import choose_execution
from deepseek.errors import ConfigurationError, EngineError
from deepseek.hub.open import open_checkpoint
from deepseek.models.base import Model
from deepseek.models.registry import parse_config
from tests.engine.launchers import launcher_of
from tests.fakes import greedy, make_engine, run, tokens_of
from tests.parity import tiny

PROMPTS = [[5, 17, 3, 88, 41, 2, 9], [11, 12, 13], [7] * 20]


def save(name: str, folder: Path) -> Path:
    stored = tiny.checkpoint(tiny.build(name))
    tensors = {key: stored.load(key, torch.float32).clone().contiguous() for key in stored.shapes}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(stored.config)))
    return folder


@contextmanager
def loaded(folder: Path, size: int, dtype: str = "fp32") -> Iterator[Model]:
    config = EngineConfig(
        model=str(folder), dtype=dtype, backend="torch", tensor_parallel_size=size, threads=2, attention="dense"
    )
    checkpoint = open_checkpoint(folder)
    model = choose_execution(config, checkpoint, parse_config(checkpoint.config), folder).load(checkpoint, "m", None)
    try:
        yield model
    finally:
        checkpoint.close()
        if size > 1:
            model.close()  # type: ignore[attr-defined]


def followers() -> list[psutil.Process]:
    return [
        child for child in psutil.Process().children() if any("parallel_worker" in part for part in child.cmdline())
    ]


def answers(model: Model, launcher: Launcher | None = None) -> list[list[int]]:
    engine = make_engine(model, launcher=launcher)
    for index, prompt in enumerate(PROMPTS):
        engine.add(greedy(f"r{index}", prompt, 12))
    events = run(engine)
    return [tokens_of(events, f"r{index}") for index in range(len(PROMPTS))]


@pytest.mark.parametrize(
    "name,size", [("llama-wide-biases", 2), ("llama", 4), ("qwen3-moe", 2), ("deepseek-v3-wide", 2), ("gemma3", 2)]
)
def test_answers_are_those_of_one_process(name: str, size: int, tmp_path: Path) -> None:
    folder = save(name, tmp_path)
    with loaded(folder, 1) as whole:
        expected, weights = answers(whole), whole.weights_bytes
    with loaded(folder, size) as model:
        assert answers(model) == expected
        with launcher_of("threaded") as launcher:  # the tokens of the step before reach all processes
            assert answers(model, launcher) == expected
        assert weights < model.weights_bytes < 2 * size * weights


def test_what_cannot_be_divided_is_refused(tmp_path: Path) -> None:
    folder = save("llama", tmp_path)
    with (
        pytest.raises(
            ConfigurationError, match="does not divide this model's num_attention_heads 4, intermediate_size 80"
        ),
        loaded(folder, 3),
    ):
        pass
    assert not followers()


def test_a_lost_process_fails_the_step_and_says_why(tmp_path: Path) -> None:
    with loaded(save("llama", tmp_path), 2) as model:
        engine = make_engine(model)
        engine.add(greedy("r", PROMPTS[0], 30))
        for _ in range(3):
            engine.step()
        (follower,) = followers()
        os.kill(follower.pid, signal.SIGKILL)
        while follower.status() != psutil.STATUS_ZOMBIE:  # the engine shall find it
            time.sleep(0.01)
        with pytest.raises(EngineError, match="process 1 of this divided model ended with -9"):
            run(engine)
