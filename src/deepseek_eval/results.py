"""What a run leaves behind: ``results.json``, and the files of items, outputs and scores beside it.

```
DIR/
  results.json                        everything but the items
  items/TASK.jsonl                    prompt, expected answer, groups of each item
  models/MODEL/outputs/TASK.jsonl     what the model gave, appended as it came
  models/MODEL/scores/TASK.jsonl      what that is worth
  models/MODEL/verdicts/JUDGE/TASK.jsonl   what a judge was asked about it, and what it said
```
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np

from deepseek.errors import ConfigurationError, DataError, EvaluationError
from deepseek_eval.statistics import Estimate
from deepseek_eval.task import Floats, Generate, Item, Metric, Output, Score

RESULTS = "results.json"
FORMAT = 1
T = TypeVar("T")


class OutputLine(msgspec.Struct, frozen=True, omit_defaults=True):
    """A line of a file of outputs; the documented format of stored outputs too.

    Attributes:
        task: name of the task.
        id: of the item.
        output: what the model gave.
        digest: of what it was asked (:func:`item_digest`); "" where that is not known.
    """

    task: str
    id: str
    output: Output
    digest: str = ""


class ScoreLine(msgspec.Struct, frozen=True):
    """A line of a file of scores: ``score`` is None for an item without an answer, and ``error`` says why."""

    id: str
    digest: str
    cluster: str
    score: Score | None
    error: str = ""


class MetricInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Of a :class:`deepseek_eval.task.Metric`, what a reader must know."""

    name: str
    unit: str
    higher_is_better: bool | None
    chance: float | None

    @classmethod
    def of(cls, metric: Metric) -> MetricInfo:
        return cls(name=metric.name, unit=metric.unit, higher_is_better=metric.higher_is_better, chance=metric.chance)


class TaskInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A task as it was run.

    Attributes:
        metrics: the first is the main one.
        items: that were asked; ``items_in_all`` before the limit.
        data: file of a dataset -> SHA-256.
        items_sha256: of all that was asked.
    """

    name: str
    title: str
    kind: str
    languages: tuple[str, ...]
    version: int
    shots: int
    note: str
    metrics: tuple[MetricInfo, ...]
    items: int
    items_in_all: int
    data: dict[str, str]
    items_sha256: str


class TaskResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one model reached in one task.

    Attributes:
        metrics: name -> value with its interval, over the answered items.
        groups: kind of group -> group -> metric -> value with its interval.
        answered, unanswered, refused: numbers of items. Refused ones are answered too.
        errors: why items are unanswered -> how many.
        if_wrong: the main metric if every unanswered item were wrong, where it is a plain share; else None.
        stopped: why not all items were asked; "" if they were.
        asked_now, seconds: items that this run asked, the others being there from earlier ones, and how long it took.
        prompt_tokens, completion_tokens: as the model counts them.
        cost: in US dollars; None if no price is known.
        judge: name of the model that judged the answers; "" if none did. Such numbers are opinions.
        unscored: answered items that the judge's words give no number for. They are in no figure.
        judge_cost: of the judge, in US dollars; None if no price is known.
    """

    metrics: dict[str, Estimate]
    groups: dict[str, dict[str, dict[str, Estimate]]]
    answered: int
    unanswered: int
    refused: int
    errors: dict[str, int]
    if_wrong: float | None
    stopped: str
    asked_now: int
    seconds: float
    prompt_tokens: int
    completion_tokens: int
    cost: float | None
    judge: str = ""
    unscored: int = 0
    judge_cost: float | None = None


class ModelResult(msgspec.Struct, frozen=True, kw_only=True):
    """What one model reached.

    Attributes:
        folder: of its files, below ``models``.
        name, kind, evidence, details, likelihoods: as in :class:`deepseek_eval.task.ModelCard`.
        tasks: by name.
    """

    folder: str
    name: str
    kind: str
    evidence: str
    likelihoods: bool
    details: dict[str, Any]
    tasks: dict[str, TaskResult]


class JudgeInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The model that judged.

    Attributes:
        folder: of its verdicts, below ``models/MODEL/verdicts``.
        name, kind, details: as in :class:`deepseek_eval.task.ModelCard`.
        itself: it was allowed to be a model that it judges.
    """

    folder: str
    name: str
    kind: str
    details: dict[str, Any]
    itself: bool


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """A task that could not be run, and why. ``model`` is "" if no model can."""

    task: str
    reason: str
    model: str = ""


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run.

    Attributes:
        format: of this file.
        started: ISO 8601, UTC.
        seed: of samples, limit and resamples.
        limit: items of each task at most; None for all.
        versions: of this package and of those that numbers depend on.
        machine: as :func:`deepseek.machine.describe_machine` has it.
        tasks: by name.
        models: in the order given.
        missing: what was asked for and not run.
        command: that made it, as it was given; "" for a run from Python.
        judge: that tasks asked for; None if none did.
    """

    format: int
    started: str
    seed: int
    limit: int | None
    versions: dict[str, str]
    machine: dict[str, Any]
    tasks: dict[str, TaskInfo]
    models: tuple[ModelResult, ...]
    missing: tuple[Missing, ...]
    command: str = ""
    judge: JudgeInfo | None = None


