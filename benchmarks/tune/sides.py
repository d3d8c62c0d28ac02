"""One side of the ladder, in a process of its own: steps timed, the peak of memory read."""

from __future__ import annotations

import contextlib
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.tune.data import Conversation, mixed

# A step of every side holds as many tokens, padding counted.
BATCH_TOKENS = 4096
# Steps that do not count: memory is touched first in them. One of the Trainer is long enough for that.
WARM_STEPS = {"trainer": 1, "ours": 3}
# name -> (what Trainer trains, how it pads)
TRAINER = {
    "full, padded to the maximum": ("full", "max_length"),
    "full, padded to the batch's longest": ("full", "longest"),
    "peft LoRA, padded to the maximum": ("lora", "max_length"),
    "peft LoRA, padded to the batch's longest": ("lora", "longest"),
}
SAME_AS_PEFT: dict[str, Any] = {"lora_rank": 8, "target_modules": ["q_proj", "v_proj"]}
# name -> (settings, whether layers are fused); each but the last adds one thing to the one before.
OURS: dict[str, tuple[dict[str, Any], bool]] = {
    "ours: packed rows, logits of answers alone (fp32)": (
        {**SAME_AS_PEFT, "dtype": "fp32", "share_prompts": False},
        False,
    ),
    "ours: and bf16": ({**SAME_AS_PEFT, "share_prompts": False}, False),
    "ours: and fused layers": ({**SAME_AS_PEFT, "share_prompts": False}, True),
    "ours: and shared prompts": (SAME_AS_PEFT, True),
    "ours: defaults (rank 16, all layers)": ({}, True),
}
SIDES = (*TRAINER, *OURS)


def measure(side: str, model: Path, examples: int, max_tokens: int, steps: int) -> dict[str, float]:
    """What a side does in ``steps`` steps after some that do not count: tokens (no padding), seconds, processor
    seconds, and the bytes that the process held at most."""
    conversations = mixed(examples)
    if side in TRAINER:
        tokens, seconds, busy = _trainer(*TRAINER[side], model, conversations, max_tokens, steps)
    else:
        tokens, seconds, busy = _ours(*OURS[side], model, conversations, max_tokens, steps)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"tokens": tokens, "seconds": seconds, "processor_seconds": busy, "peak_bytes": peak}


class _Clock:
    """Adds up what happens between ``start`` and ``stop``, the first times left out."""

    def __init__(self, warm_steps: int) -> None:
        self.warm_steps = warm_steps
        self.times = 0
        self.tokens = self.seconds = self.busy = 0.0

    def start(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def stop(self, tokens: float) -> None:
        self.times += 1
        if self.times > self.warm_steps:
            self.tokens += tokens
            self.seconds += time.perf_counter() - self._began[0]
            self.busy += time.process_time() - self._began[1]


def _trainer(
    kind: str, padding: str, model: Path, conversations: list[Conversation], max_tokens: int, steps: int
) -> tuple[float, float, float]:
    """transformers' Trainer with its defaults (fp32, AdamW, every token's logits) but for the rows of a batch."""
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    network: Any = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if kind == "lora":
        import peft

        network = peft.get_peft_model(network, peft.LoraConfig(task_type="CAUSAL_LM"))
    texts = [tokenizer.apply_chat_template(conversation, tokenize=False) for conversation in conversations]
    rows = [{"input_ids": tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]} for text in texts]
    warm_steps = WARM_STEPS["trainer"]
    clock = _Clock(warm_steps)
    counted: list[int] = []

    def collate(batch: list[dict[str, Any]]) -> Any:
        padded = tokenizer.pad(batch, padding=padding, max_length=max_tokens, return_tensors="pt")
        counted.append(int(padded["attention_mask"].sum()))
        padded["labels"] = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, -100)
        return padded

    class Timed(transformers.TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            clock.start()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            clock.stop(counted[clock.times])

    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            per_device_train_batch_size=BATCH_TOKENS // max_tokens,
            max_steps=warm_steps + steps,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            disable_tqdm=True,
        )
        transformers.Trainer(
            network,
            arguments,
            train_dataset=rows,
            data_collator=collate,
            callbacks=[Timed()],
        ).train()
    return clock.tokens, clock.seconds, clock.busy


class _Enough(Exception):
    """Ends a run."""


def _ours(
    settings: dict[str, Any], fuse: bool, model: Path, conversations: list[Conversation], max_tokens: int, steps: int
) -> tuple[float, float, float]:
    from deepseek_tune import LoRATuner, fused
    from deepseek_tune.progress import Silent, Step

    if not fuse:
        fused.install = lambda model: None  # the rung of the ladder below
    warm_steps = WARM_STEPS["ours"]
    clock = _Clock(warm_steps)

    class Recorder(Silent):
        def start(self, total: int, done: int) -> None:
            clock.start()

        def step(self, step: Step) -> None:
            clock.stop(step.tokens)
            if clock.times == warm_steps + steps:
                raise _Enough
            clock.start()

    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.jsonl")
        lines = [json.dumps({"messages": conversation}) for conversation in conversations]
        data.write_text("\n".join(lines), encoding="utf-8")
        tuner = LoRATuner(
            reporter=Recorder(),
            base_model=str(model),
            train_data=data,
            cache_dir=Path(folder, "cache"),
            max_tokens=max_tokens,
            batch_tokens=BATCH_TOKENS,
            validation=0.0,
            checkpoint_every=1 << 30,
            epochs=1000,
            offline=True,
            **settings,
        )
        with contextlib.suppress(_Enough):
            tuner.train()
    return clock.tokens, clock.seconds, clock.busy
