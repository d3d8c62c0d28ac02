"""What a task is: a dataset, a prompt, a scorer. Contracts only, without behaviour.

A task turns rows of a dataset into items; a model turns an item into an output; a scorer turns an item and its output
into a score; a metric turns the scores of all items into a number with an interval.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Message(msgspec.Struct, frozen=True):
    """One turn of a chat prompt. ``role`` is system, user or assistant."""

    role: str
    content: str


Prompt = str | tuple[Message, ...]
"""Plain text to be continued, or a chat that the model's own template renders."""


class Generate(msgspec.Struct, frozen=True, kw_only=True, tag="generate"):
    """Ask for text.

    Attributes:
        max_tokens: at most as many tokens.
        stop: strings that end the answer, not part of it.
        samples: answers to the same prompt (pass@k); more than one needs a temperature.
        temperature: 0 is greedy.
        json_schema: the answer is constrained to it where the model can do so; the scorer checks it anyhow.
        tools: in OpenAI's form; answers may then hold calls.
    """

    max_tokens: int = 64
    stop: tuple[str, ...] = ()
    samples: int = 1
    temperature: float = 0.0
    json_schema: dict[str, Any] | None = None
    tools: tuple[dict[str, Any], ...] = ()


class Choose(msgspec.Struct, frozen=True, kw_only=True, tag="choose"):
    """Ask for the likelihood of each of ``continuations`` after the prompt.

    Attributes:
        continuations: texts that follow the prompt to the letter, a leading space included.
        labels: what a model without log-probabilities is asked to answer with instead (A, B, ...); () where an item
            cannot be asked in words.
    """

    continuations: tuple[str, ...]
    labels: tuple[str, ...] = ()


class Measure(msgspec.Struct, frozen=True, kw_only=True, tag="measure"):
    """Ask for the likelihood of the prompt itself: perplexity, or one sentence of a pair."""


Ask = Generate | Choose | Measure


class Item(msgspec.Struct, frozen=True, kw_only=True):
    """One question.

    Attributes:
        id: the same for the same row, whatever the limit, the order and the seed.
        prompt: what the model reads.
        ask: what it is asked for.
        target: what the scorer compares with; plain JSON values.
        groups: by what a report divides the scores (``{"language": "ja", "category": "Age"}``).
        cluster: items that share a passage, a template or a pair say so with the same word: they are not independent,
            so intervals resample them together and a limit takes them together. "" is an item of its own.
    """

    id: str
    prompt: Prompt
    ask: Ask
    target: Any = None
    groups: dict[str, str] = {}
    cluster: str = ""


class ToolCall(msgspec.Struct, frozen=True):
    """A call that a model asked for. ``arguments`` is its JSON text, as the model wrote it."""

    name: str
    arguments: str


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One generated answer."""

    text: str
    finish_reason: str = "stop"
    tool_calls: tuple[ToolCall, ...] = ()


class Likelihood(msgspec.Struct, frozen=True, kw_only=True):
    """Of one continuation.

    Attributes:
        logprob: natural logarithm of its probability, the sum over its tokens.
        tokens: how many those are.
        greedy: each of them was the most likely.
    """

    logprob: float
    tokens: int
    greedy: bool = False


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """What a model gave for an item. Exactly one of samples, likelihoods and error is there.

    Attributes:
        samples: of :class:`Generate`, one for each asked for; of :class:`Choose` too, where the model has no
            log-probabilities and answered with a label.
        likelihoods: of :class:`Choose`, one for each continuation; of :class:`Measure`, one.
        error: why there is no answer. An item without one is unanswered: neither right nor wrong, and shown as such.
        prompt_tokens, completion_tokens: as the model counts them; 0 if it does not say.
        seconds: from asking to the answer; of a model that works at many items at once, those others' time too.
        cost: in US dollars; None if no price is known.
    """

    samples: tuple[Sample, ...] = ()
    likelihoods: tuple[Likelihood, ...] = ()
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost: float | None = None


class Score(msgspec.Struct, frozen=True, kw_only=True):
    """What an output is worth.

    Attributes:
        statistics: name of a metric -> what this item adds to that metric's sums (:class:`Metric`). An item that a
            metric does not apply to leaves it out.
        answer: what was read from the output, for people.
        explanation: why it is right or wrong, for people.
        refused: the model declined to answer.
        expected: what would be right, for people; "" where nothing is.
    """

    statistics: dict[str, tuple[float, ...]]
    answer: str = ""
    explanation: str = ""
    refused: bool = False
    expected: str = ""


Scorer = Callable[[Item, Output], Score]
"""Never called with an output that has an error. Pure, and the same in any order of items."""


class Judging(Protocol):
    """How another model's opinion becomes a score. Pure, as a :data:`Scorer` is."""

    def questions(self, item: Item, output: Output) -> tuple[Item, ...]:
        """What the judge is asked about an answer. Their ids are of them alone, and the same every time."""
        ...

    def score(self, item: Item, output: Output, verdicts: Sequence[Output]) -> Score:
        """What the judge's answers mean, in the order of the questions; none at all before it was asked. Where they are
        errors or cannot be read, the score has no statistics: the item is unscored, and the explanation says why."""
        ...


