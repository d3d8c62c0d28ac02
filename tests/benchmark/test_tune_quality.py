"""What tuned models know, measured: on a tiny model that can learn four intents by heart."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.tune import quality, tuned
from benchmarks.tune.tuned import Job, Setup

from tests.tune.conftest import tiny_model, tokenizer  # noqa: F401  # fixtures

INTENTS = ("card_arrival", "lost_card", "exchange_rate", "top_up_failed")
SETUP = Setup("banking77", test=8, held_out=8, epochs=12, batch_tokens=None)


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Messages that begin with a letter of their intent."""
    folder = tmp_path / "data" / "banking77"
    folder.mkdir(parents=True)
    for name, count in (("train.csv.gz", 80), ("test.csv", 20)):
        opened: Any = gzip.open if name.endswith(".gz") else open
        with opened(folder / name, "wt", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "category"))
            writer.writerows((f"{'abcd'[i % 4]} {name[:2]} {i}", INTENTS[i % 4]) for i in range(count))
    monkeypatch.setenv("DEEPSEEK_BENCH_DATA", str(folder.parent))
    return folder.parent


def job(method: str = "full", rate: float = 1e-2, part: str = "test", seed: int = 0) -> Job:
    return Job(method, seed, rate, part, train=40)


def test_rows_are_balanced_and_judged_by_others(data: Path) -> None:
    learned, tested = tuned.rows(job(), SETUP)
    other, held_out = tuned.rows(job(part="held_out", seed=1), SETUP)
    assert (len(learned), len(tested), len(held_out)) == (40, 8, 8)
    assert {sum(intent == name for _, intent in learned) for name in {intent for _, intent in learned}} == {10}
    assert not set(held_out) & set(learned + other) and set(learned) != set(other)
    assert tuned.rows(job(method="lora"), SETUP) == (learned, tested)
    assert tuned.rows(job(seed=1), SETUP)[1] == tested


@pytest.mark.parametrize("method", tuned.TUNERS)
def test_every_method_learns(method: str, data: Path, tiny_model: Path, tmp_path: Path) -> None:  # noqa: F811
    rates = {"full": 1e-2, "lora": 3e-2, "tiny": 3e-2, "p-tuning": 1e-1, "prefix": 1e-1}
    one = tuned.run(job(method, rates[method]), SETUP, tiny_model, tmp_path, threads=1)
    assert one["nats_per_token"] < 4.5  # untrained 7.2, and 6.2 behind a random prompt
    assert one["accuracy"] == one["right"].count("1") / len(one["right"]) and len(one["right"]) == 8
    if method == "full":
        assert one["accuracy"] == 1


def test_right_is_what_is_generated_greedily(
    data: Path,
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    import transformers

    few = Setup("banking77", test=20, held_out=8, epochs=6, batch_tokens=None)  # not yet all right
    one = tuned.run(job(), few, tiny_model, tmp_path, threads=1)
    assert 0 < one["accuracy"] < 1
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned", dtype=torch.float32).eval()
    encode = tuned.load_tokenizer(tiny_model)
    for digit, (text, intent) in zip(one["right"], tuned.rows(job(), few)[1], strict=True):
        prompt = torch.tensor([encode.encode_chat([{"role": "user", "content": text}])])
        answer = model.generate(prompt, do_sample=False, max_new_tokens=24)[0, prompt.shape[1] :]
        assert (encode.decode(answer.tolist()).strip() == intent) == (digit == "1"), text


def test_a_measurement_goes_on(
    data: Path,
    tiny_model: Path,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(quality, "RATES", {"lora": (1e-3, 3e-2)})
    path = tmp_path / "result.json"
    arguments = ["--model", str(tiny_model), "--methods", "lora", "--train-limit", "40", "--sweep-limit", "20"]
    arguments += ["--held-out", "8", "--test-limit", "8", "--epochs", "2", "--threads", "1", "--json", str(path)]
    monkeypatch.setattr("sys.argv", ["quality", *arguments, "--seeds", "1"])
    quality.main()
    runs = json.loads(path.read_text())["runs"]
    assert [(one["part"], one["seed"]) for one in runs] == [("held_out", 1000)] * 2 + [("test", 0)]
    assert runs[2]["learning_rate"] == quality.best_rate(runs, "lora")
    monkeypatch.setattr("sys.argv", ["quality", *arguments, "--seeds", "2"])
    quality.main()
    more = json.loads(path.read_text())["runs"]
    assert more[:3] == runs and [one["seed"] for one in more[3:]] == [1]
    assert "lora" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["quality", *arguments, "--epochs", "3"])
    with pytest.raises(SystemExit, match="name another file"):
        quality.main()


def test_the_table_pairs_items_and_seeds() -> None:
    def one(method: str, seed: int, right: str) -> dict[str, Any]:
        accuracy = right.count("1") / len(right)
        given = {"method": method, "seed": seed, "right": right, "accuracy": accuracy, "part": "test"}
        return given | {"learning_rate": 1e-3, "trained_parameters": 7}

    runs = [one("full", 0, "1110" * 10), one("full", 1, "1100" * 10)]
    runs += [one("lora", 0, "1110" * 10), one("lora", 1, "1000" * 10), one("lora", 2, "1111" * 10)]
    full, lora = quality.lines(runs)
    assert (full.accuracy, full.lowest, full.highest, full.against_full) == (0.625, 0.5, 0.75, None)
    assert lora.against_full is not None
    value, low, high = lora.against_full
    assert value == pytest.approx(-0.125) and low < value < high < 0.0
    assert "-12.5" in quality.table(runs)
