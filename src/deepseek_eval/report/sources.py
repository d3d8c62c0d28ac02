"""What a report is made of: models of one or several runs, each with a name of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek.errors import ConfigurationError
from deepseek_eval.results import MetricInfo, ModelResult, Results, TaskInfo, TaskResult, load_models

MOST_MODELS = 8
"""More cannot be told apart by colour and form."""


@dataclass(frozen=True)
class Entry:
    """A model of a run.

    Attributes:
        label: its name in this report, different from all others.
        place: its position among the report's models; decides its colour.
    """

    label: str
    place: int
    results: Results
    folder: Path
    model: ModelResult

    @property
    def run(self) -> tuple[Results, Path, ModelResult]:
        """As :func:`deepseek_eval.compare.compare_models` takes it."""
        return self.results, self.folder, self.model


@dataclass(frozen=True)
class Shown:
    """A task as a report shows it.

    Attributes:
        info: of the first run that has it.
        entries: models that were run on it, each with its result.
        remarks: what differs between the runs.
    """

    info: TaskInfo
    entries: tuple[tuple[Entry, TaskResult], ...]
    remarks: tuple[str, ...]

    @property
    def metric(self) -> MetricInfo:
        return self.info.metrics[0]


def read_entries(runs: Sequence[str | Path]) -> list[Entry]:
    """The models of runs.

    Args:
        runs: folders or their ``results.json``; ``FOLDER#MODEL`` takes one model of several.

    Raises:
        ConfigurationError: no models, too many, or one that is not there.
        DataError: results that cannot be read.
    """
    found: list[tuple[Results, Path, ModelResult]] = []
    for run in runs:
        results, folder, models = load_models(run)
        found += [(results, folder, one) for one in models]
    if not found:
        raise ConfigurationError("there is no run to report: name at least one folder.")
    if len(found) > MOST_MODELS:
        raise ConfigurationError(
            f"{len(found)} models are too many to tell apart in one report; {MOST_MODELS} are the most. Choose some "
            "with FOLDER#MODEL."
        )
    labels = _labels(found)
    return [Entry(label, place, *one) for place, (label, one) in enumerate(zip(labels, found, strict=True))]


def _labels(found: Sequence[tuple[Results, Path, ModelResult]]) -> list[str]:
    """Names, with what tells two of the same name apart: a setting, else the folder of their run, else a number."""
    names = [model.name for _, _, model in found]
    labels = []
    for name, (_, folder, model) in zip(names, found, strict=True):
        same = [one for _, _, one in found if one.name == name]
        labels.append(name if len(same) == 1 else f"{name} ({_what_differs(model, same) or folder.name})")
    counts = Counter(labels)
    seen: Counter[str] = Counter()
    for place, label in enumerate(labels):
        if counts[label] > 1:
            seen[label] += 1
            labels[place] = f"{label} #{seen[label]}"
    return labels


def _what_differs(model: ModelResult, same: Sequence[ModelResult]) -> str:
    for key, value in model.details.items():
        if isinstance(value, str) and 0 < len(value) <= 32:
            others = [one.details.get(key) for one in same]
            if len(set(map(str, others))) == len(others):
                return value
    return ""


def shown_tasks(entries: Sequence[Entry]) -> list[Shown]:
    """All tasks, kind by kind in the order of the runs."""
    infos: dict[str, TaskInfo] = {}
    for entry in entries:
        for name in entry.model.tasks:
            infos.setdefault(name, entry.results.tasks[name])
    kinds = list(dict.fromkeys(info.kind for info in infos.values()))
    ordered = sorted(infos.values(), key=lambda info: kinds.index(info.kind))
    return [_shown(info, entries) for info in ordered]


def _shown(info: TaskInfo, entries: Sequence[Entry]) -> Shown:
    own = tuple((entry, entry.model.tasks[info.name]) for entry in entries if info.name in entry.model.tasks)
    remarks = []
    for what, of in (("versions", "version"), ("numbers of examples (shots)", "shots")):
        values = [getattr(entry.results.tasks[info.name], of) for entry, _ in own]
        if len(set(values)) > 1:
            listed = ", ".join(f"{entry.label}: {value}" for (entry, _), value in zip(own, values, strict=True))
            remarks.append(f"The {what} differ ({listed}), so the figures are not of the same thing.")
    judges = dict.fromkeys(result.judge for _, result in own)
    if len(judges) > 1:
        remarks.append(f"Different models judged the answers: {', '.join(name or 'none' for name in judges)}.")
    if not remarks and len({entry.results.tasks[info.name].items_sha256 for entry, _ in own}) > 1:
        remarks.append("The runs asked different items, or in other words; only shared ones are compared.")
    return Shown(info, own, tuple(remarks))
