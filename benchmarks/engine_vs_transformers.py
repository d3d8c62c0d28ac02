"""Our engine and transformers (fp32) on the same GGUF file, in turn: `make bench-engine`.

Each round starts a fresh process per side, in turn forwards and backwards, so that slow minutes of a
shared machine hit both. What is reported are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from deepseek.benchmark import BATCH_OUTPUT, BATCH_PROMPT, BATCH_SIZE, DECODE_TOKENS, PREFILL_TOKENS, peak_memory

FIGURES = ("prefill_tok_s", "decode_tok_s", "batch32_output_tok_s", "ttft_ms", "peak_memory_bytes")
TARGETS = {"prefill_tok_s": 1.0, "decode_tok_s": 2.0, "batch32_output_tok_s": 1.3}
SIDES = ("auto", "fp32", "transformers")
"""Our engine as it comes, our engine in fp32, and transformers in fp32."""

Round = dict[str, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a built-in name or a .gguf file")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.model)))
        return
    rounds: list[Round] = []
    for index in range(options.rounds):
        rounds.append({side: run_side(side, options.model) for side in SIDES[:: 1 if index % 2 == 0 else -1]})
        print(f"round {index + 1} of {options.rounds} done", flush=True)
    result = summarize(options.model, rounds)
    for name, row in result["figures"].items():
        target = f", target {TARGETS[name]:g}x" if name in TARGETS else ""
        print(f"{name}: transformers {row['transformers']:,.1f}{target}")
        for side in ("auto", "fp32"):
            print(f"  ours, {side:5} {row[side]:>16,.1f}  {row['ratio_' + side]:.2f}x")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run_side(side: str, model: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.engine_vs_transformers", "--side", side, "--model", model]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=1800).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def summarize(model: str, rounds: list[Round]) -> dict[str, Any]:
    """Medians per side, and medians of the rounds' ratios."""
    from importlib.metadata import version

    figures: dict[str, dict[str, float]] = {}
    for name in FIGURES:
        row = {side: statistics.median(r[side][name] for r in rounds) for side in SIDES}
        for side in ("auto", "fp32"):
            row[f"ratio_{side}"] = statistics.median(r[side][name] / r["transformers"][name] for r in rounds)
        figures[name] = row
    return {
        "model": model,
        "transformers": {"version": version("transformers"), "dtype": "fp32"},
        "figures": figures,
        "rounds": [{side: {name: r[side][name] for name in FIGURES} for side in SIDES} for r in rounds],
        "machine": rounds[0]["auto"]["machine"],
        "settings": {side: rounds[0][side]["settings"] for side in ("auto", "fp32")},
    }


def measure(side: str, model: str) -> dict[str, Any]:
    if side == "transformers":
        return measure_transformers(model)
    from deepseek.benchmark import measure_engine
    from deepseek.config import EngineConfig

    return measure_engine(EngineConfig(model=model, dtype=side), repeats=1)


def measure_transformers(model: str) -> dict[str, Any]:
    """The same work through ``generate`` with SDPA attention; one unmeasured round first."""
    import torch
    from transformers import AutoModelForCausalLM

    from deepseek.hub.resolve import resolve

    path = resolve(model).path
    network = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()
    vocab = network.config.vocab_size
    generator = torch.Generator().manual_seed(0)

    def seconds(requests: int, prompt: int, output: int) -> float:
        tokens = torch.randint(vocab, (requests, prompt), generator=generator)
        start = time.perf_counter()
        with torch.inference_mode():
            answer = network.generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=False,
                min_new_tokens=output,
                max_new_tokens=output,
                pad_token_id=0,
            )
        assert answer.shape == (requests, prompt + output)
        return time.perf_counter() - start

    figures: dict[str, Any] = {}
    for _ in range(2):
        first = seconds(1, BATCH_PROMPT, 1)
        figures = {
            "prefill_tok_s": PREFILL_TOKENS / seconds(1, PREFILL_TOKENS, 1),
            "decode_tok_s": (DECODE_TOKENS - 1) / (seconds(1, BATCH_PROMPT, DECODE_TOKENS) - first),
            "batch32_output_tok_s": BATCH_SIZE * BATCH_OUTPUT / seconds(BATCH_SIZE, BATCH_PROMPT, BATCH_OUTPUT),
            "ttft_ms": first * 1000,
        }
    return figures | {"peak_memory_bytes": peak_memory()}


if __name__ == "__main__":
    main()
