"""Speed and memory of the engine, measured the way a stranger can repeat."""

from __future__ import annotations

import random
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from deepseek.config import EngineConfig
from deepseek.engine.events import GenerateRequest, TokenEvent
from deepseek.machine import describe_machine
from deepseek.sampling import SamplingParams
from deepseek.threads import wait_politely

if TYPE_CHECKING:
    from deepseek.engine.engine import Engine

PREFILL_TOKENS = 512
DECODE_TOKENS = 128
BATCH_SIZE = 32
BATCH_PROMPT = 128
BATCH_OUTPUT = 64


@dataclass(frozen=True)
class EngineFigures:
    """Medians over the repeats; rates in tokens per second.

    Attributes:
        prefill_tok_s: one prompt of 512 tokens, alone.
        decode_tok_s: one stream of 128 tokens after a prompt of 128.
        batch32_output_tok_s: 32 requests at once of 128 prompt and 64 output tokens: output tokens per second of the
            whole, prefill included.
        ttft_ms: from request to first token of a prompt of 128 tokens, alone.
        peak_memory_bytes: largest resident size of the process so far.
    """

    prefill_tok_s: float
    decode_tok_s: float
    batch32_output_tok_s: float
    ttft_ms: float
    peak_memory_bytes: int


def measure_engine(
    config: EngineConfig, *, repeats: int = 3, say: Callable[[str], None] | None = None
) -> dict[str, Any]:
    """Load a model and measure it.

    Prompts are random tokens, different for each repeat so that no prefix is reused; answers are greedy and go on
    after end tokens. One unmeasured round comes first.

    Returns:
        The :class:`EngineFigures` as a dict, with ``machine`` and ``settings`` beside them; ready for JSON.
    """
    wait_politely()
    from deepseek.engine.load import load_engine

    loaded = load_engine(config)
    bench = _Bench(loaded.engine)
    rounds = []
    for index in range(repeats + 1):
        figures = bench.round()
        if index:
            rounds.append(figures)
            if say:
                say(f"round {index} of {repeats}: " + ", ".join(f"{k} {v:.1f}" for k, v in figures.items()))
    medians = {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
    return {
        **asdict(EngineFigures(**medians, peak_memory_bytes=peak_memory())),
        "machine": describe_machine(),
        "settings": {
            "model": loaded.info.model,
            "dtype": loaded.info.dtype,
            "backends": loaded.info.backends,
            "weights_bytes": loaded.info.weights_bytes,
            "kv_cache_bytes": loaded.info.kv_cache_bytes,
            "max_batch_tokens": config.max_batch_tokens,
            "max_running": config.max_running,
            "threads": config.threads,
            "repeats": repeats,
            "load_seconds": loaded.info.load_seconds,
        },
    }


def peak_memory() -> int:
    """Largest resident size of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Bench:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.random = random.Random(0)
        self.count = 0

    def round(self) -> dict[str, float]:
        prefill = self._run(1, PREFILL_TOKENS, 1)
        single = self._run(1, BATCH_PROMPT, DECODE_TOKENS)
        batch = self._run(BATCH_SIZE, BATCH_PROMPT, BATCH_OUTPUT)
        return {
            "prefill_tok_s": PREFILL_TOKENS / prefill[-1],
            "decode_tok_s": (DECODE_TOKENS - 1) / (single[-1] - single[0]),
            "batch32_output_tok_s": BATCH_SIZE * BATCH_OUTPUT / batch[-1],
            "ttft_ms": single[0] * 1000,
        }

    def _run(self, requests: int, prompt: int, output: int) -> list[float]:
        """Seconds after the start at which each token came."""
        params = SamplingParams(temperature=0.0, max_tokens=output, ignore_eos=True)
        vocab = self.engine.model.vocab_size
        for _ in range(requests):
            self.count += 1
            tokens = [self.random.randrange(vocab) for _ in range(prompt)]
            self.engine.add(GenerateRequest(f"bench-{self.count}", tokens, params))
        start = time.perf_counter()
        times: list[float] = []
        while self.engine.has_work:
            events = self.engine.step()
            now = time.perf_counter() - start
            times += [now for event in events if isinstance(event, TokenEvent) and event.token_id is not None]
        assert len(times) == requests * output, "the engine lost or invented tokens"
        return times
