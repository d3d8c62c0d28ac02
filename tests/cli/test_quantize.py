"""`deepseek quantize` and `deepseek bench quality`, as a user calls them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.test_commands import deepseek


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["quantize", "nosuch", "--to", "int8", "-o", "OUT"], "unknown model 'nosuch'"),
        (["quantize", "nosuch", "--to", "int3", "-o", "OUT"], "int8 or int4, not to 'int3'"),
        (["quantize", "nosuch", "--to", "int8", "-o", "."], "not an empty folder"),
        (["quantize", "nosuch", "--to", "int8", "-o", "OUT", "--calibration", "missing.txt"], "missing.txt"),
        (["bench", "quality", "a", "--against", "b"], "nothing to measure"),
        (["bench", "quality", "a", "--against", "b", "--text", "missing.txt"], "missing.txt cannot be read"),
    ],
)
def test_errors_are_one_readable_message(arguments: list[str], words: str, tmp_path: Path) -> None:
    result = deepseek(*(str(tmp_path / "out") if argument == "OUT" else argument for argument in arguments))
    assert result.returncode == 1
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_smollm2_below_half_its_size_and_close(test_model: Path, shared_data: Path, tmp_path: Path) -> None:
    news = (shared_data / "ntrex" / "newstest2019-src.eng.txt").read_text(encoding="utf-8").splitlines()
    (tmp_path / "calibration.jsonl").write_text(json.dumps({"text": "\n".join(news[:300])}) + "\n")
    (tmp_path / "text.txt").write_text("\n".join(news[300:450]), encoding="utf-8")
    out, figures = tmp_path / "out", tmp_path / "figures.json"
    calibration = ["--calibration", str(tmp_path / "calibration.jsonl")]
    result = deepseek("quantize", str(test_model), "--to", "int8", "-o", str(out), "--tokens", "2048", *calibration)
    assert result.returncode == 0, result.stderr
    assert json.loads((out / "quality.json").read_text())["size_ratio"] < 0.5
    paths = ["--text", str(tmp_path / "text.txt"), "--json", str(figures)]
    result = deepseek("bench", "quality", str(out), "--against", str(test_model), "--dtype", "fp32", *paths)
    assert result.returncode == 0, result.stderr
    text = json.loads(figures.read_text())["texts"]["text"]
    assert text["kl_mean"] < 0.02
    assert text["top1_agreement"] > 0.92
    assert abs(text["perplexity_ratio"] - 1) < 0.02
    answer = deepseek("chat", str(out), "-p", "What is the capital of France?", "--temperature", "0")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
