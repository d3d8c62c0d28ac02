"""Adapters as peft writes them, of the tiny models."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import peft
import torch
from torch import Tensor

from tests.parity import tiny

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT = [(7 * i * i + 3) % tiny.VOCAB for i in range(40)]


def lora(
    folder: Path,
    name: str = "llama-wide",
    *,
    rank: int = 4,
    targets: Sequence[str] = ALL,
    seed: int = 0,
    **options: Any,
) -> Any:
    """A LoRA adapter of the tiny model ``name``, far from nothing, in ``folder``. Returns peft's model."""
    config = peft.LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(targets),
        task_type="CAUSAL_LM",
        init_lora_weights=False,
        **options,
    )
    return _saved(folder, name, config, seed, 0.15)


def tokens(folder: Path, kind: str, name: str = "llama-wide", *, count: int = 5, seed: int = 0) -> Any:
    """An adapter that stands before prompts: ``prompt``, ``ptuning`` or ``prefix``. Returns peft's model."""
    configs = {
        "prompt": lambda: peft.PromptTuningConfig(num_virtual_tokens=count, task_type="CAUSAL_LM"),
        "ptuning": lambda: peft.PromptEncoderConfig(
            num_virtual_tokens=count, task_type="CAUSAL_LM", encoder_hidden_size=16
        ),
        "prefix": lambda: peft.PrefixTuningConfig(num_virtual_tokens=count, task_type="CAUSAL_LM"),
    }
    return _saved(folder, name, configs[kind](), seed, 0.7)


def _saved(folder: Path, name: str, config: Any, seed: int, spread: float) -> Any:
    with quiet():
        model = peft.get_peft_model(tiny.build(name), config)
        torch.manual_seed(seed)
        with torch.no_grad():
            for weight in model.parameters():
                if weight.requires_grad:
                    weight.normal_(0, spread)
        model.save_pretrained(folder)
    return model.eval()


def logits_of(model: Any, prompt: Sequence[int] = PROMPT) -> Tensor:
    """fp32 [len(prompt), vocab] of transformers' or peft's model."""
    with torch.no_grad(), quiet():
        logits: Tensor = model(input_ids=torch.tensor([list(prompt)])).logits[0]
    return logits[-len(prompt) :]


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
