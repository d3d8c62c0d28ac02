"""Code edits with and without speculation, in turn: `make bench-speculation`.

Each round starts a fresh process per side, in turn forwards and backwards, so that slow minutes of a shared machine hit
both. What is reported are medians of the rounds' ratios. The answers are greedy and should be the same on all sides
(with kernels that round differently for different numbers of rows a tie may fall the other way).
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from typing import Any

FIGURES = ("decode_tok_s", "output_tok_s")
TARGET = 2.0
"""Against no speculation: the same factor that is asked for against an engine without it."""

Round = dict[str, dict[str, Any]]

INVENTORY = """import json
from dataclasses import dataclass, field


@dataclass
class Item:
    name: str
    price: float
    quantity: int = 0
    tags: list[str] = field(default_factory=list)

    def total(self) -> float:
        return self.price * self.quantity


class Inventory:
    def __init__(self) -> None:
        self.items: dict[str, Item] = {}

    def add(self, item: Item) -> None:
        if item.name in self.items:
            self.items[item.name].quantity += item.quantity
        else:
            self.items[item.name] = item

    def remove(self, name: str, quantity: int) -> None:
        item = self.items[name]
        if item.quantity < quantity:
            raise ValueError(f"only {item.quantity} of {name} left")
        item.quantity -= quantity
        if item.quantity == 0:
            del self.items[name]

    def total(self) -> float:
        return sum(item.total() for item in self.items.values())

    def save(self, path: str) -> None:
        with open(path, "w") as file:
            json.dump({name: vars(item) for name, item in self.items.items()}, file)
"""
INTERVALS = """def merge_intervals(intervals):
    if not intervals:
        return []
    intervals = sorted(intervals, key=lambda pair: pair[0])
    merged = [list(intervals[0])]
    for start, end in intervals[1:]:
        last = merged[-1]
        if start <= last[1]:
            last[1] = max(last[1], end)
        else:
            merged.append([start, end])
    return [tuple(pair) for pair in merged]


def total_length(intervals):
    length = 0
    for start, end in merge_intervals(intervals):
        length += end - start
    return length


def gaps(intervals):
    merged = merge_intervals(intervals)
    result = []
    for (_, left_end), (right_start, _) in zip(merged, merged[1:]):
        result.append((left_end, right_start))
    return result
