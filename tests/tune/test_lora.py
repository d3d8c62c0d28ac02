"""LoRATuner from data to adapter, on a tiny model: resuming, refusing, and what is on the disk."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from deepseek.errors import CheckpointError, ConfigurationError, DataError, DiskSpaceError, TrainingError
from deepseek_tune import LoRATuner, checkpoints
from deepseek_tune.adapters import CONFIG, WEIGHTS, default_rate
from deepseek_tune.data.packing import PackedRow
from deepseek_tune.data.read import Row, read_rows
from deepseek_tune.forward import PackedModel
from deepseek_tune.progress import Silent, Step
from tests.tune.conftest import LAYERS, questions, write_jsonl


class Stop(Exception):
    """What a run is cut off with."""


class CutOff(Silent):
    """Ends a run after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def step(self, step: Step) -> None:
        self.left -= 1
        if not self.left:
            raise Stop


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "support.jsonl", questions(60))


@pytest.fixture
def given(tiny_model: Path, data: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "base_model": str(tiny_model),
        "train_data": data,
        "cache_dir": tmp_path / "cache",
        "progress": False,
        "report": False,
        "epochs": 2,
        "lora_rank": 4,
        "lora_dropout": 0.1,
        "batch_tokens": 512,
        "dtype": "fp32",
        "learning_rate": 1e-2,
        "validation": 0.1,
        "evals_per_epoch": 2,
        "checkpoint_every": 3,
    }


def run_of(folder: Path) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((folder / "run.json").read_text())
    return run


def curve(folder: Path) -> list[Any]:
    run = run_of(folder)
    return [(step["step"], step["epoch"], step["loss"], step["grad_norm"]) for step in run["steps"]] + [
        (judged["step"], judged["loss"]) for judged in run["evaluations"]
    ]


def epoch_losses(folder: Path) -> list[float]:
    """The mean loss per answer token of each epoch."""
    steps = run_of(folder)["steps"]
    sums = [0.0] * (steps[-1]["epoch"] + 1)
    answers = [0] * len(sums)
    for step in steps:
        sums[step["epoch"]] += step["loss"] * step["answer_tokens"]
        answers[step["epoch"]] += step["answer_tokens"]
    return [total / count for total, count in zip(sums, answers, strict=True)]


def test_narrow_models_get_higher_rates(given: dict[str, Any], data: Path, tiny_model: Path) -> None:
    assert default_rate(2000) == 5e-4
    assert default_rate(576) == pytest.approx(1.32e-3, rel=0.01)
    LoRATuner(**given | {"learning_rate": None, "schedule": "constant", "warmup": 0.0, "epochs": 1}).train()
    width = json.loads((tiny_model / "config.json").read_bytes())["hidden_size"]
    steps = run_of(data.parent / "support-lora")["steps"]
    assert [step["learning_rate"] for step in steps] == pytest.approx([default_rate(width)] * len(steps))


def test_from_data_to_adapter(given: dict[str, Any], data: Path, tiny_model: Path) -> None:
    import peft
    import transformers

    notes: list[str] = []
    reporter = Silent()
    reporter.note = notes.append  # type: ignore[method-assign]
    result = LoRATuner(**given, reporter=reporter).train()
    output = data.parent / "support-lora"
    assert result.output_dir == str(output)
    assert notes[-1] == f"serve it: deepseek serve {tiny_model} --adapter support-lora={output}"
    assert sorted(path.name for path in output.iterdir()) == [CONFIG, WEIGHTS, "run.json"]
    run = run_of(output)
    losses = [step["loss"] for step in run["steps"]]
    assert losses[-1] < 0.7 * losses[0] and result.loss == losses[-1] and result.steps == len(losses)
    judged = [evaluation["loss"] for evaluation in run["evaluations"]]
    assert len(judged) == 4 and result.validation_loss == min(judged)
    assert run["data"]["efficiency"] > 0.8 and run["versions"]["peft"] != "not installed"
    # Whoever reads peft's format computes what the run judged.
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    wrapped = peft.PeftModel.from_pretrained(model, output)
    trainer = LoRATuner(**given, output_dir=str(output.with_name("other")))
    ready = trainer._load(trainer._read(Silent()), Silent())
    held = ready.batches.held_out.indices
    total = answers = 0.0
    for example in held.tolist():
        ids, bits = ready.data.cache.example(example)
        tokens = torch.tensor(ids.astype(int))[None]
        with torch.no_grad():
            logits = wrapped(input_ids=tokens).logits[0].log_softmax(-1)
        for place in bits.nonzero()[0]:
            total -= float(logits[place - 1, tokens[0, place]])
            answers += 1
    assert total / answers == pytest.approx(result.validation_loss, rel=1e-4)