def item_digest(item: Item, seed: int) -> str:
    """Of all that decides what a model is asked. Equal digests: an answer to the one is an answer to the other."""
    random = isinstance(item.ask, Generate) and item.ask.temperature > 0
    asked = [item.prompt, item.ask, seed if random else None]
    return hashlib.sha256(msgspec.json.encode(asked)).hexdigest()[:32]


def rows_of(lines: Iterable[ScoreLine], metric: str) -> tuple[Floats, list[str], list[str]]:
    """(statistics [items, ...], ids, clusters) of the items that a metric applies to."""
    found = [
        (line.score.statistics[metric], line.id, line.cluster)
        for line in lines
        if line.score is not None and metric in line.score.statistics
    ]
    rows = np.array([statistics for statistics, _, _ in found], dtype=np.float64).reshape(
        len(found), -1 if found else 1
    )
    return rows, [one for _, one, _ in found], [cluster for _, _, cluster in found]


def read_lines(path: Path, kind: type[T]) -> Iterator[T]:
    """The lines of a file; none if it is not there. A last line without its end was being written when its process
    was killed, and does not count. Raises DataError for any other damage."""
    if not path.exists():
        return
    decoder = msgspec.json.Decoder(kind)
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            try:
                yield decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(f"{path}, line {number}: {error}. Delete the line, or the file.") from error


class Appender:
    """Adds lines to a file; a line is with the operating system when :meth:`add` returns."""

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab+")
            self._drop_torn_line()
        except OSError as error:
            raise EvaluationError(f"{path} cannot be written: {error.strerror or error}.") from error

    def _drop_torn_line(self) -> None:
        size = self._file.seek(0, 2)
        position = size
        while position > 0:
            start = max(0, position - 65_536)
            self._file.seek(start)
            end = self._file.read(position - start).rfind(b"\n")
            if end >= 0:
                position = start + end + 1
                break
            position = start
        if position < size:
            self._file.truncate(position)

    def add(self, line: msgspec.Struct) -> None:
        try:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()
        except OSError as error:
            raise EvaluationError(f"{self._file.name} cannot be written: {error.strerror or error}.") from error

    def close(self) -> None:
        self._file.close()


def write_whole(path: Path, content: bytes) -> None:
    """Replace a file at once: it is the old or the new one, whatever happens."""
    partial = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:
        raise EvaluationError(f"{path} cannot be written: {error.strerror or error}.") from error


def write_lines(path: Path, lines: Iterable[msgspec.Struct]) -> None:
    write_whole(path, b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def save(results: Results, folder: Path) -> None:
    write_whole(folder / RESULTS, msgspec.json.format(msgspec.json.encode(results), indent=1))


def load(path: Path) -> tuple[Results, Path]:
    """(results, their folder) of a folder or of its ``results.json``. Raises DataError."""
    file = path / RESULTS if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}. `deepseek eval run` writes it.") from error
    try:
        results = msgspec.json.decode(content, type=Results)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{file} holds no results of `deepseek eval run`: {error}.") from error
    if results.format != FORMAT:
        raise DataError(f"{file} has format {results.format}; this version reads {FORMAT}. Run the evaluation again.")
    return results, file.parent


def load_models(run: str | Path) -> tuple[Results, Path, list[ModelResult]]:
    """(results, their folder, models): all models of a run, or the one of ``FOLDER#MODEL``.

    Folders may have a ``#`` in their own names. Raises DataError, and ConfigurationError where there is no such model.
    """
    place = str(run)
    cuts = [at for at, char in enumerate(place) if char == "#"]
    ends = [len(place), *reversed(cuts)]
    end = next((at for at in ends if Path(place[:at]).expanduser().exists()), min(ends))
    place, wanted = place[:end], place[end + 1 :]
    results, folder = load(Path(place).expanduser())
    if not results.models:
        raise ConfigurationError(f"{place} has results of no model: run `deepseek eval run` to the end.")
    models = [one for one in results.models if not wanted or wanted in (one.name, one.folder)]
    if not models:
        names = ", ".join(f"{place}#{one.folder}" for one in results.models)
        raise ConfigurationError(f"{place} has no model {wanted!r}: name one of {names}.")
    return results, folder, models


def load_model(run: str | Path) -> tuple[Results, Path, ModelResult]:
    """As :func:`load_models`, of a run with one model. Raises ConfigurationError where which one is meant is not
    clear."""
    results, folder, models = load_models(run)
    if len(models) > 1:
        names = ", ".join(f"{folder}#{one.folder}" for one in models)
        raise ConfigurationError(f"{run} has several models: name one of {names}.")
    return results, folder, models[0]


def scores_file(folder: Path, model: ModelResult, task: str) -> Path:
    """Where the scores of a model are."""
    return folder / "models" / model.folder / "scores" / f"{task}.jsonl"
