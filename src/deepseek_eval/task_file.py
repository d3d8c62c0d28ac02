"""Tasks of users: a small YAML file beside a JSONL, or a Python file.

::

    name: capitals
    data: capitals.jsonl          # {"country": "France", "city": "Paris"} on each line
    prompt: "The capital of {country} is"
    answer: "{city}"
    scorer: exact
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import string
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from deepseek.errors import ConfigurationError, DataError
from deepseek_eval.datasets import Files
from deepseek_eval.metrics import mean
from deepseek_eval.scorers.choice import LETTERS, choice, choice_metrics
from deepseek_eval.scorers.generation import (
    READING_METRICS,
    ROUGE_METRICS,
    TOKENIZERS,
    TRANSLATION_METRICS,
    reading,
    summary,
    translation,
)
from deepseek_eval.scorers.judge import GRADE_METRICS, PAIR_METRICS, RUBRIC, Pairwise, Rubric
from deepseek_eval.scorers.labels import label, label_metrics
from deepseek_eval.scorers.numbers import number
from deepseek_eval.scorers.structured import JSON_METRICS, json_answer
from deepseek_eval.scorers.transcription import transcription, transcription_metrics
from deepseek_eval.task import Choose, Generate, Item, Judging, Message, Metric, Rows, Scorer, Task
from deepseek_eval.tasks.builders import Question, Style, examples_of, prompt

SCORERS = {
    "choice": "the likeliest of choices",
    "label": "a label in generated text, one of choices",
    "exact": "the answer when normalized, case and punctuation apart",
    "f1": "overlap with the answer",
    "number": "the value of the number in the answer",
    "summary": "ROUGE",
    "translation": "chrF and BLEU, by the last of languages",
    "json": "JSON that fits the schema and equals the answer",
    "transcription": "word and character error rates, by the last of languages",
    "judge": "a grade from another model, by a rubric",
    "pairwise": "another model says whether it is better than the answer of the row",
}
"""What a file's ``scorer`` may be."""
_JUDGED = ("judge", "pairwise")
SUFFIXES = (".yaml", ".yml", ".py")


class TaskFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The fields of a YAML file. Templates name fields of a row in braces; ``{{`` is a brace.

    Attributes:
        name: of the task, lower case.
        data: rows to ask: JSONL, JSON, CSV or TSV, relative to the file.
        prompt: template of what is asked.
        answer: template of the right answer; of the one to compare with for ``pairwise``, unless a run is. ``judge``
            needs none.
        scorer: one of :data:`SCORERS`.
        examples: rows to show before each question, another file than ``data``.
        shots: how many of them.
        choices: the choices, or the name of the field that has them.
        description: stands above everything.
        delimiter: between a prompt and its answer.
        chat: the prompt is a user's message, not a text to continue; then there are no examples.
        schema: of ``json``.
        rubric: of ``judge`` and ``pairwise``: what a good answer is.
        grades: of ``judge``: the lowest and the highest.
        max_tokens, stop: of generated answers: 64, and the end of a line; 512 and none where another model judges them.
        id: template of an item's name; else the row's number.
        groups: name -> template: how a report divides the scores.
        title, kind, languages, note, version: as in :class:`deepseek_eval.task.Task`.
    """

    name: str
    data: str
    prompt: str
    scorer: str
    answer: str = ""
    examples: str = ""
    shots: int = 0
    choices: list[str] | str = msgspec.field(default_factory=list)
    description: str = ""
    delimiter: str = " "
    chat: bool = False
    schema: dict[str, Any] | None = None
    rubric: str = RUBRIC
    grades: tuple[int, int] = (1, 5)
    max_tokens: int | None = None
    stop: list[str] | None = None
    id: str = ""
    groups: dict[str, str] = {}
    title: str = ""
    kind: str = "custom"
    languages: list[str] = msgspec.field(default_factory=lambda: ["en"])
    note: str = ""
    version: int = 1


def load_task_file(path: str | Path) -> Task:
    """The task of a file. A Python file has it as ``task``; its code is run.

