"""Two real processes against one: the same curve, the same adapter."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from deepseek.errors import ConfigurationError
from deepseek_tune import LoRATuner
from deepseek_tune.adapters import WEIGHTS
from deepseek_tune.parallel import World, join
from tests.tune.conftest import questions, write_jsonl

_SCRIPT = """
import json, os, sys
import deepseek_tune
from deepseek.errors import DeepSeekError
given = json.loads(sys.argv[1])
if given.pop("poison", False):
    from deepseek_tune.forward import PackedModel
    loss = PackedModel.loss
    PackedModel.loss = lambda self, row: loss(self, row) * (float("nan") if os.environ["RANK"] == "1" else 1.0)
try:
    result = getattr(deepseek_tune, given.pop("tuner"))(**given).train()
    print(json.dumps({"steps": result.steps, "there": os.path.exists(os.path.join(result.output_dir, "run.json"))}))
except DeepSeekError as error:
    print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
"""


@pytest.fixture
def given(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "base_model": str(tiny_model),
        "train_data": str(write_jsonl(tmp_path / "data.jsonl", questions(50))),
        "cache_dir": str(tmp_path / "cache"),
        "progress": False,
        "epochs": 2,
        "batch_tokens": 1100,
        "row_tokens": 350,
        "dtype": "fp32",
        "learning_rate": 3e-3,
        "validation": 0.1,
        "threads": 1,
    }


def two(tmp_path: Path, given: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of two processes says."""
    script = tmp_path / "run.py"
    script.write_text(_SCRIPT)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    command += ["--master-port", str(port), "--redirects", "3", "--log-dir", str(tmp_path / "logs")]
    subprocess.run([*command, str(script), json.dumps(given)], check=True, timeout=200)
    logs = [next((tmp_path / "logs").glob(f"*/attempt_0/{rank}/stdout.log")) for rank in (0, 1)]
    return [json.loads(log.read_text().splitlines()[-1]) for log in logs]


def run_of(folder: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return run


def test_two_processes_do_what_one_does(given: dict[str, Any], tmp_path: Path) -> None:
    one, both = tmp_path / "one", tmp_path / "both"
    LoRATuner(**given, lora_rank=4, output_dir=one).train()
    said = two(tmp_path, {**given, "tuner": "LoRATuner", "lora_rank": 4, "output_dir": str(both)})
    alone, shared = run_of(one), run_of(both)
    assert said == [{"steps": len(alone["steps"]), "there": True}] * 2
    assert alone["data"]["rows_per_step"] == 3  # an odd number for two processes, and fewer at an epoch's end
    for name in ("loss", "grad_norm", "tokens", "answer_tokens"):
        expected = [step[name] for step in alone["steps"]]
        assert [step[name] for step in shared["steps"]] == pytest.approx(expected, rel=1e-4)
    judged = [[evaluation["loss"] for evaluation in run["evaluations"]] for run in (alone, shared)]
    assert judged[0] == pytest.approx(judged[1], rel=1e-5)
    weights = [safetensors.torch.load_file(folder / WEIGHTS) for folder in (one, both)]
    for name, weight in weights[0].items():
        assert torch.allclose(weight, weights[1][name], rtol=1e-3, atol=1e-4), name


def test_a_loss_that_is_no_number_stops_all(given: dict[str, Any], tmp_path: Path) -> None:
    said = two(tmp_path, {**given, "tuner": "LoRATuner", "output_dir": str(tmp_path / "out"), "poison": True})
    assert all(one["error"].startswith("TrainingError: step 1: the loss is nan") for one in said)
    assert not (tmp_path / "out" / WEIGHTS).exists()


def test_the_world_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    world = join()
    assert world == World() and world.first and world.own([1, 2, 3]) == [1, 2, 3] and world.add(2.0, 3) == [2.0, 3]
    assert list(World(1, 2).own([1, 2, 3])) == [2]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(ConfigurationError, match=r"WORLD_SIZE is 2, but RANK.*torchrun"):
        join()
