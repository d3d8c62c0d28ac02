"""Figures that somebody published and nobody ran again here: shown beside results, apart from them, never compared.

A file holds one model's figures:

```
{"format": 1,
 "model": "gpt-4o-2024-08-06",
 "figures": [
   {"task": "mgsm_zh", "metric": "accuracy", "value": 0.90, "source": "https://github.com/openai/simple-evals",
    "date": "2024-08", "note": "all languages together, zero-shot chain of thought"}]}
```

Values have the unit of the task's metric: a share is 0 to 1. ``low`` and ``high`` (an interval at 95%) and ``items``
may be given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import msgspec

from deepseek.errors import DataError
from deepseek_eval.results import TaskInfo

FORMAT = 1
_SHIPPED = Path(__file__).parent / "published_figures"


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One number.

    Attributes:
        task: name of a task of ours that asks the same, or nearly.
        metric: of that task; ``value`` has its unit.
        low, high: its interval at 95%, where the source has one.
        items: that it was measured on, where the source says so.
        source: where it stands: an address, or a citation.
        date: of the source, ISO 8601, at least the year.
        note: what differs from how the task asks.
    """

    task: str
    metric: str
    value: float
    source: str
    date: str
    low: float | None = None
    high: float | None = None
    items: int | None = None
    note: str = ""


class Published(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The published figures of one model."""

    format: int
    model: str
    figures: tuple[Figure, ...]


def shipped() -> list[str]:
    """Names of the files that are part of this package: figures whose source was looked up, and nothing else."""
    return sorted(file.stem for file in _SHIPPED.glob("*.json"))


def read_published(source: str | Path) -> Published:
    """Read a file, or the one of this package that is called so. Raises DataError, with the place of what is wrong."""
    path = Path(source).expanduser()
    if not path.exists() and str(source) in shipped():
        path = _SHIPPED / f"{source}.json"
    try:
        found = msgspec.json.decode(path.read_bytes(), type=Published)
    except OSError as error:
        raise DataError(
            f"published figures: {path} cannot be read: {error.strerror or error}. "
            f"Name a file, or {', '.join(shipped())}."
        ) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"published figures: {path}: {error}.") from error
    if found.format != FORMAT:
        raise DataError(f"published figures: {path} has format {found.format}; this version reads {FORMAT}.")
    if not found.model.strip():
        raise DataError(f"published figures: {path} names no model.")
    for number, figure in enumerate(found.figures):
        problem = _problem(figure)
        if problem:
            raise DataError(f"published figures: {path}, figures[{number}]: {problem}.")
    return found


def _problem(figure: Figure) -> str | None:
    """What a figure lacks that no schema says."""
    if not figure.source.strip():
        return "source is empty: a figure without one cannot be shown"
    if not (figure.date[:4].isdigit() and len(figure.date) >= 4):
        return f"date must begin with a year, as 2024-08 does, not {figure.date!r}"
    ends = (figure.low, figure.high)
    if (None in ends) and ends != (None, None):
        return "low and high belong together: give both or none"
    if not all(math.isfinite(value) for value in (figure.value, *ends) if value is not None):
        return "numbers must be finite"
    if figure.low is not None and figure.high is not None and not figure.low <= figure.value <= figure.high:
        return "the value is not between low and high"
    return None


def unit_problem(figure: Figure, tasks: Mapping[str, TaskInfo]) -> str | None:
    """Why a figure cannot stand beside results of ``tasks``; None if it can, or if its task was not run."""
    task = tasks.get(figure.task)
    if task is None:
        return None
    metric = next((one for one in task.metrics if one.name == figure.metric), None)
    if metric is None:
        return f"{figure.task} has no metric {figure.metric!r}; it has {', '.join(one.name for one in task.metrics)}"
    if metric.unit == "share" and not -1 <= figure.value <= 1:
        return f"{figure.metric} of {figure.task} is a share from 0 to 1, not {figure.value:g}"
    return None