    Raises ConfigurationError: a field that is unknown (with the nearest), missing, or cannot work; DataError: the file
    cannot be read. Its rows are read when items are asked for, and their faults are raised then.
    """
    path = Path(path).expanduser()
    if path.suffix not in SUFFIXES:
        raise ConfigurationError(f"{path} is no task file: {', '.join(SUFFIXES)} are known.")
    if not path.is_file():
        raise DataError(f"there is no task file {path}.")
    return _python_task(path) if path.suffix == ".py" else _Builder(path, _read(path)).task()


def _python_task(path: Path) -> Task:
    spec = importlib.util.spec_from_file_location(f"_deepseek_eval_task_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses of the file look themselves up here
    spec.loader.exec_module(module)
    task = getattr(module, "task", None)
    if not isinstance(task, Task):
        raise ConfigurationError(f"{path} must have a deepseek_eval.task.Task called task, and has {task!r}.")
    return task


def _read(path: Path) -> TaskFile:
    import yaml

    try:
        fields = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not YAML: {error}") from error
    if not isinstance(fields, dict):
        raise ConfigurationError(f"{path} must hold fields such as name and data, not {type(fields).__name__}.")
    known = TaskFile.__struct_fields__
    for name in fields:
        if name not in known:
            raise ConfigurationError(f"{path} has an unknown field {name!r}.{_nearest(str(name), known)}")
    try:
        return msgspec.convert(fields, TaskFile)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {error}.") from error


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(name, names, n=2, cutoff=0.5)
    return f" Did you mean {' or '.join(close)}?" if close else f" Known are {', '.join(names)}."


class _Template:
    """Text with fields of a row in it. Names only: no attributes, no formats."""

    def __init__(self, path: Path, field: str, text: str) -> None:
        self._field = field
        try:
            self._parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(
                f"{path}: {field} is no template: {error}. Write a brace as {{{{ or }}}}."
            ) from error
        for _, name, form, conversion in self._parts:
            if name is not None and (not name.strip() or form or conversion):
                raise ConfigurationError(f"{path}: {field} has braces without the name of a field in them.")

    def fill(self, row: Mapping[str, Any], where: str) -> str:
        """Raises DataError where the row lacks a field."""
        text = ""
        for literal, name, _, _ in self._parts:
            text += literal
            if name is not None:
                text += _as_text(_value(row, name, where, self._field))
        return text


def _value(row: Mapping[str, Any], name: str, where: str, field: str) -> Any:
    if name not in row or row[name] is None:
        raise DataError(f"{where} has no field {name!r}, which {field} asks for.{_nearest(name, row)}")
    return row[name]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


class _Builder:
    """A task from a file's fields."""

    def __init__(self, path: Path, fields: TaskFile) -> None:
        self._path, self._fields = path, fields
        self._check()
        self._files = Files(fields.name, path.parent)
        self._prompt, self._answer, self._id = (
            _Template(path, name, getattr(fields, name)) for name in ("prompt", "answer", "id")
        )
        self._groups = {name: _Template(path, f"groups.{name}", text) for name, text in fields.groups.items()}

    def _check(self) -> None:
        fields = self._fields

        def wrong(what: str) -> ConfigurationError:
            return ConfigurationError(f"{self._path}: {what}")

        if fields.scorer not in SCORERS:
            raise wrong(f"there is no scorer {fields.scorer!r}.{_nearest(fields.scorer, SCORERS)}")
        if not fields.answer and fields.scorer not in _JUDGED:
            raise wrong(f"scorer {fields.scorer} needs an answer.")
        if fields.grades[0] >= fields.grades[1] or fields.grades[0] < 0:
            raise wrong(f"grades must be two whole numbers, the lower first, not {list(fields.grades)}.")
        if not fields.rubric.strip():
            raise wrong("rubric is empty: it tells the judge what a good answer is.")
        if fields.scorer in ("choice", "label") and not fields.choices:
            raise wrong(f"scorer {fields.scorer} needs choices.")
        if fields.scorer == "label" and isinstance(fields.choices, str):
            raise wrong("scorer label needs a list of choices, the same for all rows.")
        if fields.scorer == "json" and fields.schema is None:
            raise wrong("scorer json needs a schema.")
        if fields.scorer == "translation" and (not fields.languages or fields.languages[-1] not in TOKENIZERS):
            raise wrong(
                f"scorer translation needs the target, one of {', '.join(TOKENIZERS)}, as the last of languages."
            )
        if fields.scorer == "transcription" and not fields.languages:
            raise wrong("scorer transcription needs the language of the answers as the last of languages.")
        if fields.shots and (not fields.examples or fields.chat):
            raise wrong("shots need a file of examples, and a prompt that is no chat.")
        if not fields.name or fields.name != fields.name.lower() or set(fields.name) & set(' /\\"'):
            raise wrong(f"name must be lower case without spaces, not {fields.name!r}.")
        if (fields.max_tokens is not None and fields.max_tokens < 1) or fields.shots < 0:
            raise wrong("max_tokens must be at least 1 and shots at least 0.")

