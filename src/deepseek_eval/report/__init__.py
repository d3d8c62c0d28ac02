"""One self-contained HTML file from one or several runs (:mod:`deepseek_eval.report.page`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_eval.task import Task

REPORT = "report.html"


def write_report(
    runs: Sequence[str | Path],
    output: Path,
    *,
    published: Sequence[str | Path] = (),
    tasks: Mapping[str, Task] | None = None,
    title: str = "",
) -> None:
    """Write a report of all models of ``runs`` side by side.

    Args:
        runs: folders of runs or their ``results.json``; ``FOLDER#MODEL`` for one model of several.
        output: the HTML file.
        published: files of published figures, or names of those that are part of the package
            (:mod:`deepseek_eval.report.published`).
        tasks: by name, for those that are not built in.
        title: of the page; else the models' names.

    Raises:
        ConfigurationError: no models, or more than can be told apart.
        DataError: results or published figures that cannot be read.
        EvaluationError: the file cannot be written.
    """
    from deepseek.errors import DataError
    from deepseek_eval.report.matrix import all_pairs
    from deepseek_eval.report.page import render
    from deepseek_eval.report.published import read_published, unit_problem
    from deepseek_eval.report.sources import read_entries, shown_tasks
    from deepseek_eval.results import write_whole

    entries = read_entries(runs)
    shown = shown_tasks(entries)
    figures = [read_published(path) for path in published]
    infos = {one.info.name: one.info for one in shown}
    for path, one in zip(published, figures, strict=True):
        for figure in one.figures:
            if problem := unit_problem(figure, infos):
                raise DataError(f"published figures: {path}: {problem}.")
    name = title or ", ".join(entry.label for entry in entries)
    page = render(entries, shown, all_pairs(entries, tasks), figures, title=name, known=tasks)
    write_whole(output, page.encode())


def write_difference(
    first: str | Path, second: str | Path, output: Path, *, tasks: Mapping[str, Task] | None = None
) -> None:
    """Write what the second run has worse and better than the first, with the items that changed.

    Takes what :func:`deepseek_eval.compare.compare` takes, and raises the same.
    """
    from deepseek.errors import ConfigurationError
    from deepseek_eval.report.matrix import all_pairs
    from deepseek_eval.report.page import render
    from deepseek_eval.report.sources import read_entries, shown_tasks
    from deepseek_eval.results import write_whole

    entries = read_entries([first, second])
    if len(entries) != 2:
        raise ConfigurationError("a difference is of two models: name one of each run with FOLDER#MODEL.")
    title = f"{entries[1].label} against {entries[0].label}"
    pairs = all_pairs(entries, tasks)
    write_whole(
        output, render(entries, shown_tasks(entries), pairs, (), title=title, difference=True, known=tasks).encode()
    )
