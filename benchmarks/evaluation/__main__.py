"""Evaluation speed and scores against lm-evaluation-harness with transformers: `make bench-eval`.

Both sides get the same weights (the model written out in fp32), the same items and the same prompts: the harness runs
its own task definitions. Ours runs in fp32, for the scores, and on the model's file as it is stored, which is what
users run. Sides take turns, each in a fresh process; only the time in which the model is asked counts, not loading.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.evaluation.tasks import PAIRS, Pair, items_for, write_task
from benchmarks.tune.ladder import write_model
from deepseek.benchmark.peers.base import INSTALL_FOLDER, configured, missing
from deepseek.errors import BenchmarkError, DeepSeekError

SIDES = ("lm-eval", "ours fp32", "ours as stored")
WORKER = Path(__file__).parent / "harness_worker.py"
TIMEOUT = 4 * 3600
Found = dict[str, dict[str, Any]]
"""Task -> its seconds, processor_seconds and scores: for each pair of metrics, item -> score."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DEEPSEEK_BENCH_DATA") or "../shared/data"))
    parser.add_argument("--limit", type=int, default=100, help="items of each task of multiple choice")
    parser.add_argument("--generated", type=int, default=32, help="items of each task that is answered with text")
    parser.add_argument("--batch-size", type=int, default=16, help="of the harness")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--tasks", help="names, separated by commas; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("fp32", "auto"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    pairs = _chosen(parser, options)
    if options.side:
        print(json.dumps(measure_ours(pairs, options)))
        return
    try:
        result = compare(pairs, options)
    except DeepSeekError as error:
        sys.exit(f"error: {error}")
    print(table(result))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def _chosen(parser: argparse.ArgumentParser, options: Any) -> list[Pair]:
    wanted = options.tasks.split(",") if options.tasks else [pair.name for pair in PAIRS]
    known = {pair.name: pair for pair in PAIRS}
    if unknown := [name for name in wanted if name not in known]:
        parser.error(f"no such task: {', '.join(unknown)}; there are {', '.join(known)}")
    if min(options.limit, options.generated, options.rounds, options.batch_size) < 1:
        parser.error("--limit, --generated, --rounds and --batch-size are at least 1")
    if not options.data.is_dir():
        parser.error(f"the folder of datasets {options.data} is not there: name it with --data or DEEPSEEK_BENCH_DATA")
    return [known[name] for name in dict.fromkeys(wanted)]


def compare(pairs: list[Pair], options: Any) -> dict[str, Any]:
    """All rounds. Raises BenchmarkError: the harness is not there, a side fails."""
    python = configured("lm-eval") or (INSTALL_FOLDER / "lm-eval/bin/python").absolute()
    if not python.is_file():
        raise BenchmarkError(f"lm-evaluation-harness: {missing('lm-eval')}")
    rounds: list[dict[str, Found]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tasks").mkdir()
        definitions, versions = installed(python)
        for pair in pairs:
            items, files = items_for(pair, options.data, _limit(pair, options), options.seed)
            write_task(pair, items, files, definitions, folder / "tasks")
        write_model(options.model, folder / "model")
        for index in range(options.rounds):
            found = {}
            for side in SIDES[:: 1 if index % 2 == 0 else -1]:
                found[side] = run_side(side, pairs, options, python, folder)
                shown = ", ".join(f"{task} {one['seconds']:.1f} s" for task, one in found[side].items())
                print(f"round {index + 1}: {side}: {shown}", flush=True)
            rounds.append(found)
    return summarize(pairs, options, rounds, versions)


def installed(python: Path) -> tuple[Path, dict[str, str]]:
    """The harness's folder of tasks, and versions of what it runs on."""
    script = (
        "import importlib.util, json; from importlib.metadata import version; "
        "names = ('lm_eval', 'torch', 'transformers'); "
        "print(json.dumps([importlib.util.find_spec('lm_eval').origin, {name: version(name) for name in names}]))"
    )
    origin, versions = json.loads(_run([str(python), "-c", script], {}, "the harness"))
    return Path(origin).parent / "tasks", versions


def run_side(side: str, pairs: list[Pair], options: Any, python: Path, folder: Path) -> Found:
    """One round of a side, in a fresh process."""
    if side == "lm-eval":
        settings = {
            "model": str(folder / "model"),
            "tasks": str(folder / "tasks"),
            "batch_size": options.batch_size,
            "scores": {pair.name: [score[1:] for score in pair.scores] for pair in pairs},
        }
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
        output = _run([str(python), str(WORKER), json.dumps(settings)], offline, side)
    else:
        model = str(folder / "model") if side == "ours fp32" else options.model
        command = [sys.executable, "-m", "benchmarks.evaluation", "--model", model, "--data", str(options.data)]
        command += ["--limit", str(options.limit), "--generated", str(options.generated), "--seed", str(options.seed)]
        command += ["--tasks", ",".join(pair.name for pair in pairs)]
        output = _run([*command, "--side", "fp32" if side == "ours fp32" else "auto"], {}, side)
    found: Found = json.loads(output.splitlines()[-1])
    return found


def _run(command: list[str], environment: dict[str, str], name: str) -> str:
    done = subprocess.run(
        command, env=os.environ | environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    if done.returncode:
        raise BenchmarkError(f"{name} ended with code {done.returncode}: {done.stderr.strip()[-2000:]}")
    return done.stdout


def measure_ours(pairs: list[Pair], options: Any) -> Found:
    """Every task with our engine, in this process."""
    from deepseek_eval import evaluate
    from deepseek_eval.models.engine import EngineModel
    from deepseek_eval.results import ScoreLine, read_lines

    model = EngineModel(options.model, seed=options.seed, dtype=options.side)
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for pair in pairs:
            place, processor = Path(folder) / pair.name, time.process_time()
            results = evaluate(
                model,
                tasks=[pair.name],
                output_dir=place,
                limit=_limit(pair, options),
                shots=pair.shots,
                seed=options.seed,
                data=options.data,
            )
            processor = time.process_time() - processor
            one = results.models[0]
            lines = read_lines(place / "models" / one.folder / "scores" / f"{pair.name}.jsonl", ScoreLine)
            scored = {line.id: line.score.statistics for line in lines if line.score is not None}
            found[pair.name] = {
                "seconds": one.tasks[pair.name].seconds,
                "processor_seconds": processor,  # with the scoring, which the harness's has not
                "scores": [{name: values[metric][0] for name, values in scored.items()} for metric, *_ in pair.scores],
            }
    return found


def _limit(pair: Pair, options: Any) -> int:
    return int(options.generated if pair.generates else options.limit)


def summarize(
    pairs: list[Pair], options: Any, rounds: list[dict[str, Found]], versions: dict[str, str]
) -> dict[str, Any]:
    from deepseek.machine import describe_machine

    def median(value: Callable[[dict[str, Found]], float]) -> float:
        return statistics.median(map(value, rounds))

    def speed(side: str, clock: str, names: list[str]) -> float:
        return median(
            lambda found: (
                sum(found["lm-eval"][name][clock] for name in names) / sum(found[side][name][clock] for name in names)
            )
        )

    groups = {pair.name: [pair.name] for pair in pairs}
    for title, generates in (("all of multiple choice", False), ("all of generation", True)):
        if names := [pair.name for pair in pairs if pair.generates == generates]:
            groups[title] = names
    return {
        "model": options.model,
        "batch_size": options.batch_size,
        "versions": versions,
        "speed": {
            title: {
                side: {clock: speed(side, clock, names) for clock in ("seconds", "processor_seconds")}
                for side in SIDES[1:]
            }
            for title, names in groups.items()
        },
        "items_per_second": {
            side: {
                pair.name: median(
                    lambda found, side=side, pair=pair: (  # type: ignore[misc]
                        len(found[side][pair.name]["scores"][0]) / found[side][pair.name]["seconds"]
                    )
                )
                for pair in pairs
            }
            for side in SIDES
        },
        "scores": [score for pair in pairs for score in _scores(pair, rounds[-1])],
        "seconds": [
            {side: {name: one["seconds"] for name, one in found[side].items()} for side in SIDES} for found in rounds
        ],
        "machine": describe_machine(),
    }


def _scores(pair: Pair, found: dict[str, Found]) -> list[dict[str, Any]]:
    """Each pair of metrics: the three scores, and which items differ between the harness and ours in fp32."""
    rows = []
    for index, (ours, theirs, filtered) in enumerate(pair.scores):
        by_side = {side: found[side][pair.name]["scores"][index] for side in SIDES}
        harness, own = by_side["lm-eval"], by_side["ours fp32"]
        if harness.keys() != own.keys():
            raise BenchmarkError(f"{pair.name}: the sides scored different items: {harness.keys() ^ own.keys()}")
        rows.append(
            {
                "task": pair.name,
                "metric": ours,
                "theirs": theirs if filtered == "none" else f"{theirs} ({filtered})",
                "items": len(harness),
                **{side: statistics.fmean(scores.values()) for side, scores in by_side.items()},
                "different_items": sorted(name for name in harness if harness[name] != own[name]),
            }
        )
    return rows


def table(result: dict[str, Any]) -> str:
    lines = [f"{'times as fast as lm-eval (by processor time)':44} " + " ".join(f"{side:>16}" for side in SIDES[1:])]
    for title, sides in result["speed"].items():
        shown = (f"{one['seconds']:.2f} ({one['processor_seconds']:.2f})" for one in sides.values())
        lines.append(f"{title:44} " + " ".join(f"{text:>16}" for text in shown))
    lines += ["", f"{'score':44} " + " ".join(f"{side:>16}" for side in SIDES) + "  items: all, different in fp32"]
    for row in result["scores"]:
        values = " ".join(f"{100 * row[side]:16.2f}" for side in SIDES)
        lines.append(f"{row['task'] + ' ' + row['metric']:44} {values}  {row['items']}, {len(row['different_items'])}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
