"""Decode rate against context length as a plot: `make bench-context` draws docs/images/context.svg with it.

python -m benchmarks.plot_context benchmarks/results/context_*.json --output docs/images/context.svg

Each file of `deepseek bench context` becomes a panel: medians over rounds, for llama.cpp of the better type of keys and
values. Rings stand for contexts that were filled instead of computed. Both axes are logarithmic.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

SERIES = {
    "dense": ("ours, dense", "#8a8f98"),
    "sparse": ("ours, sparse", "#1f6feb"),
    "llama.cpp": ("llama.cpp", "#d9730d"),
}
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 460, 320, 56, 20, 44, 48


@dataclass(frozen=True)
class Point:
    """Tokens of context, decoded tokens per second, and whether the context was filled."""

    length: int
    rate: float
    filled: bool


@dataclass(frozen=True)
class Axis:
    """A logarithmic axis from ``low`` to ``high``, drawn from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        """Where a value is drawn."""
        share = (math.log(value) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return self.start + share * (self.end - self.start)


def points(result: Mapping[str, Any]) -> dict[str, list[Point]]:
    """The curve of each kind of attention in the result of one run, by length."""
    curves: dict[str, list[Point]] = {}
    for attention in SERIES:
        rates: dict[int, dict[str, list[float]]] = {}
        filled: dict[int, bool] = {}
        for run in result["runs"]:
            if run["attention"] == attention:
                rates.setdefault(run["length"], {}).setdefault(run["kv_dtype"], []).append(run["decode_tok_s"])
                filled[run["length"]] = run["filled"]
        curves[attention] = [
            Point(length, max(map(statistics.median, kinds.values())), filled[length])
            for length, kinds in sorted(rates.items())
        ]
    return {attention: curve for attention, curve in curves.items() if curve}


def plot(results: Sequence[Mapping[str, Any]]) -> str:
    """An SVG image with a panel for each result, side by side."""
    panels = [
        f'<g transform="translate({index * WIDTH} 0)">{_panel(result)}</g>' for index, result in enumerate(results)
    ]
    width = WIDTH * len(results)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" width="{width}" height="{HEIGHT}" '
        'font-family="system-ui, sans-serif" font-size="12" fill="#24292f">\n'
        f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>\n' + "\n".join(panels) + "\n</svg>\n"
    )


def _panel(result: Mapping[str, Any]) -> str:
    curves = points(result)
    lengths = sorted({point.length for curve in curves.values() for point in curve})
    rates = [point.rate for curve in curves.values() for point in curve]
    across = Axis(lengths[0] / 1.2, lengths[-1] * 1.2, LEFT, WIDTH - RIGHT)
    upwards = Axis(min(rates) / 1.3, max(rates) * 1.3, HEIGHT - BOTTOM, TOP)
    settings = result["settings"]
    kv_dtype = next(run["kv_dtype"] for run in result["runs"])
    parts = [
        _text(LEFT, 16, f"{settings['model']}, {result['machine']['cores']} cores, cache {kv_dtype}", "start", "bold"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 8, "tokens of context"),
        f'<text x="14" y="{(TOP + HEIGHT - BOTTOM) / 2}" text-anchor="middle" '
        f'transform="rotate(-90 14 {(TOP + HEIGHT - BOTTOM) / 2})">decoded tokens per second</text>',
    ]
    for rate in _ticks(upwards.low, upwards.high):
        y = upwards.at(rate)
        parts.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#d8dee4"/>')
        parts.append(_text(LEFT - 6, y + 4, f"{rate:g}", "end"))
    for length in _apart(lengths, across):
        parts.append(f'<path d="M{across.at(length):.1f} {HEIGHT - BOTTOM}v5" stroke="#57606a"/>')
        parts.append(_text(across.at(length), HEIGHT - BOTTOM + 18, _short(length)))
    parts.append(f'<path d="M{LEFT} {TOP}V{HEIGHT - BOTTOM}H{WIDTH - RIGHT}" fill="none" stroke="#57606a"/>')
    for index, (attention, curve) in enumerate(curves.items()):
        name, colour = SERIES[attention]
        places = [(across.at(point.length), upwards.at(point.rate), point.filled) for point in curve]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" stroke="{colour}" stroke-width="2" '
            f'fill="{"#ffffff" if filled else colour}"/>'
            for x, y, filled in places
        ]
        x = LEFT + 12 + 125 * index
        parts.append(f'<path d="M{x} 30h18" stroke="{colour}" stroke-width="3"/>')
        parts.append(_text(x + 24, 34, name, "start"))
    return "\n".join(parts)


def _text(x: float, y: float, words: str, anchor: str = "middle", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(words)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten between the ends."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]


def _apart(lengths: Sequence[int], axis: Axis) -> list[int]:
    """The lengths whose labels do not touch."""
    kept: list[int] = []
    for length in lengths:
        if not kept or axis.at(length) - axis.at(kept[-1]) >= 30:
            kept.append(length)
    return kept


def _short(length: int) -> str:
    """4096 as 4K, 1048576 as 1M."""
    for size, unit in ((2**20, "M"), (2**10, "K")):
        if length % size == 0:
            return f"{length // size}{unit}"
    return str(length)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="files of `deepseek bench context`")
    parser.add_argument("--output", type=Path, default=Path("docs/images/context.svg"))
    arguments = parser.parse_args()
    results = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.results]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(plot(results), encoding="utf-8")


if __name__ == "__main__":
    main()
