"""Run tasks on models: resumable, and the same every time."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import msgspec

from deepseek.errors import ConfigurationError, DataError, EvaluationError, HubError
from deepseek.hub.cache import lock
from deepseek.hub.progress import Progress
from deepseek.machine import describe_machine
from deepseek_eval.datasets import data_folder, open_all
from deepseek_eval.judge import Identity, Opponent, ask_judge, compared
from deepseek_eval.progress import Silent, Watcher
from deepseek_eval.registry import select
from deepseek_eval.results import (
    FORMAT,
    Appender,
    JudgeInfo,
    MetricInfo,
    Missing,
    ModelResult,
    OutputLine,
    Results,
    TaskInfo,
    TaskResult,
    item_digest,
    read_lines,
    save,
    write_lines,
)
from deepseek_eval.select import items_of, subset
from deepseek_eval.summary import score_lines, summarize
from deepseek_eval.task import Item, Model, ModelCard, Output, Task

LIMITS = {"core": 48}
"""Suites that are slices: items of each task, unless a run says otherwise."""
_LONG_ANSWERS = {"gsm8k": 24, "humaneval": 16}
"""Tasks of which a slice has fewer items, because each takes as long as many of others."""
_PACKAGES = ("deepseek-platform", "torch", "numpy", "scipy", "sacrebleu", "rouge-score", "jiwer", "tokenizers")


@dataclass
class _Prepared:
    """A task with the items that are asked."""

    task: Task
    items: list[Item]
    digests: dict[str, str]
    info: TaskInfo


@dataclass
class _Run:
    """What all models of a run share."""

    folder: Path
    seed: int
    watcher: Watcher
    limit: int | None
    command: str
    started: str
    prepared: list[_Prepared] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    refused: Identity | None = None
    opponent: Opponent | None = None
    judge: JudgeInfo | None = None

    @property
    def judged(self) -> list[_Prepared]:
        return [one for one in self.prepared if one.task.judging is not None]


def evaluate(
    model: str | Model | Sequence[str | Model],
    *,
    suite: str | None = None,
    tasks: Iterable[str | Task] = (),
    output_dir: str | Path,
    limit: int | None = None,
    shots: int | None = None,
    seed: int = 0,
    judge: str | Model | None = None,
    judge_itself: bool = False,
    against: str | Path | None = None,
    data: Path | None = None,
    download: bool = False,
    command: str = "",
    watcher: Watcher | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Results:
    """Judge models on tasks and write ``results.json`` and the files beside it (:mod:`deepseek_eval.results`).

    Running it again with the same folder goes on where it ended: answers that are there to the very same question, from
    the very same model and settings, are not asked for again; scores and numbers are made anew.

    Args:
        model: one or several: names for our engine, or models of :mod:`deepseek_eval.models`, which are closed
            afterwards if they were made here.
        suite: of tasks; ``core`` if no tasks are named either.
        tasks: names of tasks, families and suites, or tasks themselves.
        output_dir: a folder; made if need be.
        limit: of each task at most so many items, chosen by ``seed``; None takes all, or a suite's own slice.
        shots: examples before each question, in place of the tasks' own numbers.
        seed: of samples, limit and resamples.
        judge: a model, named as ``model`` is, for tasks whose answers are judged by one.
        judge_itself: it may be a model under test, which prefers its own answers.
        against: a run, or ``FOLDER#MODEL``, of the same tasks: pairwise tasks compare with its answers.
        data: the folder of datasets; else ``$DEEPSEEK_EVAL_DATA``, else one in the cache.
        download: fetch datasets that are missing.
        command: that this run came from, for the record.
        watcher, progress: hear how far the run is, and of downloads.
        **settings: of our engine, as :class:`deepseek.config.EngineConfig` has them.

    Raises:
        ConfigurationError: unknown names, settings that cannot work, a judge that is missing, that no task asks for or
            that is a model under test.
        DataError: no task can be run: their data is missing.
        EvaluationError: the folder cannot be written.
        HubError, CheckpointError: a model cannot be had.
    """
    if limit is not None and limit < 1:
        raise ConfigurationError(f"limit must be at least 1, not {limit}.")
    models = _models(model)
    named = list(tasks)
    if suite is None and not named:
        suite = "core"
    chosen = _chosen([*([suite] if suite else []), *named])
    limits = {task.name: limit for task in chosen}
    if limit is None and suite in LIMITS and not named:
        limit = LIMITS[suite]
        limits = {task.name: _LONG_ANSWERS.get(task.name, limit) for task in chosen}
    _check_judge(judge, chosen)
    started = datetime.now(UTC).isoformat(timespec="seconds")
    run = _Run(Path(output_dir).expanduser(), seed, watcher or Silent(), limit, command, started)
    run.opponent = None if against is None else Opponent.of(against)
    with _only_one(run.folder, run.watcher):
        _prepare(run, chosen, shots, limits, data, download, progress)
        if judge is not None and not judge_itself:
            run.refused = _identity(judge, run.opponent, progress, offline=bool(settings.get("offline")))
        found: list[ModelResult] = []
        for one in models:
            with _opened(one, progress, {"seed": seed, **settings}) as opened:
                found.append(_with_model(run, opened, taken={m.folder for m in found}))
            save(_results(run, found), run.folder)
        if judge is not None and run.judged:
            with _opened(judge, progress, settings) as opened:
                found = _judged(run, opened, found, itself=judge_itself)
            save(_results(run, found), run.folder)
    return _results(run, found)


def _models(given: str | Model | Sequence[str | Model]) -> list[str | Model]:
    models = [given] if isinstance(given, str) or not isinstance(given, Sequence) else list(given)
    if not models:
        raise ConfigurationError("there is no model to evaluate: name at least one.")
    return models


def _chosen(wanted: Sequence[str | Task]) -> list[Task]:
    found: dict[str, Task] = {}
    for one in wanted:
        for task in [one] if isinstance(one, Task) else select([one]):
            if found.setdefault(task.name, task) is not task:
                raise ConfigurationError(f"two different tasks are called {task.name!r}.")
    return list(found.values())


def _check_judge(judge: str | Model | None, tasks: Sequence[Task]) -> None:
    wanted = [task.name for task in tasks if task.judging is not None]
    if wanted and judge is None:
        raise ConfigurationError(
            f"{', '.join(wanted)} needs a model that judges answers: name one with --judge (judge)."
        )
    if judge is not None and not wanted:
        raise ConfigurationError("there is a judge, and none of the tasks asks for one: leave it out.")


def _identity(judge: str | Model, opponent: Opponent | None, progress: Progress | None, *, offline: bool) -> Identity:
    """By which models under test are told from the judge. Raises ConfigurationError if the opponent is the judge."""
    found = Identity.of(judge if isinstance(judge, str) else judge.card, offline=offline, progress=progress)
    if opponent is not None:
        found.refuse(opponent.card)
    return found


def _only_one(folder: Path, watcher: Watcher) -> Any:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EvaluationError(f"the folder {folder} cannot be made: {error.strerror or error}.") from error
    return lock(folder / ".lock", lambda: watcher.note(f"Another run writes to {folder}; waiting for it."))


def _prepare(
    run: _Run,
    tasks: Sequence[Task],
    shots: int | None,
    limits: Mapping[str, int | None],
    data: Path | None,
    download: bool,
    progress: Progress | None,
) -> None:
    """The items of all tasks whose data is there. Raises DataError if there is none at all."""
    place = data_folder(data)
    for task in tasks:
        try:
            files = open_all(task.datasets, place, download=download, progress=progress)
        except (DataError, HubError) as error:
            run.missing.append(Missing(task=task.name, reason=str(error)))
            run.watcher.note(f"{task.name} is not run: {error}")
            continue
        count = task.shots if shots is None else shots
        every, hashes = items_of(task, files, count)
        items = compared(task, subset(every, limits[task.name], run.seed), run.opponent, run.seed)
        digests = {item.id: item_digest(item, run.seed) for item in items}
        write_lines(run.folder / "items" / f"{task.name}.jsonl", items)
        whole = hashlib.sha256("\n".join(f"{name} {digest}" for name, digest in digests.items()).encode()).hexdigest()
        info = TaskInfo(
            name=task.name,
            title=task.title,
            kind=task.kind,
            languages=task.languages,
            version=task.version,
            shots=count,
            note=task.note if run.opponent is None else f"{task.note} Against {run.opponent.card.name}.".strip(),
            metrics=tuple(map(MetricInfo.of, task.metrics)),
            items=len(items),
            items_in_all=len(every),
            data=hashes,
            items_sha256=whole,
        )
        run.prepared.append(_Prepared(task, items, digests, info))
    if not run.prepared:
        raise DataError("no task can be run. " + " ".join(one.reason for one in run.missing[:3]))


@contextmanager
def _opened(model: str | Model, progress: Progress | None, settings: dict[str, Any]) -> Iterator[Model]:
    """A model; one that is made here is closed afterwards."""
    if not isinstance(model, str):
        yield model
        return
    from deepseek_eval.models.engine import EngineModel

    with closing(EngineModel(model, progress=progress, **settings)) as engine:
        yield engine


def _folder_of(card: ModelCard) -> str:
    identity = hashlib.sha256(msgspec.json.encode([card.name, card.kind, card.details], order="deterministic"))
    return f"{_as_file_name(card.name)}-{identity.hexdigest()[:8]}"


def _with_model(run: _Run, model: Model, taken: set[str]) -> ModelResult:
    """All tasks with one model."""
    card = model.card
    folder = _folder_of(card)
    if run.refused is not None:
        run.refused.refuse(card)
    if folder in taken:
        raise ConfigurationError(f"the model {card.name} is there twice, with the same settings: name it once.")
    results: dict[str, TaskResult] = {}
    stopped = ""
    for one in run.prepared:
        if stopped:
            run.missing.append(Missing(task=one.task.name, model=card.name, reason=stopped))
            continue
        results[one.task.name] = result = _one_task(run, one, model, run.folder / "models" / folder)
        stopped = result.stopped
    return ModelResult(
        folder=folder,
        name=card.name,
        kind=card.kind,
        evidence=card.evidence,
        likelihoods=card.likelihoods,
        details=dict(card.details),
        tasks=results,
    )


def _one_task(run: _Run, prepared: _Prepared, model: Model, place: Path) -> TaskResult:
    """Ask what was not asked before, then score all."""
    task, items, digests = prepared.task, prepared.items, prepared.digests
    path = place / "outputs" / f"{task.name}.jsonl"
    outputs = {name: output for name, output in _outputs(path, digests).items() if not output.error}
    waiting = [item for item in items if item.id not in outputs]
    run.watcher.start(model.card.name, task.name, len(items), len(items) - len(waiting))
    kept, clock, stopped = len(outputs), time.monotonic(), ""
    if waiting:
        with closing(Appender(path)) as file:
            try:
                for position, output in model.answer(task, waiting):
                    item = waiting[position]
                    outputs[item.id] = output
                    file.add(OutputLine(task.name, item.id, output, digests[item.id]))
                    run.watcher.advance()
            except EvaluationError as error:
                stopped = str(error)
                run.watcher.note(f"{model.card.name}, {task.name}: {error}")
    seconds = time.monotonic() - clock
    result = _scored(run, prepared, outputs, place, stopped)
    return msgspec.structs.replace(result, asked_now=len(outputs) - kept, seconds=seconds)


def _outputs(path: Path, digests: Mapping[str, str]) -> dict[str, Output]:
    """The last that a file has to each of the very same questions."""
    return {line.id: line.output for line in read_lines(path, OutputLine) if digests.get(line.id) == line.digest}


def _scored(
    run: _Run,
    prepared: _Prepared,
    outputs: Mapping[str, Output],
    place: Path,
    stopped: str,
    verdicts: Mapping[str, Sequence[Output]] | None = None,
) -> TaskResult:
    task, items = prepared.task, prepared.items
    lines = score_lines(task, items, outputs, prepared.digests, verdicts)
    write_lines(place / "scores" / f"{task.name}.jsonl", lines)
    return summarize(task, items, lines, outputs, stopped=stopped, seed=run.seed)


def _judged(run: _Run, judge: Model, found: Sequence[ModelResult], *, itself: bool) -> list[ModelResult]:
    """The results with the judge's verdicts in those tasks that ask for them."""
    card = judge.card
    run.judge = JudgeInfo(
        folder=_folder_of(card), name=card.name, kind=card.kind, details=dict(card.details), itself=itself
    )
    judged = []
    for model in found:
        wanted = [one for one in run.judged if one.task.name in model.tasks]
        tasks = {one.task.name: _with_verdicts(run, one, judge, model) for one in wanted}
        judged.append(msgspec.structs.replace(model, tasks={**model.tasks, **tasks}))
    return judged


