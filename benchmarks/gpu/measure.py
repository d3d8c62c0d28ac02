"""The engine on one GPU, with random weights of published shapes, next to what the card can do.

Run by ``benchmarks/gpu/run.sh``. Each figure is written as soon as it is there: a run that is cut off loses nothing.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.peer import Waiting, measure_peer
from benchmarks.gpu.sparse import CONTEXTS, STEP_CONTEXTS, measure_attention, measure_steps
from deepseek.benchmark.gpu_rates import Span, copy_bandwidth, matrix_rate, median_seconds
from deepseek.benchmark.worker import Worker
from deepseek.config import EngineConfig
from deepseek.engine.engine import Engine
from deepseek.machine import describe_machine

DENSE, LATENT = "qwen2.5-7b", "deepseek-v2-lite"


class Figures:
    """What was measured, printed and kept."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.values: dict[str, Any] = {}
        self.wrong: list[str] = []

    def put(self, name: str, value: float, unit: str) -> None:
        self.values[name] = value
        print(f"{name:55} {value:14.4g} {unit}", flush=True)
        self.save()

    def save(self) -> None:
        if self._path is not None:
            self._path.write_text(json.dumps(self.values, indent=1) + "\n")


class Measured:
    """An engine in this process."""

    def __init__(self, config: EngineConfig) -> None:
        self._worker = Worker()
        self._worker.answer({"op": "load", "config": _plain(config)})
        self.info: dict[str, Any] = _plain(self._worker.loaded.info)
        self._seed = 0

    @property
    def engine(self) -> Engine:
        engine = self._worker.loaded.engine
        assert isinstance(engine, Engine)
        return engine

    def close(self) -> None:
        """Give its memory back."""
        del self._worker
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def run(self, streams: int, prompt: int, output: int) -> dict[str, float]:
        """Prefill tokens per second, decoded tokens per second behind the last first token, and all of it."""
        self._seed += 1
        source = random.Random(self._seed)
        prompts = [[source.randrange(self.info["vocab_size"]) for _ in range(prompt)] for _ in range(streams)]
        answer = self._worker.answer({"op": "run", "prompts": prompts, "output": output, "ignore_eos": True})
        decoding = answer["total"] - answer["first"]
        return {
            "prefill": streams * prompt / answer["first"],
            "decode": answer["after"] / decoding if decoding > 0 else 0.0,
            "output": answer["tokens"] / answer["total"],
        }

    @contextmanager
    def gpu_seconds(self) -> Iterator[list[float]]:
        """Gives, at its end, the seconds that the GPU was between the beginnings and ends of forwards."""
        model: Any = self.engine.model
        spans: list[Span] = []
        forward = model.forward

        def timed(*arguments: Any) -> Any:
            span = Span("cuda")
            result = forward(*arguments)
            spans.append(span.end())
            return result

        total: list[float] = []
        model.forward = timed
        try:
            yield total
        finally:
            model.forward = forward
            total.append(sum(span.seconds() for span in spans))


def _plain(value: Any) -> Any:
    import msgspec

    return msgspec.to_builtins(value)


@contextmanager
def engine(device: str, shape: str, dtype: str, **options: Any) -> Iterator[Measured]:
    settings = {"max_batch_tokens": 8192, "max_running": 256, "max_context": 16384, "attention": "dense", **options}
    settings |= {"speculation": "off", "prefix_cache": False}
    measured = Measured(EngineConfig(model=f"shape:{shape}", dtype=dtype, device=device, **settings))
    try:
        yield measured
    finally:
        measured.close()


def measure_kernels(figures: Figures, device: str) -> None:
    """Each kernel next to the reference, its rates, and a note of those that are wrong."""
    from benchmarks.gpu.kernels import Sizes, kernel_cases

    torch.manual_seed(0)
    for case in kernel_cases(device, Sizes()):
        error = case.error()
        figures.put(f"{case.name}: error, at most {case.limit:g}", error, "")
        if not error <= case.limit:
            figures.wrong.append(case.name)
        seconds = median_seconds(case.run, device)
        figures.put(f"{case.name}: time", seconds * 1e6, "us")
        figures.put(f"{case.name}: operations", case.operations / seconds, "OP/s")
        figures.put(f"{case.name}: weights read", case.bytes / seconds, "B/s")
    torch.cuda.empty_cache()