    def task(self) -> Task:
        fields = self._fields
        judging = self._judging()
        scorer, metrics = self._scoring(judging)
        return Task(
            name=fields.name,
            title=fields.title or fields.name,
            kind=fields.kind,
            languages=tuple(fields.languages),
            datasets=(),
            items=self._items,
            scorer=scorer,
            metrics=metrics,
            shots=fields.shots,
            version=fields.version,
            note=fields.note or f"A task of a user: {self._path.name}.",
            judging=judging,
        )

    def _judging(self) -> Rubric | Pairwise | None:
        fields = self._fields
        if fields.scorer == "pairwise":
            return Pairwise(fields.rubric)
        return Rubric(fields.rubric, *fields.grades) if fields.scorer == "judge" else None

    def _scoring(self, judging: Judging | None) -> tuple[Scorer, tuple[Metric, ...]]:
        fields = self._fields
        if judging is not None:
            metrics = PAIR_METRICS if isinstance(judging, Pairwise) else GRADE_METRICS
            return partial(judging.score, verdicts=()), metrics
        if fields.scorer == "choice":
            # Choices that differ from row to row have no chance level that could be told here.
            count = len(fields.choices) if isinstance(fields.choices, list) else 0
            return choice(classes=count), choice_metrics(chance=1 / count if count else None, classes=count)
        if fields.scorer == "label":
            return label(fields.choices), label_metrics(len(fields.choices), chance=1 / len(fields.choices))
        if fields.scorer == "translation":
            return translation(fields.languages[-1]), TRANSLATION_METRICS
        if fields.scorer == "transcription":
            return transcription(fields.languages[-1]), transcription_metrics(fields.languages[-1])
        others: dict[str, tuple[Scorer, tuple[Metric, ...]]] = {
            "exact": (reading(), READING_METRICS[::-1]),
            "f1": (reading(), READING_METRICS),
            "number": (number(), (mean("exact_match"),)),
            "summary": (summary(), ROUGE_METRICS),
            "json": (json_answer(), JSON_METRICS),
        }
        return others[fields.scorer]

    def _items(self, files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
        fields = self._fields
        style = Style(fields.description, fields.delimiter)
        pool = list(self._questions(fields.examples)) if fields.examples else []
        questions = list(self._questions(fields.data))
        examples = examples_of(fields.name, pool, shots, questions)
        for question in questions:
            text = prompt(question, examples, style)
            yield Item(
                id=question.id,
                prompt=(Message("user", text),) if fields.chat else text,
                ask=self._ask(question),
                target=question.target,
                groups=question.groups,
            )

    def _ask(self, question: Question) -> Choose | Generate:
        fields = self._fields
        if fields.scorer != "choice":
            length, stop = (512, ()) if fields.scorer in _JUDGED else (64, ("\n",))
            return Generate(
                max_tokens=length if fields.max_tokens is None else fields.max_tokens,
                stop=stop if fields.stop is None else tuple(fields.stop),
            )
        same = isinstance(fields.choices, list)
        return Choose(
            continuations=tuple(fields.delimiter + text for text in question.choices),
            labels=question.choices if same else LETTERS[: len(question.choices)],
        )

    def _questions(self, file: str) -> Iterator[Question]:
        rows = self._files.read(file)
        for index, row in enumerate(rows):
            where = f"{self._path.parent / file}, row {index + 1}"
            answer = self._answer.fill(row, where)
            choices = self._choices(row, where)
            yield Question(
                id=self._id.fill(row, where) or str(index),
                text=self._prompt.fill(row, where),
                answer=answer,
                choices=choices,
                target=self._target(answer, choices, where),
                groups={name: template.fill(row, where) for name, template in self._groups.items()},
            )

    def _choices(self, row: Mapping[str, Any], where: str) -> tuple[str, ...]:
        wanted = self._fields.choices
        if isinstance(wanted, list):
            return tuple(wanted)
        found = _value(row, wanted, where, "choices")
        if not isinstance(found, list) or not 2 <= len(found) <= len(LETTERS):
            raise DataError(f"{where}: {wanted} must be a list of 2 to {len(LETTERS)} choices, not {found!r}.")
        return tuple(map(_as_text, found))

    def _target(self, answer: str, choices: Sequence[str], where: str) -> Any:
        scorer = self._fields.scorer
        if scorer in ("choice", "label"):
            if answer not in choices:
                raise DataError(f"{where}: the answer {answer!r} is none of the choices {', '.join(choices)}.")
            return choices.index(answer)
        if scorer == "json":
            try:
                return {"schema": self._fields.schema, "value": json.loads(answer)}
            except ValueError as error:
                raise DataError(f"{where}: the answer is not JSON: {error}.") from error
        return [answer] if scorer in ("exact", "f1") else answer
