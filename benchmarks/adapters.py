"""Decoding with adapters against decoding without, in turn, and how long loading takes: `make bench-adapters`.

Every side is an engine of its own around one model, with one batch of answers of equal length. The sides decode step by
step in turn, forwards and backwards, so that what else the machine does hits all of them. Reported are medians of the
ratios of the model's own step to the side's beside it. Adapters are random: what they compute takes as long as what
trained ones do.
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
from deepseek.config import PAGE_SIZE, EngineConfig
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


def begin(engine: Engine, adapters: Sequence[str | None], steps: int) -> None:
    """Have as many answers as there are ``adapters`` computed up to their first tokens."""
    params = SamplingParams(max_tokens=steps + 1, temperature=0.0, ignore_eos=True)
    for index, adapter in enumerate(adapters):
        prompt = [(31 * index + 7 * i) % 1000 + 3 for i in range(PROMPT)]
        engine.add(GenerateRequest(str(index), prompt, params, adapter=adapter))
    while engine.stats().waiting or any(s.in_prompt for s in engine.scheduler.running):
        engine.step()


def step_seconds(engines: Mapping[str, Engine], steps: int) -> dict[str, list[float]]:
    """Seconds of each side's decode steps."""
    times: dict[str, list[float]] = {side: [] for side in engines}
    for step in range(steps):
        order = list(engines) if step % 2 == 0 else list(engines)[::-1]
        for side in order:
            started = time.perf_counter()
            engines[side].step()
            times[side].append(time.perf_counter() - started)
    return times


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Figures of one model."""
    config = EngineConfig(model=name, dtype=args.dtype, offline=True, speculation="off", kv_cache_bytes=64 << 20)
    first = load_engine(config).engine
    assert isinstance(first, Engine)
    places = {str(index): folder / f"{name}-{index}" for index in range(args.adapters)}
    for seed, place in enumerate(places.values()):
        write_adapter(place, first.model.host, rank=args.rank, targets=args.targets, seed=seed)
    names = list(places)
    spread = [names[i * args.adapters // args.batch] for i in range(args.batch)]
    sides: Mapping[str, Sequence[str | None]] = {
        "base": [None] * args.batch,
        "all": spread,
        "one": [names[0]] * args.batch,
        "half": [None if i % 2 else adapter for i, adapter in enumerate(spread)],
        "base-alone": [None],
        "one-alone": [names[0]],
    }
    engines, loads = {}, []
    pages = args.batch * (2 + (PROMPT + args.steps) // PAGE_SIZE)
    for side, adapters in sides.items():
        engine = engines[side] = Engine(
            first.model,
            num_pages=pages,
            page_size=PAGE_SIZE,
            max_context=first.max_context,
            max_running=args.batch,
            max_batch_tokens=512,
            end_ids=frozenset(),
            prefix_cache=False,
        )
        used = [adapter for adapter in names if adapter in adapters]
        loads += [engine.load_adapter(adapter, str(places[adapter])) for adapter in used]
        begin(engine, adapters, args.steps)
    times = step_seconds(engines, args.steps)
    ratios = {
        side: statistics.median(
            base / own
            for base, own in zip(times["base-alone" if side.endswith("alone") else "base"], own_times, strict=True)
        )
        for side, own_times in times.items()
    }
    seconds = [info.load_seconds for info in loads]
    return {
        "model": name,
        "rank": args.rank,
        "targets": list(args.targets),
        "adapter_bytes": loads[0].nbytes,
        "load_seconds": {"median": statistics.median(seconds), "longest": max(seconds)},
        "throughput_ratio": ratios,
        "step_seconds": {side: statistics.median(own) for side, own in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", help="repeatable")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--targets", nargs="+", default=ALL)
    parser.add_argument("--adapters", type=int, default=8)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=100, help="timed steps of each side")
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
