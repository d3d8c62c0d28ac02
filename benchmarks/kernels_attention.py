"""Speed of native attention alone: `python -m benchmarks.kernels_attention --threads 2`.

Per case and instruction set the median time of a call, the arithmetic of the visible pairs (two products of
multiplications and additions), and the rate at which a decode reads keys and values.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from deepseek.kernels.cpu.extension import native


@dataclass(frozen=True)
class Case:
    name: str
    heads: int
    kv_heads: int
    dim: int
    sequences: tuple[tuple[int, int], ...]  # cached and new tokens

    def pairs(self, window: int) -> int:
        """Visible pairs of a query and a token, over all heads."""
        spans = [range(cached + 1, cached + new + 1) for cached, new in self.sequences]
        return self.heads * sum(min(n, window) if window else n for span in spans for n in span)

    @property
    def tokens(self) -> int:
        return sum(cached + new for cached, new in self.sequences)


CASES = [
    Case("decode 4K, 9 heads of 64 over 3", 9, 3, 64, ((4095, 1),)),
    Case("decode 4K, 12 heads of 128 over 2", 12, 2, 128, ((4095, 1),)),
    Case("decode 4K, 32 heads of 128 over 8", 32, 8, 128, ((4095, 1),)),
    Case("decode 4K, 4 heads of 256 over 1", 4, 1, 256, ((4095, 1),)),
    Case("32 decodes of 256, 12 heads of 128 over 2", 12, 2, 128, ((255, 1),) * 32),
    Case("prefill 512, 9 heads of 64 over 3", 9, 3, 64, ((0, 512),)),
    Case("prefill 512, 12 heads of 128 over 2", 12, 2, 128, ((0, 512),)),
    Case("prefill 512 behind 3584, 12 heads of 128 over 2", 12, 2, 128, ((3584, 512),)),
    Case("prefill 512, 16 heads of 64 over 16", 16, 16, 64, ((0, 512),)),
]
PAGE = 64


def median_seconds(call: Callable[[], object], seconds: float) -> float:
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 3:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(case: Case, kind: str, window: int, isa: str, options: argparse.Namespace) -> float:
    counts = [-(-(cached + new) // PAGE) for cached, new in case.sequences]
    numbers = np.random.default_rng(0).permutation(sum(counts)).astype(np.int32)
    pages = np.zeros((len(counts), max(counts)), np.int32)
    for i, count in enumerate(counts):
        pages[i, :count], numbers = numbers[:count], numbers[count:]
    starts = np.cumsum([0, *(new for _, new in case.sequences)], dtype=np.int32)
    contexts = np.array([cached + new for cached, new in case.sequences], np.int32)
    shape = (sum(counts), case.kv_heads)
    dtype, scale_of = (np.float16, None) if kind == "fp16" else (np.int8, np.ones((*shape, PAGE), np.float32))
    keys, values = (np.ones((*shape, *inner), dtype) for inner in ((PAGE, case.dim), (PAGE, case.dim)))
    query = torch.randn(int(starts[-1]), case.heads, case.dim)
    out = torch.empty_like(query)

    def call() -> None:
        facts = (starts, contexts, pages, case.dim**-0.5, window, isa, options.threads)
        native().attention(query, out, keys, values, scale_of, scale_of, *facts)

    return median_seconds(call, options.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="per measurement")
    parser.add_argument("--isa", action="append", help="avx2 or avx512; default: those that this machine runs")
    parser.add_argument("--kv", choices=["fp16", "int8"], action="append")
    parser.add_argument("--window", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    options = parser.parse_args()
    isas = options.isa or [isa for isa in ("avx2", "avx512") if isa in native().available_isas()]
    print(f"{'case':50} {'kv':5} {'isa':7} {'ms':>9} {'GFLOP/s':>9} {'GB/s':>7}")
    for case in CASES:
        if options.only not in case.name:
            continue
        for kind in options.kv or ["fp16", "int8"]:
            for isa in isas:
                seconds = measure(case, kind, options.window, isa, options)
                gflops = 4 * case.dim * case.pairs(options.window) / seconds / 1e9
                size = 2 * case.dim if kind == "fp16" else case.dim + 4
                gbytes = 2 * size * case.kv_heads * case.tokens / seconds / 1e9
                print(f"{case.name:50} {kind:5} {isa:7} {seconds * 1e3:9.3f} {gflops:9.1f} {gbytes:7.1f}")


if __name__ == "__main__":
    main()
