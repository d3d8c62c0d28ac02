"""What a run will cost, from one timed step."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import dataclass

import torch

from deepseek_tune.data.packing import pack
from deepseek_tune.loop import Batches, Trainer
from deepseek_tune.progress import duration
from deepseek_tune.quantized import parameter_count

_BACKWARD = 3.0
"""A training step's work over that of a forward pass."""
_OPTIMIZER_BYTES = 8
"""AdamW keeps two fp32 numbers per parameter."""


@dataclass(frozen=True)
class Estimate:
    """What a run will cost. ``str()`` is a table.

    Attributes:
        trainable_parameters, parameters: of the adapter, and of base model and adapter together.
        examples, held_out: trained on, and judged.
        tokens, answer_tokens: of one epoch's examples, and of the whole data's answers.
        efficiency: the share of the packed rows that tokens fill.
        steps: optimizer steps, to within a few.
        tokens_per_second: measured on one row.
        seconds: of training and judging.
        base_bytes: of the base model's weights.
        memory_bytes: the highest of the process (on a GPU: of its memory) with the optimizer's state.
    """

    trainable_parameters: int
    parameters: int
    examples: int
    held_out: int
    tokens: int
    answer_tokens: int
    efficiency: float
    steps: int
    tokens_per_second: float
    seconds: float
    base_bytes: int
    memory_bytes: int

    @property
    def trainable_share(self) -> float:
        """Of all parameters."""
        return self.trainable_parameters / self.parameters

    def __str__(self) -> str:
        rows = (
            (
                "trained",
                f"{self.trainable_parameters:,} of {self.parameters:,} parameters ({self.trainable_share:.3%})",
            ),
            ("examples", f"{self.examples:,} and {self.held_out:,} held out"),
            ("tokens", f"{self.tokens:,} per epoch; rows are filled to {self.efficiency:.1%}"),
            ("steps", f"{self.steps:,}"),
            ("speed", f"{self.tokens_per_second:,.0f} tokens/s, measured on one row"),
            ("time", duration(self.seconds)),
            (
                "memory",
                f"{self.memory_bytes / 2**30:.2f} GiB at most, {self.base_bytes / 2**30:.2f} of it the base model",
            ),
        )
        return "\n".join(f"{name:9} {value}" for name, value in rows)


def measure(
    trainer: Trainer, batches: Batches, answer_tokens: int, epochs: int, wrapped: torch.nn.Module, base_bytes: int
) -> Estimate:
    """Time one forward and backward pass, after one that is not timed. Weights and random numbers stay as they are."""
    state = torch.get_rng_state()
    cache = trainer.cache
    rows = [pack(cache, examples) for _, examples in zip(range(2), batches.train.rows(0), strict=False)]
    row = max(rows, key=lambda one: one.example_tokens)
    wrapped.train()
    trainer.backward(row, max(1, row.answer_tokens))
    began = time.perf_counter()
    trainer.backward(row, max(1, row.answer_tokens))
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    wrapped.zero_grad()
    torch.set_rng_state(state)
    trainable = sum(weight.numel() for weight in wrapped.parameters() if weight.requires_grad)
    speed = row.example_tokens / seconds
    train, held = batches.train, batches.held_out
    packed_rows = sum(1 for _ in train.rows(0))
    judging = held.tokens / speed / _BACKWARD
    return Estimate(
        trainable_parameters=trainable,
        parameters=parameter_count(wrapped),
        examples=len(train.indices),
        held_out=len(held.indices),
        tokens=train.tokens,
        answer_tokens=answer_tokens,
        efficiency=train.efficiency(),
        steps=-(-packed_rows // batches.rows_per_step) * epochs,
        tokens_per_second=speed,
        seconds=epochs * (train.tokens / speed + judging),
        base_bytes=base_bytes,
        memory_bytes=_peak(next(wrapped.parameters()).device) + trainable * _OPTIMIZER_BYTES,
    )


def _peak(device: torch.device) -> int:
    """Bytes that this process had in use at most, or that it had on the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
