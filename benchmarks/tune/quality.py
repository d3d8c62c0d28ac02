"""What tuned models know: customers' intents after full fine-tuning, LoRA, P-Tuning: `make bench-tune-quality`.

A model reads a message and answers with the name of its intent; right is what it would generate greedily, the exact
name. All methods learn from the same rows in as many passes, and answer the same test items. For each seed, rows are
drawn anew, equally many of each intent.

First, a sweep chooses each method's learning rate; rows of the training set that no run learns from judge it. Every run
is a process of its own and is written down when it is over: a measurement that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tune.data import data_folder

Run = dict[str, Any]

RATES = {
    "full": (5e-5, 1e-4, 2e-4, 4e-4, 8e-4, 1.6e-3),
    "lora": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "tiny": (1e-2, 2e-2, 4e-2),
    "p-tuning": (1e-3, 3e-3, 1e-2, 3e-2),
    "prefix": (3e-3, 1e-2, 3e-2, 1e-1, 3e-1),
}
"""Of the sweep."""
SWEEP_SEED = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--set", choices=("banking77", "clinc150"), default="banking77")
    parser.add_argument("--methods", default=",".join(RATES), help="(%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train-limit", type=int, default=770, help="rows to learn from (%(default)s)")
    parser.add_argument("--test-limit", type=int, default=400, help="items of the test (%(default)s)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-tokens", type=int, default=1024, help="of a step (%(default)s)")
    parser.add_argument("--sweep-limit", type=int, default=385, help="rows that the sweep learns from (%(default)s)")
    parser.add_argument("--held-out", type=int, default=231, help="rows that judge the sweep (%(default)s)")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/tune_quality.json"))
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(_run(json.loads(options.run))))
        return
    if data_folder() is None:
        sys.exit("error: DEEPSEEK_BENCH_DATA must name the folder that holds banking77 and clinc150")
    with tempfile.TemporaryDirectory() as folder:
        Measurement(options, Path(folder)).make()
    print(table(json.loads(options.json.read_bytes())["runs"]))


class Measurement:
    """Makes the runs that are not in the file yet.

    Args:
        options: of the command line.
        folder: for the base model.
    """

    def __init__(self, options: Any, folder: Path) -> None:
        self._options, self._base = options, folder
        names = {"set": "set", "test": "test_limit", "held_out": "held_out"}
        names |= {"epochs": "epochs", "batch_tokens": "batch_tokens"}
        setup = {name: getattr(options, option) for name, option in names.items()}
        self._result = _opened(options.json, {"model": options.model, **setup})
        self._setup = setup

    def make(self) -> None:
        from benchmarks.tune.ladder import write_model

        options, runs = self._options, self._result["runs"]
        write_model(options.model, self._base)
        methods = options.methods.split(",")
        for method in methods:
            for rate in RATES[method]:
                self._make(method, SWEEP_SEED, rate, "held_out", options.sweep_limit)
        for seed in range(options.seeds):
            for method in methods:
                self._make(method, seed, best_rate(runs, method), "test", options.train_limit)

    def _make(self, method: str, seed: int, rate: float, part: str, train: int) -> None:
        job = {"method": method, "seed": seed, "learning_rate": rate, "part": part, "train": train}
        if any(job == {name: one[name] for name in job} for one in self._result["runs"]):
            return
        given = {"job": job, "setup": self._setup, "base": str(self._base), "threads": self._options.threads}
        command = [sys.executable, "-m", "benchmarks.tune.quality", "--run", json.dumps(given)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        made = json.loads(output.splitlines()[-1])
        self._result["runs"].append(made)
        path: Path = self._options.json
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self._result, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)
        print({name: value for name, value in made.items() if name != "right"}, flush=True)


def _opened(path: Path, setup: dict[str, Any]) -> dict[str, Any]:
    """What was measured so far."""
    from importlib.metadata import version

    from deepseek.machine import describe_machine

    if path.exists():
        result: dict[str, Any] = json.loads(path.read_bytes())
        if result["setup"] != setup:
            sys.exit(f"error: {path} was measured with {result['setup']}; name another file (--json)")
        return result
    versions = {name: version(name) for name in ("torch", "transformers", "peft")}
    return {"setup": setup, "versions": versions, "machine": describe_machine(), "runs": []}


def _run(given: dict[str, Any]) -> Run:
    from benchmarks.tune.tuned import Job, Setup, run

    with tempfile.TemporaryDirectory() as folder:
        job, setup = Job(**given["job"]), Setup(**given["setup"])
        return run(job, setup, Path(given["base"]), Path(folder), given["threads"])


def best_rate(runs: list[Run], method: str) -> float:
    """The learning rate of the sweep's best run; of equally many right answers, the one with the lower loss."""
    swept = [one for one in runs if one["method"] == method and one["part"] == "held_out"]
    rate: float = max(swept, key=lambda one: (one["accuracy"], -one["nats_per_token"]))["learning_rate"]
    return rate


@dataclass(frozen=True)
class Line:
    """A method in the table: the mean accuracy, the lowest and highest of its seeds, and the difference to full
    fine-tuning with its 95% interval (None for that itself)."""

    method: str
    learning_rate: float
    trained_parameters: int
    accuracy: float
    lowest: float
    highest: float
    against_full: tuple[float, float, float] | None


def lines(runs: list[Run]) -> list[Line]:
    tested: dict[str, list[Run]] = {}
    for one in runs:
        if one["part"] == "test":
            tested.setdefault(one["method"], []).append(one)
    found = []
    for method, ours in tested.items():
        shares = [one["accuracy"] for one in ours]
        other = None if method == "full" else difference_of(tested.get("full", []), ours)
        mean, first = statistics.mean(shares), ours[0]
        found.append(
            Line(method, first["learning_rate"], first["trained_parameters"], mean, min(shares), max(shares), other)
        )
    return found


def difference_of(first: list[Run], second: list[Run]) -> tuple[float, float, float] | None:
    """(difference of accuracies, low, high) over the seeds that both have, None if there are none. An item is left out
    with the answers of all seeds together."""
    from deepseek_eval.metrics import mean
    from deepseek_eval.statistics import difference

    pairs = [(a["right"], b["right"]) for a in first for b in second if a["seed"] == b["seed"]]
    one, other = (np.array([[float(digit), 1.0] for pair in pairs for digit in pair[side]]) for side in (0, 1))
    items = [str(item) for pair in pairs for item in range(len(pair[0]))]
    found = difference(mean("accuracy"), one, other, items) if pairs else None
    if found is None or found.low is None or found.high is None:
        return None
    return found.value, found.low, found.high


def table(runs: list[Run]) -> str:
    shown = [f"{'':10} {'rate':>7} {'trained':>12} {'accuracy':>9}   {'of the seeds':15}  points to full (95%)"]
    for line in lines(runs):
        spread = f"{line.lowest:.1%} to {line.highest:.1%}"
        shown.append(f"{line.method:10} {line.learning_rate:7.0e} {line.trained_parameters:12,} {line.accuracy:9.1%}")
        shown[-1] += f"   {spread:15}"
        if line.against_full is not None:
            value, low, high = (100 * share for share in line.against_full)
            shown[-1] += f"  {value:+.1f} ({low:+.1f} to {high:+.1f})"
    return "\n".join(shown)


if __name__ == "__main__":
    main()
