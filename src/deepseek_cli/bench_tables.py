"""How `deepseek bench` shows and keeps its results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def say(console: Console) -> Callable[[str], None]:
    return lambda line: console.print(line, style="dim", markup=False, highlight=False)


def write(console: Console, result: dict[str, Any], json_file: Path | None) -> None:
    keeper(json_file)(result)
    if json_file:
        console.print(f"written to {json_file}")


def keeper(json_file: Path | None) -> Callable[[dict[str, Any]], None]:
    """Writes a result, complete or not yet; does nothing without a file."""

    def keep(result: dict[str, Any]) -> None:
        if json_file:
            json_file.parent.mkdir(parents=True, exist_ok=True)
            json_file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    return keep


def engine_table(results: dict[str, dict[str, Any]], ratios: dict[str, float] | None) -> Table:
    """Figures as rows, a column for each result, and the last over the first."""
    from rich.table import Table

    from deepseek.benchmark.scenarios import FIGURE_TITLES

    columns = list(results.values())
    settings = columns[0]["settings"]
    quick = ", quick: not for comparison" if settings["quick"] else ""
    title = f"{settings['model']}, {' and '.join(c['settings']['dtype'] for c in columns)}"
    table = Table(title=f"{title}, {columns[0]['machine']['cores']} cores{quick}", title_justify="left")
    table.add_column("figure")
    for name in results:
        table.add_column(name, justify="right")
    if ratios:
        table.add_column("ratio", justify="right")
    rows: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
        (FIGURE_TITLES[name], name, lambda r, name=name: f"{r[name]:.1f} tok/s")  # type: ignore[misc]
        for name in FIGURE_TITLES
        if name in columns[0]
    ]
    rows += [
        ("first token, prompt of 128", "ttft_ms", lambda r: f"{r['ttft_ms']:.0f} ms"),
        ("size of the weights", "size", lambda r: f"{r['settings']['weights_bytes'] / 2**20:.0f} MiB"),
        ("peak memory", "", lambda r: f"{r['peak_memory_bytes'] / 2**20:.0f} MiB"),
        ("  over weights + KV cache", "", lambda r: f"{r['peak_over_budget']:.2f}x"),
        ("read per token, decode", "", lambda r: f"{r['bytes_per_token'] / 1e6:.0f} MB"),
        ("read per second, decode", "", lambda r: f"{r['read_bytes_s'] / 1e9:.1f} GB/s"),
        ("  of the measured bandwidth", "", lambda r: f"{r['bandwidth_share']:.0%}"),
    ]
    if "cost_per_million" in columns[0]:
        rows.append(("cost of a million output tokens", "cost_per_million", lambda r: f"{r['cost_per_million']:.3f}"))
    for shown, name, cell in rows:
        last = [f"{ratios[name]:.2f}x" if name in ratios else ""] if ratios else []
        table.add_row(shown, *(cell(result) for result in columns), *last)
    return table


def peers_table(result: dict[str, Any]) -> Table:
    """A row for each figure and contender, with the ratio of each of ours."""
    from rich.table import Table

    from deepseek.benchmark.scenarios import FIGURE_TITLES

    settings, ratios = result["settings"], result["ratios"]
    quick = ", quick: not for comparison" if settings["quick"] else ""
    title = f"{settings['file']}, {settings['threads']} threads, medians of {settings['repeats']} rounds{quick}"
    table = Table(title=title, title_justify="left")
    table.add_column("figure")
    table.add_column("engine")
    table.add_column("tok/s", justify="right")
    for name in ratios:
        table.add_column(f"{name} is", justify="right")
    for figure, shown in FIGURE_TITLES.items():
        base = figure.partition("/")[0]
        rows = 0
        for contender in (each["name"] for each in result["contenders"]):
            rate = result["figures"].get(contender, {}).get(base)
            cells = [ratios[name].get(contender, {}).get(figure) for name in ratios]
            if rate is None or (figure != base and not any(cells)):
                continue
            value = "" if figure != base else f"{rate:.1f}"
            first = shown if not rows else ""
            table.add_row(first, contender, value, *(f"{c:.2f}x" if c else "" for c in cells))
            rows += 1
        if rows:
            table.add_section()
    return table


def print_contenders(console: Console, result: dict[str, Any]) -> None:
    for contender in result["contenders"]:
        console.print(f"{contender['name']}: version {contender['version']}", highlight=False, markup=False)
        for scenario, flags in contender["flags"].items():
            console.print(f"  {scenario}: {flags}", style="dim", highlight=False, markup=False)
        if contender["note"]:
            console.print(f"  note: {contender['note']}", style="yellow", highlight=False, markup=False)
    for name, reason in result["absent"].items():
        console.print(f"not measured: {name}: {reason}", style="yellow", highlight=False, markup=False)
