"""A model that judges the answers of others: who it may be, what it was asked, what it said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deepseek.errors import ConfigurationError, EvaluationError
from deepseek.hub.progress import Progress
from deepseek.hub.resolve import resolve
from deepseek_eval.progress import Watcher
from deepseek_eval.results import Appender, OutputLine, item_digest, load_model, read_lines
from deepseek_eval.scorers.judge import Pairwise
from deepseek_eval.task import Item, Judging, Model, ModelCard, Output, Task


class VerdictLine(msgspec.Struct, frozen=True):
    """A line of a file of verdicts: what the judge was asked, what it answered, and what that cost.

    Attributes:
        id: of the judged item, and the number of the question about it.
        question: with all that the judge read.
        output: with its words, tokens and cost.
        digest: of the question.
    """

    id: str
    question: Item
    output: Output
    digest: str


@dataclass(frozen=True)
class Identity:
    """By what a model is known again. Attributes: name: without an owner, lower case. weights: SHA-256, "" if nobody
    can tell."""

    name: str
    weights: str

    @classmethod
    def of(cls, model: str | ModelCard, *, offline: bool = False, progress: Progress | None = None) -> Identity:
        """Of a model for our engine, which is not loaded for it, or of one that is there."""
        if isinstance(model, ModelCard):
            return cls(_short(model.name), str(model.details.get("weights_sha256", "")))
        from deepseek_eval.models.engine import weights_digest

        files = resolve(model, offline=offline, progress=progress)
        return cls(_short(files.name), weights_digest(files.path))

    def refuse(self, card: ModelCard) -> None:
        """Raises ConfigurationError if the judge is the model of ``card``: it prefers its own answers."""
        other = Identity.of(card)
        same = (
            "name" if self.name == other.name else "weights" if self.weights and self.weights == other.weights else ""
        )
        if same:
            raise ConfigurationError(
                f"the judge has the {same} of {card.name}, and models prefer their own answers. Choose another judge, "
                "or insist with --judge-itself (judge_itself=True)."
            )


def _short(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


@dataclass(frozen=True)
class Opponent:
    """A model whose answers are those that others are compared with.

    Attributes:
        card: of the model, as its run has it.
        folder: of its outputs.
    """

    card: ModelCard
    folder: Path

    @classmethod
    def of(cls, run: str | Path) -> Opponent:
        """The one model of a run, or that of ``FOLDER#MODEL``. Raises DataError and ConfigurationError."""
        _, folder, model = load_model(run)
        card = ModelCard(model.name, model.kind, model.evidence, model.details, model.likelihoods)
        return cls(card, folder / "models" / model.folder / "outputs")

    def given(self, task: str, items: Sequence[Item], seed: int) -> list[Item]:
        """The items that it answered, its answers for their targets. Raises ConfigurationError if there is none."""
        outputs = {
            (line.id, line.digest): line.output.samples[0].text
            for line in read_lines(self.folder / f"{task}.jsonl", OutputLine)
            if line.output.samples
        }
        keys = {item.id: (item.id, item_digest(item, seed)) for item in items}
        found = [
            msgspec.structs.replace(item, target=outputs[keys[item.id]]) for item in items if keys[item.id] in outputs
        ]
        if not found:
            raise ConfigurationError(f"{self.card.name} has answered no question of {task} as it is asked here.")
        return found


def compared(task: Task, items: Sequence[Item], opponent: Opponent | None, seed: int) -> list[Item]:
    """The items that a task asks, with the answers that it compares with. Raises ConfigurationError if there are
    none."""
    if not isinstance(task.judging, Pairwise):
        return list(items)
    if opponent is not None:
        return opponent.given(task.name, items, seed)
    if not all(isinstance(item.target, str) and item.target for item in items):
        raise ConfigurationError(
            f"{task.name} compares answers with others: give its rows one (answer), or name a run with --against."
        )
    return list(items)


@dataclass(frozen=True)
class Verdicts:
    """Attributes: of_item: id of an item -> the judge's answers about it. cost: in US dollars; None without prices.
    stopped: why not all were asked for; "" if they were."""

    of_item: Mapping[str, Sequence[Output]]
    cost: float | None
    stopped: str


def ask_judge(
    judge: Model,
    task: Task,
    judging: Judging,
    items: Sequence[Item],
    outputs: Mapping[str, Output],
    path: Path,
    watcher: Watcher,
) -> Verdicts:
    """The judge's answers about all outputs; those that ``path`` has to the very same questions are not asked again."""
    questions = {
        item.id: judging.questions(item, outputs[item.id])
        for item in items
        if item.id in outputs and not outputs[item.id].error
    }
    every = [question for own in questions.values() for question in own]
    digests = {question.id: item_digest(question, 0) for question in every}
    said = {
        line.id: line.output
        for line in read_lines(path, VerdictLine)
        if digests.get(line.id) == line.digest and not line.output.error
    }
    waiting = [question for question in every if question.id not in said]
    watcher.start(f"judge {judge.card.name}", task.name, len(every), len(every) - len(waiting))
    stopped = ""
    if waiting:
        with closing(Appender(path)) as file:
            try:
                for position, output in judge.answer(task, waiting):
                    question = waiting[position]
                    said[question.id] = output
                    file.add(VerdictLine(question.id, question, output, digests[question.id]))
                    watcher.advance()
            except EvaluationError as error:
                stopped = f"the judge: {error}"
                watcher.note(stopped)
    missing = Output(error=stopped or "it was not asked")
    of_item = {name: [said.get(question.id, missing) for question in own] for name, own in questions.items()}
    costs = [output.cost for output in said.values() if output.cost is not None]
    return Verdicts(of_item, sum(costs) if costs else None, stopped)
