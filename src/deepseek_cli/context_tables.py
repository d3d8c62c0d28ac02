"""How `deepseek bench recall` and `deepseek bench context` show their results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_recall(console: Console, result: dict[str, Any]) -> None:
    """Tables of tasks and perplexities, and what to make of them."""
    if result["items"]:
        console.print(recall_table(result))
        if any(not row["informative"] for row in result["tasks"]):
            console.print(
                "* The dense score is not surely above chance: the model cannot do this task, or too few questions "
                "were asked. Its ratio says nothing about sparse attention.",
                style="yellow",
            )
        for worst in result["worst"]:
            console.print(f"{worst['length']} tokens: least ratio {worst['ratio']:.1%}, {worst['task']}")
    if result["perplexity"]:
        console.print(perplexity_table(result["perplexity"]))
    if not result["settings"]["sparse"]:
        console.print("This engine cannot attend sparsely: all figures are dense ones.", style="yellow")
    for reason in result["skipped"]:
        console.print(f"skipped: {reason}", style="yellow", highlight=False, markup=False)


def print_context(console: Console, result: dict[str, Any]) -> None:
    """A table of all runs, one of ratios, and what was not measured."""
    console.print(context_table(result))
    if result["ratios"]:
        console.print(ratio_table(result["ratios"]))
    if any(run["filled"] for run in result["runs"]):
        console.print("+ the beginning of the prompt was computed, and its keys and values repeated", style="dim")
    for one in result["absent"]:
        length = f"{one['length']} tokens, " if "length" in one else ""
        console.print(
            f"not measured: {length}{one['attention']}: {one['reason']}", style="yellow", highlight=False, markup=False
        )


def context_table(result: dict[str, Any]) -> Table:
    """A row for each run."""
    from rich.table import Table

    settings = result["settings"]
    table = Table(title=f"{settings['model']}, {settings['config']['threads']} threads", title_justify="left")
    for name in ("tokens", "attention", "cache"):
        table.add_column(name, justify="right" if name == "tokens" else "left")
    for name in ("prefill\ntok/s", "decode\ntok/s", "MB read\nper token", "of dense", "index\nMiB", "peak\nGiB"):
        table.add_column(name, justify="right")
    last = None
    for run in sorted(result["runs"], key=lambda run: run["length"]):
        if last not in (None, run["length"]):
            table.add_section()
        last = run["length"]
        table.add_row(
            str(run["length"]),
            run["attention"] + (" +" if run["filled"] else ""),
            run["kv_dtype"],
            _rate(run["prefill_tok_s"]),
            _rate(run["decode_tok_s"]),
            "-" if run["bytes_read_per_token"] is None else f"{run['bytes_read_per_token'] / 1e6:.1f}",
            _share(run["bytes_read_per_token"], run["dense_bytes_per_token"]),
            f"{run['index_bytes'] / 2**20:.0f}" if run["index_bytes"] else "-",
            "-" if run["peak_memory_bytes"] is None else f"{run['peak_memory_bytes'] / 2**30:.2f}",
        )
    return table


def ratio_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A column for each length."""
    from rich.table import Table

    table = Table(title="ratios of medians", title_justify="left")
    table.add_column("")
    for row in rows:
        table.add_column(str(row["length"]), justify="right")
    for name in dict.fromkeys(name for row in rows for name in row if name != "length"):
        table.add_row(name.replace("_tok_s", ""), *(f"{row[name]:.2f}x" if name in row else "-" for row in rows))
    return table


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _share(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.1%}" if part and whole else "-"


def recall_table(result: dict[str, Any]) -> Table:
    """A row for each length and task, and one for all tasks of a length."""
    from rich.table import Table

    settings = result["settings"]
    title = f"{settings['model']}, error {settings['config']['attention_error']}: scores, 95% intervals of the ratios"
    table = Table(title=title, title_justify="left")
    for name in ("tokens", "task", "questions", "chance", "dense", "sparse", "of dense", "question sparse", "of dense"):
        table.add_column(name, justify="left" if name == "task" else "right")
    for total in result["totals"]:
        rows = [row for row in result["tasks"] if row["length"] == total["length"]]
        for row in [*rows, {**total, "task": "all"}]:
            mark = "" if row["informative"] else " *"
            table.add_row(
                str(row["length"]),
                row["task"],
                str(row["items"]),
                f"{row['chance']:.1%}",
                f"{row['dense']:.1%}{mark}",
                f"{row['sparse']:.1%}",
                _ratio(row["ratio"], row["ratio_interval"]),
                f"{row['sparse_question']:.1%}",
                _ratio(row["ratio_question"], row["ratio_question_interval"]),
            )
        table.add_section()
    return table


def perplexity_table(rows: Sequence[dict[str, Any]]) -> Table:
    """A row for each language."""
    from rich.table import Table

    table = Table(title="perplexity", title_justify="left")
    for name in ("text", "tokens", "dense", "sparse", "change"):
        table.add_column(name, justify="left" if name == "text" else "right")
    for row in rows:
        low, high = (f"{end - 1:+.2%}" for end in row["ratio_interval"])
        table.add_row(
            f"{row['language']}, {'real' if row['real_text'] else 'made up'}",
            str(row["tokens"]),
            f"{row['dense']:.3f}",
            f"{row['sparse']:.3f}",
            f"{row['ratio'] - 1:+.2%} [{low}, {high}]",
        )
    return table


def _ratio(value: float | None, interval: Sequence[float] | None) -> str:
    if value is None or interval is None:
        return "-"
    return f"{value:.1%} [{interval[0]:.0%}, {interval[1]:.0%}]"
