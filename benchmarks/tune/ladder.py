"""Training speed and memory, from naive full fine-tuning to ours, rung by rung: `make bench-tune`.

Each round starts a fresh process per side, in turn forwards and backwards, so that slow minutes of a shared machine hit
all of them. A side's speed is in tokens that are not padding. Medians of the rounds are reported, and of the rounds'
ratios; ratios of processor time beside those of the wall clock say how much of a difference is the neighbours'.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.tune.data import SHARES, data_folder
from benchmarks.tune.sides import SIDES, measure

Round = dict[str, dict[str, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--examples", type=int, default=800)
    parser.add_argument("--max-tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=3, help="of each side in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sides", help="numbers from 1, separated by commas; all by default")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(
            json.dumps(measure(options.side, Path(options.model), options.examples, options.max_tokens, options.steps))
        )
        return
    sides = [SIDES[int(number) - 1] for number in options.sides.split(",")] if options.sides else list(SIDES)
    rounds: list[Round] = []
    with tempfile.TemporaryDirectory() as folder:
        write_model(options.model, Path(folder))
        for index in range(options.rounds):
            found = {}
            for side in sides[:: 1 if index % 2 == 0 else -1]:
                found[side] = run_side(side, Path(folder), options)
                print(f"round {index + 1}: {side}: {found[side]}", flush=True)
            rounds.append(found)
            result = summarize(options, sides, rounds)
            if options.json:  # after each round: the next takes a quarter of an hour
                options.json.parent.mkdir(parents=True, exist_ok=True)
                options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def write_model(name: str, folder: Path) -> None:
    """The model as a safetensors folder in fp32, which every side loads."""
    import torch

    from deepseek.hub.gguf_file import GGUFFile
    from deepseek.hub.resolve import resolve
    from deepseek.tokenizer.to_folder import write_tokenizer
    from deepseek_tune.base import load_base

    files = resolve(name)
    load_base(files, torch.float32, torch.device("cpu")).save_pretrained(folder)
    if files.path.is_dir():
        for path in (*files.path.glob("*token*"), *files.path.glob("*.jinja")):
            shutil.copy(path, folder)
    else:
        with contextlib.closing(GGUFFile(files.path)) as file:
            write_tokenizer(file.metadata, name, folder)


def run_side(side: str, model: Path, options: Any) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.tune.ladder", "--side", side, "--model", str(model)]
    command += ["--examples", str(options.examples), "--max-tokens", str(options.max_tokens)]
    command += ["--steps", str(options.steps)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, timeout=7200).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def summarize(options: Any, sides: list[str], rounds: list[Round]) -> dict[str, Any]:
    from importlib.metadata import version

    from deepseek.machine import describe_machine

    def median(value: Callable[[Round], float]) -> float:
        return statistics.median(map(value, rounds))

    def ratios(side: str, base: str) -> dict[str, float]:
        return {
            "speed": median(lambda r: _speed(r[side]) / _speed(r[base])),
            "processor": median(lambda r: _speed(r[side], "processor_seconds") / _speed(r[base], "processor_seconds")),
            "memory": median(lambda r: r[side]["peak_bytes"] / r[base]["peak_bytes"]),
        }

    bases = [side for side in sides if not side.startswith("ours")]
    return {
        "model": options.model,
        "data": {"examples": options.examples, "shares": SHARES if data_folder() else "made up"},
        "max_tokens": options.max_tokens,
        "steps": options.steps,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "sides": {
            side: {
                "tokens_per_second": median(lambda r, side=side: _speed(r[side])),  # type: ignore[misc]
                "peak_bytes": median(lambda r, side=side: r[side]["peak_bytes"]),  # type: ignore[misc]
                "against": {base: ratios(side, base) for base in bases if base != side},
            }
            for side in sides
        },
        "rounds": rounds,
        "machine": describe_machine(),
    }


def _speed(found: dict[str, float], seconds: str = "seconds") -> float:
    return found["tokens"] / found[seconds]


def table(result: dict[str, Any]) -> str:
    lines = [f"{'':50} {'tokens/s':>9} {'GB':>6}  speed against the first sides (by processor time)"]
    for side, found in result["sides"].items():
        shown = [f"{ratio['speed']:.2f} ({ratio['processor']:.2f})" for ratio in found["against"].values()]
        lines.append(
            f"{side:50} {found['tokens_per_second']:9,.0f} {found['peak_bytes'] / 1e9:6.2f}  {', '.join(shown)}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