@dataclass(frozen=True)
class Metric:
    """A number over all items that is a function of sums of what each item adds.

    Accuracy, F1 (micro and macro), BLEU, chrF, ROUGE, correlation, calibration error, perplexity are all of this
    kind. So is their bootstrap: resampled items are resampled rows of the statistics, and no scorer runs twice.

    Attributes:
        name: as in Score.statistics.
        of_sums: sums of the statistics, shape (..., statistics), -> values, shape (...). NaN where undefined.
        unit: ``share`` (0 to 1, shown in percent), ``points`` (0 to 100) or ``number``.
        higher_is_better: None for measures that are neither, as a bias score.
        chance: what a model without knowledge gets; None if there is no such thing.
    """

    name: str
    of_sums: Callable[[Floats], Floats]
    unit: str = "share"
    higher_is_better: bool | None = True
    chance: float | None = None


UNIT_SCALES = {"share": 1.0, "points": 100.0}
"""What is full marks in units that have such a thing: figures divided by it can be averaged over tasks."""


class Rows(Protocol):
    """The files of one dataset, found on this machine."""

    name: str

    def read(self, path: str) -> Iterable[dict[str, Any]]:
        """Rows of a file of the dataset: JSONL, JSON, CSV, TSV (by its ending, a ``.gz`` apart). Raises DataError."""
        ...

    def text(self, path: str) -> str:
        """A whole file, UTF-8."""
        ...

    def json(self, path: str) -> Any:
        """A JSON file as one value. Raises DataError."""
        ...


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: ``gsm8k``, ``xquad_zh``: lower case, unique.
        title: what it measures, a few words.
        kind: ``classification``, ``nli``, ``reading``, ``knowledge``, ``commonsense``, ``mathematics``, ``code``,
            ``reasoning``, ``translation``, ``summarization``, ``extraction``, ``dialogue``, ``instructions``,
            ``tools``, ``long-context``, ``safety``, ``bias``, ``perplexity``.
        languages: ISO 639-1 codes.
        datasets: names of the datasets it reads.
        items: (files of each of ``datasets``, shots) -> items, in the dataset's order. ``shots`` examples come before
            each question; they are of another split than the items, and the same for every model.
        scorer: output -> score.
        metrics: the first is the task's main one.
        shots: examples before each question, unless a run says otherwise.
        suites: which suites it is part of.
        version: raised when prompts or scoring change: scores of different versions are not compared.
        note: what a reader of the score must know (few shots of what, which part of the dataset).
        judging: by which another model decides; then ``scorer`` is its score without verdicts.
    """

    name: str
    title: str
    kind: str
    languages: tuple[str, ...]
    datasets: tuple[str, ...]
    items: Callable[[Mapping[str, Rows], int], Iterable[Item]]
    scorer: Scorer
    metrics: tuple[Metric, ...]
    shots: int = 0
    suites: tuple[str, ...] = ()
    version: int = 1
    note: str = ""
    judging: Judging | None = None


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model under test: recorded with every result.

    Attributes:
        name: as the report shows it.
        kind: ``engine``, ``endpoint`` or ``stored``.
        evidence: ``re-run``, ``re-scored`` (stored outputs) or ``published`` (a figure only). These never mix.
        details: checkpoint and its digest, precision, template digest, versions, address: whatever identifies it.
        likelihoods: it gives log-probabilities of given continuations.
    """

    name: str
    kind: str
    evidence: str
    details: Mapping[str, Any] = field(default_factory=dict)
    likelihoods: bool = True


class Model(Protocol):
    """Something that answers items."""

    @property
    def card(self) -> ModelCard: ...

    def answer(self, task: Task, items: Sequence[Item]) -> Iterator[tuple[int, Output]]:
        """Outputs with the position of their item, each as soon as it is there, in any order. An item that cannot be
        answered gets an output with an error. EvaluationError means that no further item can be; what was given before
        it counts. Closing the iterator cancels what is left."""
        ...

    def close(self) -> None:
        """Let go of memory and connections."""
        ...
