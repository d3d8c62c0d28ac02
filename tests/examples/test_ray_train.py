"""The example for Ray Train, where Ray is installed: two workers make what one process makes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepseek_tune import LoRATuner
from tests.tune.conftest import questions, tiny_model, tokenizer, write_jsonl  # noqa: F401  # fixtures

pytest.importorskip("ray.train", reason="ray[train] is not installed")
SCRIPT = Path(__file__).parents[2] / "examples" / "ray_train.py"


@pytest.mark.slow
def test_two_workers_do_what_one_process_does(tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    data = write_jsonl(tmp_path / "data.jsonl", questions(50))
    cache = tmp_path / "cache"
    LoRATuner(
        base_model=str(tiny_model), train_data=data, output_dir=tmp_path / "one", cache_dir=cache, progress=False
    ).train()
    command = [sys.executable, str(SCRIPT), str(data), "--base-model", str(tiny_model), "--workers", "2"]
    environment = {**os.environ, "DEEPSEEK_CACHE": str(cache), "RAY_USAGE_STATS_ENABLED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    assert done.returncode == 0, done.stderr
    assert "world_rank=1" in done.stdout + done.stderr
    runs = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("one", "data-lora")]
    losses = [[step["loss"] for step in run["steps"]] for run in runs]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
