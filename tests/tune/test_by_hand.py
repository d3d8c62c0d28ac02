"""Whole runs of every kind against a loop by hand: peft's own model, one example at a time, nothing packed."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from deepseek_tune import LoRATuner, PTuner
from deepseek_tune.adapters import WEIGHTS
from deepseek_tune.progress import Silent
from deepseek_tune.schedule import rate
from tests.tune.conftest import questions, write_jsonl

LEARNING_RATE = 3e-3


@pytest.fixture
def given(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "base_model": str(tiny_model),
        "train_data": write_jsonl(tmp_path / "data.jsonl", questions(40)),
        "output_dir": tmp_path / "out",
        "cache_dir": tmp_path / "cache",
        "progress": False,
        "epochs": 2,
        "batch_tokens": 1024,
        "row_tokens": 512,
        "dtype": "fp32",
        "learning_rate": LEARNING_RATE,
        "validation": 0.1,
    }


def by_hand(
    ready: Any, base: Path, epochs: int, state: dict[str, torch.Tensor]
) -> tuple[Any, list[float], list[float]]:
    """(peft's model after the run, the loss of each step, the norm of its gradient)."""
    ours = ready.method.module
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    wrapped = peft.get_peft_model(model, copy.deepcopy(ours.peft_config["default"]))
    target = wrapped.prompt_encoder["default"] if hasattr(wrapped, "prompt_encoder") else wrapped
    if target is wrapped:
        peft.set_peft_model_state_dict(wrapped, state)
    else:
        target.load_state_dict(state)
    weights = [weight for weight in wrapped.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0)
    cache, batches, losses, done = ready.data.cache, ready.batches, [], 0
    norms = []
    for epoch in range(epochs):
        for rows in batches.steps(epoch, 0):
            examples = [cache.example(example) for example in itertools.chain.from_iterable(rows)]
            answers, tokens = sum(int(bits.sum()) for _, bits in examples), sum(len(ids) for ids, _ in examples)
            share = rate((done + tokens / 2) / (batches.train.tokens * epochs), "cosine", 0.03)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * share
            total = torch.zeros(())
            for ids, bits in examples:
                inputs = torch.from_numpy(ids.astype(np.int64))
                logits = wrapped(input_ids=inputs[None], attention_mask=torch.ones_like(inputs)[None]).logits[0]
                places = torch.from_numpy(bits.nonzero()[0])
                logits = logits[len(logits) - len(inputs) :]  # those of learned tokens come first
                total = total + cross_entropy(logits[places - 1], inputs[places], reduction="sum") / answers
            total.backward()  # type: ignore[no-untyped-call]
            norms.append(float(torch.nn.utils.clip_grad_norm_(weights, 1.0)))  # AdamW alone forgives a wrong scale
            optimizer.step()
            optimizer.zero_grad()
            losses.append(total.item())
            done += tokens
    return wrapped, losses, norms


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize(
    ("tuner", "options"),
    [
        (LoRATuner, {"lora_rank": 4}),
        (LoRATuner, {"lora_rank": 4, "rslora": True, "target_modules": ["q_proj", "down_proj"]}),
        (LoRATuner, {"lora_rank": 2, "dora": True}),
        (PTuner, {"virtual_tokens": 5}),
        (PTuner, {"virtual_tokens": 1, "encoder": "lstm", "encoder_hidden": 8}),
        (PTuner, {"variant": "prefix", "virtual_tokens": 5}),
        (PTuner, {"variant": "prefix", "virtual_tokens": 3, "init": "random", "projection": True}),
    ],
)
def test_a_run_is_the_loop_by_hand(
    given: dict[str, Any], tiny_model: Path, tuner: Any, options: dict[str, Any], share: bool
) -> None:
    settings = {**given, **options, "share_prompts": share}
    one = tuner(**settings)
    ready = one._load(one._read(Silent()), Silent())
    wrapped, losses, norms = by_hand(ready, tiny_model, 2, ready.method.state())
    result = tuner(**settings).train()
    steps = run_of(given)["steps"]
    assert len(steps) == result.steps > 4
    assert [step["loss"] for step in steps] == pytest.approx(losses, rel=2e-4)
    assert [step["grad_norm"] for step in steps] == pytest.approx(norms, rel=2e-3)
    # The file holds the best weights; here the last ones are.
    assert result.best_step == result.steps
    again = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(tiny_model), given["output_dir"]
    )
    ids = torch.arange(20)[None] + 30
    mask = torch.ones_like(ids)
    with torch.no_grad():
        wrapped.eval()
        for config in wrapped.peft_config.values():
            config.inference_mode = False
        expected = wrapped(input_ids=ids, attention_mask=mask).logits
        found = again(input_ids=ids, attention_mask=mask).logits
        plain = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)(ids).logits
    last = [logits[0, -20:] for logits in (expected, found, plain)]
    moved = float((last[0] - last[2]).norm())
    assert float((last[0] - last[1]).norm()) < 0.01 * moved


def run_of(given: dict[str, Any]) -> dict[str, Any]:
    run: dict[str, Any] = json.loads((given["output_dir"] / "run.json").read_text())
    assert (given["output_dir"] / WEIGHTS).exists()
    return run


@pytest.mark.parametrize("variant", ["p-tuning", "prefix"])
def test_a_learned_prompt_makes_no_noise(
    variant: str, tiny_model: Path, tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", questions(20))
    tuner = PTuner(
        base_model=str(tiny_model), train_data=data, cache_dir=tmp_path / "cache", variant=variant, progress=False
    )
    tuner.estimate()
    assert not [warning for warning in recwarn if issubclass(warning.category, (UserWarning, FutureWarning))]