"""
CLIENT = """class ApiClient {
  constructor(baseUrl, token) {
    this.baseUrl = baseUrl;
    this.token = token;
  }

  request(method, path, body) {
    return fetch(this.baseUrl + path, {
      method: method,
      headers: {
        "Content-Type": "application/json",
        Authorization: "Bearer " + this.token,
      },
      body: body ? JSON.stringify(body) : undefined,
    }).then((response) => {
      if (!response.ok) {
        throw new Error("HTTP " + response.status);
      }
      return response.json();
    });
  }

  getUser(id) {
    return this.request("GET", "/users/" + id);
  }

  createUser(user) {
    return this.request("POST", "/users", user);
  }

  deleteUser(id) {
    return this.request("DELETE", "/users/" + id);
  }
}
"""
EDITS = (
    ("Rename the class Item to Product everywhere and change nothing else.", INVENTORY),
    ("Rename the method remove to take_out and make it return the item's remaining quantity.", INVENTORY),
    ("Add type hints to all functions and change nothing else.", INTERVALS),
    ("Add a one-line docstring to each function and change nothing else.", INTERVALS),
    ("Add a method updateUser(id, user) that sends a PUT request. Keep everything else as it is.", CLIENT),
    ("Use template literals instead of string concatenation.", CLIENT),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="qwen2.5-coder-1.5b-instruct", help="a built-in name or a .gguf file")
    parser.add_argument("--draft-model", help="measure this draft model too")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--max-tokens", type=int, default=400, help="longest answer")
    parser.add_argument("--edits", type=int, default=len(EDITS), help="how many of the prompts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("off", "lookup", "draft"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    sides = ("off", "lookup", "draft") if options.draft_model else ("off", "lookup")
    rounds: list[Round] = []
    for index in range(options.rounds):
        rounds.append({side: run_side(side) for side in sides[:: 1 if index % 2 == 0 else -1]})
        print(f"round {index + 1} of {options.rounds} done", flush=True)
    result = summarize(rounds, sides)
    show(result, sides)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def run_side(side: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.speculation", *sys.argv[1:], "--side", side]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=3600).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """One side: all prompts, one after another, after a short unmeasured one."""
    from deepseek.config import EngineConfig
    from deepseek.engine.load import load_engine
    from deepseek.machine import describe_machine
    from deepseek.threads import wait_politely

    wait_politely()
    config = EngineConfig(
        model=options.model,
        dtype=options.dtype,
        speculation=options.side,
        draft_model=options.draft_model if options.side == "draft" else None,
        max_context=4096,
        max_running=1,
        prefix_cache=False,
    )
    loaded = load_engine(config)
    prompts = [
        loaded.tokenizer.encode_chat([{"role": "user", "content": f"{order}\n\n```\n{code}```"}])
        for order, code in EDITS[: options.edits]
    ]
    answer(loaded.engine, prompts[0], 8)
    before = loaded.engine.stats()
    answers = [answer(loaded.engine, prompt, options.max_tokens) for prompt in prompts]
    after = loaded.engine.stats()
    drafted = after.drafted_tokens - before.drafted_tokens
    tokens = sum(len(ids) for ids, _, _ in answers)
    return {
        "decode_tok_s": (tokens - len(answers)) / sum(decode for _, _, decode in answers),
        "output_tok_s": tokens / sum(total for _, total, _ in answers),
        "tokens": tokens,
        "tokens_per_step": tokens / (after.steps - before.steps),
        "drafted": drafted,
        "acceptance": (after.accepted_tokens - before.accepted_tokens) / drafted if drafted else None,
        "answers": sha256(json.dumps([ids for ids, _, _ in answers]).encode()).hexdigest(),
        "model": loaded.info.model,
        "dtype": loaded.info.dtype,
        "machine": describe_machine(),
    }


def answer(engine: Any, prompt: list[int], max_tokens: int) -> tuple[list[int], float, float]:
    """The greedy answer, its seconds, and the seconds from its first token on."""
    from deepseek.engine.events import GenerateRequest
    from deepseek.sampling import SamplingParams

    params = SamplingParams(temperature=0.0, max_tokens=max_tokens)
    ids: list[int] = []
    start = first = time.perf_counter()
    engine.add(GenerateRequest("edit", prompt, params))
    while engine.has_work:
        events = engine.step()
        if not ids and events:
            first = time.perf_counter()
        ids += [event.token_id for event in events]
    end = time.perf_counter()
    return ids, end - start, end - first


def summarize(rounds: list[Round], sides: tuple[str, ...]) -> dict[str, Any]:
    """Medians per side, and medians of the rounds' ratios to the side without speculation."""
    figures: dict[str, dict[str, float]] = {}
    for name in FIGURES:
        row = {side: statistics.median(r[side][name] for r in rounds) for side in sides}
        for side in sides[1:]:
            row[f"ratio_{side}"] = statistics.median(r[side][name] / r["off"][name] for r in rounds)
        figures[name] = row
    first = rounds[0]
    details = ("tokens", "tokens_per_step", "drafted", "acceptance")
    return {
        "model": first["off"]["model"],
        "dtype": first["off"]["dtype"],
        "figures": figures,
        "same_answers": len({r[side]["answers"] for r in rounds for side in sides}) == 1,
        "details": {side: {name: first[side][name] for name in details} for side in sides},
        "rounds": [{side: {name: r[side][name] for name in FIGURES} for side in sides} for r in rounds],
        "machine": first["off"]["machine"],
    }


def show(result: dict[str, Any], sides: tuple[str, ...]) -> None:
    for name, row in result["figures"].items():
        print(f"{name}: without {row['off']:,.1f}, target {TARGET:g}x")
        for side in sides[1:]:
            print(f"  {side:6} {row[side]:>10,.1f}  {row['ratio_' + side]:.2f}x")
    for side in sides[1:]:
        details = result["details"][side]
        acceptance = "none drafted" if details["acceptance"] is None else f"{details['acceptance']:.0%} accepted"
        print(f"{side}: {details['drafted']} drafted, {acceptance}, {details['tokens_per_step']:.2f} tokens per step")
    print("answers are " + ("the same" if result["same_answers"] else "NOT all the same"))


if __name__ == "__main__":
    main()
