"""What tasks have in common: questions to items, with examples before them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, TypeVar

from deepseek.errors import ConfigurationError
from deepseek_eval.scorers.choice import LETTERS, choice, choice_metrics
from deepseek_eval.task import Ask, Choose, Generate, Item, Metric, Rows, Scorer, Task

Row = TypeVar("Row")


@dataclass(frozen=True)
class Question:
    """A row as a task asks it.

    Attributes:
        id: as in :class:`deepseek_eval.task.Item`.
        text: what is asked, up to where the answer begins.
        answer: what an example shows behind it; not needed of a question that is never an example.
        choices: of multiple choice; the answer is one of them.
        target: for the scorer; None takes the place of the answer among the choices.
        groups, cluster: as in Item.
    """

    id: str
    text: str
    answer: str = ""
    choices: tuple[str, ...] = ()
    target: Any = None
    groups: dict[str, str] = field(default_factory=dict)
    cluster: str = ""


Read = Callable[[Mapping[str, Rows]], tuple[Iterable[Question], Sequence[Question]]]
"""Files of a task's datasets -> (questions to ask, questions that may be examples). None is in both."""


@dataclass(frozen=True)
class Style:
    """How questions and answers are joined.

    Attributes:
        description: what stands above everything.
        delimiter: between a question and its answer.
        between: after each example.
    """

    description: str = ""
    delimiter: str = " "
    between: str = "\n\n"


PLAIN = Style()
UNSPACED = Style(delimiter="")


def prompt(question: Question, examples: Sequence[Question], style: Style) -> str:
    """Description, examples with their answers, the question."""
    shown = "".join(f"{one.text}{style.delimiter}{one.answer}{style.between}" for one in examples)
    return f"{style.description}{shown}{question.text}"


def examples_of(
    name: str, pool: Sequence[Question], shots: int, questions: Sequence[Question] = ()
) -> Sequence[Question]:
    """The first ``shots`` of those that may be examples, without what is asked in the same words in ``questions``:
    datasets repeat rows. Raises ConfigurationError if there are fewer."""
    asked = {one.text for one in questions}
    pool = [one for one in pool if one.text not in asked]
    if not 0 <= shots <= len(pool):
        raise ConfigurationError(f"task {name} has {len(pool)} examples to show, so shots cannot be {shots}.")
    return pool[:shots]


Items = Callable[[Mapping[str, Rows], int], Iterator[Item]]
"""As :attr:`deepseek_eval.task.Task.items`."""


def _items(
    name: str, read: Read, style: Style, ask: Callable[[Question], Ask], target: Callable[[Question], Any]
) -> Items:
    def items(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
        asked, pool = read(files)
        questions = list(asked)
        examples = examples_of(name, pool, shots, questions)
        for question in questions:
            yield Item(
                id=question.id,
                prompt=prompt(question, examples, style),
                ask=ask(question),
                target=target(question) if question.target is None else question.target,
                groups=question.groups,
                cluster=question.cluster,
            )

    return items


def choice_items(name: str, read: Read, style: Style, *, labels: Sequence[str] = LETTERS) -> Items:
    """Items of multiple choice.

    Args:
        labels: what a model answers with that gives no likelihoods, in the order of the choices.
    """

    def ask(question: Question) -> Choose:
        continuations = tuple(style.delimiter + text for text in question.choices)
        return Choose(continuations=continuations, labels=tuple(labels[: len(continuations)]))

    return _items(name, read, style, ask, lambda question: question.choices.index(question.answer))


def generate_items(name: str, read: Read, ask: Generate, style: Style) -> Items:
    """Items that are answered with text; a question's target is its answer unless it has another."""
    return _items(name, read, style, lambda question: ask, lambda question: question.answer)


def choice_task(
    name: str,
    title: str,
    kind: str,
    languages: tuple[str, ...],
    datasets: tuple[str, ...],
    read: Read,
    *,
    choices: int,
    classes: Sequence[str] = (),
    style: Style = PLAIN,
    shots: int = 0,
    suites: tuple[str, ...] = (),
    note: str = "",
    scorer: Scorer | None = None,
    metrics: tuple[Metric, ...] = (),
) -> Task:
    """A task of multiple choice.

    Args:
        choices: how many there are, for the chance level.
        classes: where the choices are the same for all questions, their names: F1 is counted then, and a model without
            likelihoods answers with the name.
        scorer, metrics: other ones than :func:`deepseek_eval.scorers.choice.choice`.
    """
    return Task(
        name=name,
        title=title,
        kind=kind,
        languages=languages,
        datasets=datasets,
        items=choice_items(name, read, style, labels=tuple(classes) or LETTERS),
        scorer=scorer or choice(classes=len(classes)),
        metrics=metrics or choice_metrics(chance=1 / choices, classes=len(classes)),
        shots=shots,
        suites=suites,
        note=note,
    )


def generate_task(
    name: str,
    title: str,
    kind: str,
    languages: tuple[str, ...],
    datasets: tuple[str, ...],
    read: Read,
    ask: Generate,
    scorer: Scorer,
    metrics: tuple[Metric, ...],
    *,
    style: Style = PLAIN,
    shots: int = 0,
    suites: tuple[str, ...] = (),
    note: str = "",
) -> Task:
    """A task that is answered with text."""
    return Task(
        name=name,
        title=title,
        kind=kind,
        languages=languages,
        datasets=datasets,
        items=generate_items(name, read, ask, style),
        scorer=scorer,
        metrics=metrics,
        shots=shots,
        suites=suites,
        note=note,
    )


def split(rows: Iterable[Row], held_out: int) -> tuple[list[Row], list[Row]]:
    """(all but the last ``held_out``, those): examples for datasets that have one split only."""
    every = list(rows)
    return every[: len(every) - held_out], every[len(every) - held_out :]


def in_turn(questions: Iterable[Question]) -> list[Question]:
    """Reordered so that answers alternate, each answer's questions in their order: examples of all classes."""
    by_answer: dict[str, list[Question]] = {}
    for question in questions:
        by_answer.setdefault(question.answer, []).append(question)
    return [one for turn in zip_longest(*by_answer.values()) for one in turn if one is not None]


def split_in_turn(questions: Iterable[Question], held_out: int) -> tuple[list[Question], list[Question]]:
    """:func:`split` where examples should show all classes: of each class, the last ones are held out."""
    every = list(questions)
    examples = in_turn(reversed(every))[:held_out]
    taken = {one.id for one in examples}
    return [one for one in every if one.id not in taken], examples
