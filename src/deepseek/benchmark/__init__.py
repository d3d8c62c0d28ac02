"""Speed and memory of the engine, alone and next to other engines, measured the way a stranger can repeat."""

from __future__ import annotations

from deepseek.benchmark.engine import measure_engine, measure_profiles
from deepseek.benchmark.process import peak_memory
from deepseek.benchmark.scenarios import (
    BATCH_OUTPUT,
    BATCH_PROMPT,
    BATCH_SIZE,
    CONTEXT_TOKENS,
    DECODE_TOKENS,
    PREFILL_TOKENS,
)

__all__ = [
    "BATCH_OUTPUT",
    "BATCH_PROMPT",
    "BATCH_SIZE",
    "CONTEXT_TOKENS",
    "DECODE_TOKENS",
    "PREFILL_TOKENS",
    "measure_engine",
    "measure_profiles",
    "peak_memory",
]
