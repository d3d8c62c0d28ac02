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