@pytest.mark.parametrize("after", [1, 2, 3, 4, 7])
def test_a_run_that_was_cut_off_goes_on_with_the_same_losses(given: dict[str, Any], tmp_path: Path, after: int) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    LoRATuner(**given, output_dir=whole).train()
    with pytest.raises(Stop):
        LoRATuner(**given, output_dir=parts, reporter=CutOff(after)).train()
    LoRATuner(**given, output_dir=parts).train()
    assert curve(parts) == curve(whole)
    assert (parts / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_finished_run_is_not_made_again(given: dict[str, Any], data: Path) -> None:
    first = LoRATuner(**given).train()
    assert LoRATuner(**given, reporter=CutOff(1)).train() == first
    with pytest.raises(ConfigurationError, match=r"differs in epochs \(2, now 3\).*resume=False"):
        LoRATuner(**{**given, "epochs": 3}).train()
    write_jsonl(data, questions(61))
    with pytest.raises(ConfigurationError, match="data_sha256"):
        LoRATuner(**given).train()
    again = LoRATuner(**{**given, "resume": False, "epochs": 1}).train()
    assert again.steps < first.steps


def test_another_adapter_is_not_overwritten(given: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / CONFIG).write_text("{}")
    with pytest.raises(ConfigurationError, match="did not make"):
        LoRATuner(**given, output_dir=tmp_path / "out").train()


def test_a_kill_in_the_middle_of_a_checkpoint(given: dict[str, Any], tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    LoRATuner(**given, output_dir=whole).train()
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in given.items()}
    code = f"""
import os, signal
from deepseek_tune import LoRATuner, checkpoints
write, count = checkpoints.write_file, 0
def dying(path, data):
    global count
    count += 1
    if count == 5:
        path.write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write(path, data)
checkpoints.write_file = dying
LoRATuner(**{settings!r}, output_dir={str(parts)!r}).train()
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=os.environ, check=False)
    assert process.returncode == -signal.SIGKILL
    left = sorted(path.name for path in (parts / "checkpoints").iterdir())
    assert len(left) == 2 and left[1].endswith(".partial") and left[0] < left[1]
    LoRATuner(**given, output_dir=parts).train()
    assert curve(parts)[3:] == curve(whole)[3:]
    assert (parts / WEIGHTS).read_bytes() == (whole / WEIGHTS).read_bytes()


def test_a_full_disk_leaves_the_checkpoint_before(
    given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    LoRATuner(**given, output_dir=whole).train()
    fsync, count = os.fsync, 0

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count > 8:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DiskSpaceError, match=r"disk of .*checkpoints is full\. The checkpoint step-\d+ is good"):
            LoRATuner(**given, output_dir=parts).train()
    (left,) = (parts / "checkpoints").iterdir()
    assert checkpoints.latest(parts / "checkpoints") == left
    LoRATuner(**given, output_dir=parts).train()
    assert curve(parts) == curve(whole)


def test_a_place_that_cannot_be_written_is_told_before_the_model_is_loaded(
    given: dict[str, Any], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LoRATuner, "_load", None)
    with pytest.raises(ConfigurationError, match=r"cannot be written \(Not a directory\)\. Nothing was trained"):
        LoRATuner(**given, output_dir=data / "out").train()
    with pytest.raises(ConfigurationError, match=r"cannot be written.*set cache_dir"):
        LoRATuner(**{**given, "cache_dir": data / "cache"}).train()


def test_a_damaged_checkpoint_is_told(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Stop):
        LoRATuner(**given, output_dir=tmp_path / "out", reporter=CutOff(4)).train()
    (found,) = (tmp_path / "out" / "checkpoints").iterdir()
    (found / "state.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(CheckpointError, match="damaged"):
        LoRATuner(**given, output_dir=tmp_path / "out").train()


def test_nan_stops_and_shows_the_batch(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    loss = PackedModel.loss
    seen: list[tuple[int, ...]] = []

    def poisoned(self: PackedModel, row: PackedRow) -> torch.Tensor:
        seen.append(row.examples)
        return loss(self, row) * (math.nan if len(seen) == 3 else 1.0)

    monkeypatch.setattr(PackedModel, "loss", poisoned)
    with pytest.raises(TrainingError, match=r"step 3: the loss is nan.*learning_rate") as caught:
        LoRATuner(**given).train()
    assert f"line {seen[-1][0] + 1}: " in str(caught.value) and "What is" in str(caught.value)


def test_a_gradient_without_bounds_stops(given: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *_: torch.tensor(math.inf))
    with pytest.raises(TrainingError, match="step 1: the norm of the gradient is inf"):
        LoRATuner(**given).train()


def test_early_stopping_keeps_the_best(given: dict[str, Any], data: Path) -> None:
    settings = {**given, "learning_rate": 1.0, "epochs": 8, "patience": 1, "schedule": "constant"}
    result = LoRATuner(**settings).train()
    run = run_of(data.parent / "support-lora")
    judged = [evaluation["loss"] for evaluation in run["evaluations"]]
    assert result.stopped.startswith("early") and len(judged) < 16
    assert judged[-1] >= min(judged) == result.validation_loss and result.best_step < result.steps


def test_without_held_out_examples_the_last_adapter_is_kept(given: dict[str, Any]) -> None:
    result = LoRATuner(**{**given, "validation": 0.0, "epochs": 1}).train()
    assert result.validation_loss is None and result.best_step == result.steps


@pytest.mark.parametrize(
    "options",
    [
        {"rslora": True},
        {"dora": True},
        {"loraplus_ratio": 4.0},
        {"preset": "tiny", "lora_rank": None},
        {"gradient_checkpointing": True, "lora_dropout": 0.0},
        {"dtype": "bf16"},
        {"target_modules": ["q_proj", "down_proj"]},
    ],
)
def test_kinds_of_adapters_learn(given: dict[str, Any], data: Path, options: dict[str, Any]) -> None:
    LoRATuner(**{**given, **options}).train()
    first, second = epoch_losses(data.parent / "support-lora")
    assert second < first
    config = json.loads((data.parent / "support-lora" / CONFIG).read_text())
    assert config["use_rslora"] == options.get("rslora", False) and config["use_dora"] == options.get("dora", False)
    if options.get("preset") == "tiny":
        assert config["target_modules"] == ["down_proj", "o_proj", "v_proj"] and config["r"] == 1


def test_gradient_checkpointing_changes_no_loss(given: dict[str, Any], tmp_path: Path) -> None:
    settings = {**given, "lora_dropout": 0.0, "epochs": 1}
    LoRATuner(**settings, output_dir=tmp_path / "a").train()
    LoRATuner(**settings, gradient_checkpointing=True, output_dir=tmp_path / "b").train()
    for one, other in zip(curve(tmp_path / "a"), curve(tmp_path / "b"), strict=True):
        assert one[-1] == pytest.approx(other[-1], rel=1e-4)


def test_weights_move_as_a_loop_by_hand_moves_them(given: dict[str, Any], data: Path) -> None:
    """One step of everything, against plain torch: mean loss over all answers, AdamW, clipping."""
    from torch.nn.functional import cross_entropy

    settings = {**given, "lora_dropout": 0.0, "validation": 0.0, "epochs": 1, "warmup": 0.0, "schedule": "constant"}
    settings |= {"batch_tokens": 100_000, "row_tokens": 700}
    tuner = LoRATuner(**settings)
    ready = tuner._load(tuner._read(Silent()), Silent())
    weights = [weight for weight in ready.method.module.parameters() if weight.requires_grad]
    copies = [weight.detach().clone().requires_grad_() for weight in weights]
    optimizer = torch.optim.AdamW(copies, lr=1e-2, weight_decay=0)
    losses, answers = [], 0
    for example in range(len(ready.data.cache)):
        ids, bits = ready.data.cache.example(example)
        tokens = torch.tensor(ids.astype(int))
        named = dict(
            zip([n for n, w in ready.method.module.named_parameters() if w.requires_grad], copies, strict=True)
        )
        logits = torch.func.functional_call(ready.method.module, named, kwargs={"input_ids": tokens[None]}).logits[0]
        places = torch.from_numpy(bits.nonzero()[0])
        losses.append(cross_entropy(logits[places - 1], tokens[places], reduction="sum"))
        answers += len(places)
    (torch.stack(losses).sum() / answers).backward()
    torch.nn.utils.clip_grad_norm_(copies, 1.0)
    optimizer.step()
    ready.trainer.train()
    assert len(ready.trainer.state.steps) == 1
    for weight, copy in zip(weights, copies, strict=True):
        assert torch.allclose(weight, copy, rtol=1e-3, atol=2e-4)


def test_an_adapter_is_trained_on(given: dict[str, Any], tmp_path: Path) -> None:
    first = LoRATuner(**given, output_dir=tmp_path / "a").train()
    more = {name: value for name, value in given.items() if name != "lora_rank"}
    LoRATuner(**more, start_from=str(tmp_path / "a"), output_dir=tmp_path / "b").train()
    assert run_of(tmp_path / "b")["steps"][0]["loss"] < 0.9 * run_of(tmp_path / "a")["steps"][0]["loss"]
    assert json.loads((tmp_path / "b" / CONFIG).read_text())["r"] == 4
    assert first.steps


def test_an_adapter_that_does_not_fit_is_told_in_full(given: dict[str, Any], tmp_path: Path) -> None:
    import safetensors.torch

    LoRATuner(**given, output_dir=tmp_path / "a").train()
    weights = safetensors.torch.load_file(tmp_path / "a" / WEIGHTS)
    name = next(name for name in weights if "layers.0" in name and "q_proj.lora_A" in name)
    weights[name] = torch.zeros(4, 5)
    weights[name.replace("layers.0", f"layers.{LAYERS}")] = torch.zeros(4, 32)
    safetensors.torch.save_file(weights, tmp_path / "a" / WEIGHTS)
    more = {name: value for name, value in given.items() if name != "lora_rank"}
    tuner = LoRATuner(**more, start_from=str(tmp_path / "a"), output_dir=tmp_path / "b")
    with pytest.raises(CheckpointError, match=rf"(?s)shape \[4, 5\], and the model needs \[4, 32\].*layers\.{LAYERS}"):
        tuner.train()


def test_an_estimate_says_what_training_will_be(given: dict[str, Any], data: Path) -> None:
    estimate = LoRATuner(**given).estimate()
    assert not (data.parent / "support-lora").exists()
    result = LoRATuner(**given).train()
    assert estimate.trainable_parameters == result.trainable_parameters
    assert abs(estimate.steps - result.steps) <= 2
    assert estimate.examples + estimate.held_out == 60
    assert estimate.seconds > 0 and estimate.memory_bytes > 2**20
    assert "parameters" in str(estimate) and f"{estimate.trainable_share:.3%}" in str(estimate)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"lora_ranks": 4}, "Did you mean lora_rank"),
        ({"xyzzy": 4}, "Known are base_model"),
        ({"lora_rank": "16"}, "lora_rank"),
        ({"lora_rank": 0}, "at least 1"),
        ({"epochs": 1.5}, "epochs"),
        ({"preset": "huge"}, "default, tiny"),
        ({"learning_rate": -1.0}, "above 0"),
        ({"validation": 1.0}, "from 0 to below 1"),
        ({"target_modules": []}, "names no module"),
        ({"start_from": "x"}, "leave them out"),
        ({"over_long": "cut"}, "over_long"),
        ({"shape": "chat"}, "shape must be one of"),
    ],
)
def test_settings_that_cannot_work(given: dict[str, Any], wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        LoRATuner(**{**given, **wrong})


def test_settings_that_are_missing() -> None:
    with pytest.raises(ConfigurationError, match="base_model"):
        LoRATuner(train_data="x.jsonl")


def test_what_the_model_and_the_data_refuse(given: dict[str, Any], data: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no linear layer 'query', 'wo'; it has down_proj.*v_proj"):
        LoRATuner(**{**given, "target_modules": ["query", "q_proj", "wo"]}).train()
    with pytest.raises(DataError, match="cannot be read"):
        LoRATuner(**{**given, "train_data": tmp_path / "none.jsonl"}).train()
    write_jsonl(data, [*questions(60), *[{"question": "Q" * 700, "answer": "A"}] * 2])
    with pytest.raises(ConfigurationError, match="context of 512: set max_tokens"):
        LoRATuner(**given).train()
    write_jsonl(data, [*questions(60), "{"])
    with pytest.raises(DataError, match="1 of 61 rows"):
        LoRATuner(**given).train()


@pytest.mark.slow
def test_the_real_model_learns_labels(test_model: Path, shared_data: Path, tmp_path: Path) -> None:
    rows = [row for row in read_rows(shared_data / "banking77" / "train.csv.gz") if isinstance(row, Row)]
    data = write_jsonl(tmp_path / "intents.jsonl", [row.values for row in rows[:240]])
    result = LoRATuner(
        base_model=str(test_model),
        train_data=data,
        preset="tiny",
        epochs=1,
        batch_tokens=512,
        cache_dir=tmp_path / "cache",
        progress=False,
    ).train()
    steps = run_of(tmp_path / "intents-lora")["steps"]
    assert 0.0005 < result.trainable_share < 0.0015
    assert result.validation_loss is not None and result.validation_loss < 0.5 * steps[0]["loss"]
