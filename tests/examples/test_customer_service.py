"""The example runs from its data to an answer over HTTP; a slice of it, on a tiny model."""

from __future__ import annotations

import csv
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tune.conftest import tiny_model, tokenizer  # noqa: F401  # fixtures

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "examples" / "customer_service" / "run.py"
REAL = Path(os.environ.get("DEEPSEEK_BENCH_DATA") or ROOT.parent / "shared" / "data")
INTENTS = ("card_arrival", "lost_card", "exchange_rate", "top_up_failed")


def run(*arguments: str, work: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--work", str(work), *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "DEEPSEEK_CACHE": str(work / "cache")},
    )


def test_from_data_to_an_answer(tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    folder = tmp_path / "data" / "banking77"
    folder.mkdir(parents=True)
    for name, count in (("train.csv", 80), ("test.csv", 12)):
        with (folder / name).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "category"))
            writer.writerows((f"Question {i}, about {INTENTS[i % 4]}?", INTENTS[i % 4]) for i in range(count))
    options = ("--base-model", str(tiny_model), "--train", "60", "--test", "5", "--epochs", "2")
    done = run("--data", str(tmp_path / "data"), *options, work=tmp_path / "work")
    assert done.returncode == 0, done.stderr
    for words in ("prepared: 60 conversations", "tuned: ", "right answers", "served and asked: 'Question"):
        assert words in done.stdout
    before, after = re.findall(r"right answer: ([\d.]+) before, ([\d.]+) after", done.stdout)[0]
    assert float(after) < float(before)
    assert (tmp_path / "work" / "banking77-lora" / "report.html").exists()


def test_data_that_is_not_there(tmp_path: Path) -> None:
    done = run("--data", str(tmp_path), "--set", "crosswoz", work=tmp_path)
    assert done.returncode == 1 and "https://github.com/thu-coai/CrossWOZ" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", ["banking77", "clinc150", "korean_chatbot", "crosswoz"])
def test_every_set_is_read(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import sets

    try:
        learned, judged = sets.load(name, REAL, 50, 20, seed=1)
    except sets.MissingData as error:
        pytest.skip(str(error))
    assert (len(learned), len(judged)) == (50, 20)
    for conversation in learned + judged:
        assert conversation[0]["role"] == "user" and conversation[-1]["role"] == "assistant"
        assert all(turn["content"].strip() for turn in conversation)
    assert learned != sets.load(name, REAL, 50, 20, seed=2)[0]
    assert not [conversation for conversation in judged if conversation in learned]