def measure(figures: Figures, device: str, quick: bool) -> None:
    """All figures in the order of their worth."""
    shape, latent = ("qwen2.5-0.5b", None) if quick else (DENSE, LATENT)
    dtypes = ("fp16",) if device == "cpu" else ("bf16", "int8", "int4")
    for dtype in dtypes:
        began = time.perf_counter()
        with engine(device, shape, dtype) as measured:
            figures.put(f"{shape} {dtype}: load", time.perf_counter() - began, "s")
            figures.put(f"{shape} {dtype}: weights", measured.info["weights_bytes"] / 1e9, "GB")
            measured.run(1, 64, 8)
            alone = measured.run(1, 128, 32 if quick else 256)["decode"]
            figures.put(f"{shape} {dtype}: one stream", alone, "tok/s")
            bandwidth = figures.values.get("copy bandwidth")
            if bandwidth:
                share = alone * measured.info["weights_bytes"] / bandwidth
                figures.put(f"{shape} {dtype}: one stream, share of copy bandwidth", share, "")
            length = 512 if quick else 8192
            measured.run(1, length, 1)
            rate = measured.run(1, length, 1)["prefill"]
            figures.put(f"{shape} {dtype}: prefill of {length}", rate, "tok/s")
            if dtype == dtypes[0]:
                for streams in (2,) if quick else (64, 256):
                    _many_streams(figures, measured, f"{shape} {dtype}", streams)
        if dtype == dtypes[0]:
            measure_peer(figures, shape, device, *((2, 64, 32) if quick else (256, 512, 256)))
    if device != "cpu":
        measure_attention(figures, device, (4096,) if quick else CONTEXTS)
        context = 8192 if quick else 131072
        with engine(device, shape, "bf16", attention="sparse", max_context=context, max_batch_tokens=2048) as measured:
            measure_steps(figures, measured, (4000,) if quick else STEP_CONTEXTS)
    for dtype in dtypes if latent is not None else ():
        with engine(device, str(latent), dtype) as measured:
            figures.put(f"{latent} {dtype}: weights", measured.info["weights_bytes"] / 1e9, "GB")
            measured.run(64, 64, 8)
            figures.put(f"{latent} {dtype}: 64 streams, 512 + 128", measured.run(64, 512, 128)["decode"], "tok/s")


def _many_streams(figures: Figures, measured: Measured, name: str, streams: int) -> None:
    """Speed, what the host does meanwhile, and how near a step comes to the time that its bytes take at least."""
    prompt, output = (64, 32) if streams < 64 else (512, 256)
    measured.run(streams, 64, 8)
    with measured.gpu_seconds() as busy:
        began = time.perf_counter()
        result = measured.run(streams, prompt, output)
        wall = time.perf_counter() - began
    name = f"{name}: {streams} streams"
    figures.put(f"{name}, {prompt} + {output}, output", result["output"], "tok/s")
    figures.put(f"{name}, {prompt} + {output}, decode", result["decode"], "tok/s")
    figures.put(f"{name}, share of time outside forwards", 1 - busy[0] / wall, "")
    engine = measured.engine
    clock = engine.launcher = Waiting(engine.launcher)
    steps, began = engine.stats().steps, time.perf_counter()
    measured.run(streams, 1, output)
    working = time.perf_counter() - began - clock.seconds
    engine.launcher = clock.own
    figures.put(f"{name}, host's work per decode step", 1e3 * working / (engine.stats().steps - steps), "ms")
    if bandwidth := figures.values.get("copy bandwidth"):
        context = prompt + output / 2
        read = (
            measured.info["weights_bytes"]
            + streams * context * engine.model.page_bytes(engine.page_size) / engine.page_size
        )
        share = read / bandwidth / (streams / result["decode"])
        figures.put(f"{name}, share of copy bandwidth", share, "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="where figures go")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a small shape: shows that it runs")
    arguments = parser.parse_args()
    figures = Figures(arguments.json)
    figures.values["machine"] = describe_machine()
    figures.values["torch"] = torch.__version__
    figures.values["date"] = time.strftime("%Y-%m-%d")
    if arguments.device != "cpu":
        figures.values["card"] = torch.cuda.get_device_name()
        figures.put("copy bandwidth", copy_bandwidth(arguments.device), "B/s")
        figures.put("bf16 products", matrix_rate(arguments.device, torch.bfloat16), "FLOP/s")
        figures.put("int8 products", matrix_rate(arguments.device, torch.int8), "OP/s")
        measure_kernels(figures, arguments.device)
    measure(figures, arguments.device, arguments.quick)
    if figures.wrong:
        raise SystemExit(f"these kernels are wrong: {', '.join(figures.wrong)}")


if __name__ == "__main__":
    main()
