"""Our encoder engine and transformers (fp32) on the same sentences, in turn: `make bench-embeddings`.

Each round starts a fresh process per side, in turn forwards and backwards, so that slow minutes of a shared machine hit
both. transformers gets the texts sorted by length in batches of 32, as sentence-transformers gives them to it. Medians
of the rounds are reported, and of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

Texts = Sequence[list[int]]
Embed = Callable[[Texts], int]

SIDES = ("ours", "transformers")
TEXTS = 512
BATCH = 32
LENGTHS = (6, 128)  # tokens, log-uniform: many short texts and some long ones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="all-minilm-l6-v2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.model)))
        return
    rounds = []
    for index in range(options.rounds):
        rounds.append({side: run_side(side, options.model) for side in SIDES[:: 1 if index % 2 == 0 else -1]})
        print(f"round {index + 1} of {options.rounds} done", flush=True)
    result = summarize(options.model, rounds)
    for side in SIDES:
        print(f"{side:12} {result[side]:>10,.1f} texts/s")
    print(f"ratio        {result['ratio']:>10.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run_side(side: str, model: str) -> float:
    command = [sys.executable, "-m", "benchmarks.embeddings", "--side", side, "--model", model]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=1800).stdout
    return float(json.loads(output.splitlines()[-1]))


def summarize(model: str, rounds: list[dict[str, float]]) -> dict[str, object]:
    from importlib.metadata import version

    from deepseek.machine import describe_machine

    return {
        "model": model,
        "texts": TEXTS,
        "lengths": LENGTHS,
        "transformers_version": version("transformers"),
        **{side: statistics.median(r[side] for r in rounds) for side in SIDES},
        "ratio": statistics.median(r["ours"] / r["transformers"] for r in rounds),
        "rounds": rounds,
        "machine": describe_machine(),
    }


def texts(vocab: int) -> list[list[int]]:
    low, high = LENGTHS
    generator = random.Random(0)
    lengths = [round(low * (high / low) ** generator.random()) for _ in range(TEXTS)]
    return [[generator.randrange(1000, vocab) for _ in range(length)] for length in lengths]


def measure(side: str, model: str) -> float:
    """Texts per second, of the better of two runs."""
    embed = ours(model) if side == "ours" else theirs(model)
    found = texts(30_000)
    times = []
    for _ in range(2):
        start = time.perf_counter()
        assert embed(found) == TEXTS
        times.append(time.perf_counter() - start)
    return TEXTS / min(times)


def ours(model: str) -> Embed:
    from deepseek.llm import LLM

    llm = LLM(model, dtype="fp32")
    return lambda found: len(llm.embed(found))


def theirs(model: str) -> Embed:
    """Mean pooling and length 1, as the model's card has it."""
    import torch
    from transformers import AutoModel

    from deepseek.hub.resolve import resolve

    network = AutoModel.from_pretrained(resolve(model).path, dtype=torch.float32).eval()

    def embed(found: Texts) -> int:
        count = 0
        ordered = sorted(found, key=len, reverse=True)
        for start in range(0, len(ordered), BATCH):
            batch = ordered[start : start + BATCH]
            longest = max(map(len, batch))
            ids = torch.tensor([text + [0] * (longest - len(text)) for text in batch])
            mask = torch.tensor([[1] * len(text) + [0] * (longest - len(text)) for text in batch])
            with torch.inference_mode():
                states = network(ids, attention_mask=mask).last_hidden_state
                means = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                count += len(torch.nn.functional.normalize(means, dim=1).numpy())
        return count

    return embed


if __name__ == "__main__":
    main()