def _with_verdicts(run: _Run, prepared: _Prepared, judge: Model, model: ModelResult) -> TaskResult:
    task, before = prepared.task, model.tasks[prepared.task.name]
    assert task.judging is not None and run.judge is not None
    place = run.folder / "models" / model.folder
    outputs = _outputs(place / "outputs" / f"{task.name}.jsonl", prepared.digests)
    path = place / "verdicts" / run.judge.folder / f"{task.name}.jsonl"
    made = ask_judge(judge, task, task.judging, prepared.items, outputs, path, run.watcher)
    stopped = "; ".join(filter(None, (before.stopped, made.stopped)))
    result = _scored(run, prepared, outputs, place, stopped, made.of_item)
    return msgspec.structs.replace(
        result,
        asked_now=before.asked_now,
        seconds=before.seconds,
        judge=judge.card.name,
        judge_cost=made.cost,
    )


def _as_file_name(name: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "-" for char in name)[:80].strip(".-") or "model"


def _results(run: _Run, models: Sequence[ModelResult]) -> Results:
    return Results(
        format=FORMAT,
        started=run.started,
        seed=run.seed,
        limit=run.limit,
        versions={name: _version(name) for name in _PACKAGES},
        machine=dict(describe_machine()),
        tasks={one.task.name: one.info for one in run.prepared},
        models=tuple(models),
        missing=tuple(run.missing),
        command=run.command,
        judge=run.judge,
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
