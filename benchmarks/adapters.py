"""Decoding with adapters against decoding without, in turn, and how long loading takes: `make bench-adapters`.

One engine runs all sides, round by round, in turn forwards and backwards. A round is one batch of answers of equal
length; what counts is the median time of its decode steps. Reported are medians of the rounds' ratios to the model
alone. Adapters are random: what they compute takes as long as what trained ones do.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from deepseek.adapters.adapter import Host
from deepseek.adapters.read import WEIGHTS
from deepseek.adapters.settings import CONFIG
from deepseek.config import EngineConfig
from deepseek.engine.engine import Engine
from deepseek.engine.events import GenerateRequest
from deepseek.engine.load import load_engine
from deepseek.machine import describe_machine
from deepseek.sampling import SamplingParams

ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
TARGET = 0.8  # of the model's own tokens per second, with 8 adapters in a batch of 32
PROMPT = 32


def write_adapter(folder: Path, host: Host, *, rank: int, targets: Sequence[str], seed: int) -> None:
    """A random LoRA adapter in peft's layout."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, site in host.sites.items():
        if name.rpartition(".")[2] in targets:
            shapes = {"A": (rank, site.inputs), "B": (site.outputs, rank)}
            for part, shape in shapes.items():
                tensors[f"base_model.model.{name}.lora_{part}.weight"] = 0.01 * torch.randn(shape, generator=generator)
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS)
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
    (folder / CONFIG).write_text(json.dumps(config))


def step_time(engine: Engine, name: str, adapters: Sequence[str | None], steps: int) -> float:
    """Median seconds of a decode step of as many answers as there are ``adapters``."""
    params = SamplingParams(max_tokens=steps + 1, temperature=0.0, ignore_eos=True)
    for index, adapter in enumerate(adapters):
        prompt = [(31 * index + 7 * i) % 1000 + 3 for i in range(PROMPT)]
        engine.add(GenerateRequest(f"{name}-{index}", prompt, params, cache_salt=name, adapter=adapter))
    while engine.stats().waiting or any(s.in_prompt for s in engine.scheduler.running):
        engine.step()
    times = []
    while engine.has_work:
        started = time.perf_counter()
        engine.step()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def measure(model: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Ratios of one model."""
    config = EngineConfig(
        model=model, dtype=args.dtype, offline=True, speculation="off", prefix_cache=False, kv_cache_bytes=512 << 20
    )
    engine = load_engine(config).engine
    assert isinstance(engine, Engine)
    loads = []
    for index in range(args.adapters):
        place = folder / f"{model}-{index}"
        write_adapter(place, engine.model.host, rank=args.rank, targets=args.targets, seed=index)
        loads.append(engine.load_adapter(str(index), str(place)).load_seconds)
    size = engine.stats().adapter_bytes // args.adapters
    names = [str(index) for index in range(args.adapters)]
    sides: Mapping[str, Sequence[str | None]] = {
        "base": [None] * args.batch,
        "one": [names[0]] * args.batch,
        "all": [names[i * args.adapters // args.batch] for i in range(args.batch)],
        "half": [None if i % 2 else names[i * args.adapters // args.batch] for i in range(args.batch)],
        "base-alone": [None],
        "one-alone": [names[0]],
    }
    rounds: list[dict[str, float]] = []
    for number in range(args.rounds):
        order = list(sides) if number % 2 == 0 else list(sides)[::-1]
        rounds.append({side: step_time(engine, f"{number}-{side}", sides[side], args.steps) for side in order})
    ratios = {
        side: statistics.median(r["base-alone" if side.endswith("alone") else "base"] / r[side] for r in rounds)
        for side in sides
    }
    return {
        "model": model,
        "rank": args.rank,
        "targets": list(args.targets),
        "adapter_bytes": size,
        "load_seconds": {"median": statistics.median(loads), "longest": max(loads)},
        "throughput_ratio": ratios,
        "step_seconds": {side: statistics.median(r[side] for r in rounds) for side in sides},
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="repeatable")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", nargs="+", default=ALL)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=24, help="timed steps of each side in a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="adapters"))
    try:
        results = [measure(model, args, folder) for model in args.model or ["smollm2-135m-instruct"]]
    finally:
        shutil.rmtree(folder)
    for result in results:
        ratios = result["throughput_ratio"]
        print(
            f"{result['model']}, rank {result['rank']} on {', '.join(result['targets'])}: {args.adapters} adapters in "
            f"a batch of {args.batch} decode at {ratios['all']:.2f} of the model's speed (target {TARGET}), one at "
            f"{ratios['one']:.2f}, half of the rows at {ratios['half']:.2f}; one answer alone at "
            f"{ratios['one-alone']:.2f}. Loaded in {result['load_seconds']['median']:.2f} s, "
            f"{result['adapter_bytes'] / 2**20:.1f} MiB each."
        )
    if args.json is not None:
        args.json.write_text(json.dumps({"machine": describe_machine(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
