"""`deepseek bench recall`: questions about long texts, with dense and with sparse attention, in one run."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import msgspec

from deepseek.benchmark.recall import aggregation, retrieval
from deepseek.benchmark.recall.documents import Document, Frame, Question
from deepseek.benchmark.recall.figures import MODES, compare
from deepseek.benchmark.recall.passages import find_data, read_passages, why_no_passages
from deepseek.benchmark.recall.perplexity import measure_perplexity
from deepseek.benchmark.recall.scoring import score
from deepseek.benchmark.recall.words import LANGUAGES
from deepseek.config import EngineConfig
from deepseek.errors import ConfigurationError
from deepseek.llm import LLM
from deepseek.machine import describe_machine
from deepseek.sampling import SamplingParams

Say = Callable[[str], None]
TASKS = retrieval.TASKS + aggregation.TASKS
ATTENTION: dict[str, dict[str, Any]] = {
    "dense": {"attention": "dense"},
    "sparse": {"attention": "sparse"},
    "sparse_question": {"attention": "sparse", "question_tokens": 0},
}
"""What each of :data:`deepseek.benchmark.recall.figures.MODES` asks of the engine."""
_RUNNING = 4
_PROBES = (256, 2048)


@dataclass(frozen=True)
class Work:
    """What a run asks.

    Attributes:
        lengths: tokens of context, of the longest prompt of a text and its answer.
        tasks: kinds, all for none.
        languages: ``en``, ``zh``.
        limit: questions of each kind and text.
        texts: for each length, language and group of kinds.
        perplexity: tokens of real text of each language whose perplexity is measured; 0 for none.
        seed: another one makes other texts.
    """

    lengths: tuple[int, ...]
    tasks: tuple[str, ...] = TASKS
    languages: tuple[str, ...] = LANGUAGES
    limit: int = 4
    texts: int = 1
    perplexity: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, values, known in (("task", self.tasks, TASKS), ("language", self.languages, LANGUAGES)):
            for value in values:
                if value not in known:
                    raise ConfigurationError(f"unknown {name} {value!r}. There are: {', '.join(known)}.")
        if not self.lengths and not self.perplexity:
            raise ConfigurationError("nothing to measure: give lengths, or tokens for the perplexity.")
        for name, numbers in (("lengths", self.lengths), ("limit", (self.limit,)), ("texts", (self.texts,))):
            if any(number < 1 for number in numbers):
                raise ConfigurationError(f"{name} must be at least 1.")

    @property
    def context(self) -> int:
        """Tokens that the engine must take; scored text follows a begin token."""
        return max(*self.lengths, self.perplexity + 1, 1)


def measure_recall(
    config: EngineConfig,
    work: Work,
    say: Say,
    *,
    data: Path | None = None,
    keep: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Ask every question three times: everything dense; the text sparse but the question dense; all sparse.

    Answers are greedy. The prefix cache holds a text's keys and values once per way of attending: dense and sparse
    requests share only what is computed alike in both, so that the figures are those of separate runs. Up to 1024
    tokens of context everything is dense.

    Args:
        config: the engine's; its ``max_context``, ``max_running`` and ``speculation`` are set here.
        work: what to ask.
        data: a folder of real text (see :mod:`deepseek.benchmark.recall.passages`); without one texts are made up and
            the task "passage" is skipped.
        keep: called with the result so far after each text.

    Returns:
        ``tasks`` (a row for each length and kind), ``languages`` (for each length and language) and ``totals`` (for
        each length), with the figures of :func:`deepseek.benchmark.recall.figures.compare`; ``worst``: for each length
        the least ratio of a kind that the model can do; ``perplexity``; ``items`` with every answer; ``skipped``,
        ``seconds``, ``machine`` and ``settings``. Ready for JSON.

    Raises:
        ConfigurationError, BenchmarkError: a choice that does not exist, a length too short for its questions.
        HubError, CheckpointError, InvalidRequestError: the model cannot be loaded or cannot take the length.
    """
    folder = find_data(data)
    fields = {"max_context": work.context, "max_running": _RUNNING, "speculation": "off", "draft_model": None}
    llm = LLM(**{**msgspec.to_builtins(config), **fields})
    documents, skipped = make_documents(work, Frame.of(llm.tokenizer), folder)
    say(_estimate(llm, work, documents))
    seconds: dict[str, float] = dict.fromkeys(MODES, 0.0)
    items: list[dict[str, Any]] = []
    result: dict[str, Any] = {
        **summarize(items),
        "perplexity": [],
        "skipped": skipped,
        "seconds": seconds,
        "items": items,
        "machine": describe_machine(),
        "settings": {
            "model": llm.info.model,
            "dtype": llm.info.dtype,
            "sparse": llm.info.sparse,
            "config": msgspec.to_builtins(llm.config),
            "work": msgspec.to_builtins(work),
            "real_text": folder is not None,
        },
    }
    for document in documents:
        items += _ask(llm, document, seconds, say)
        result |= summarize(items)
        keep(result)
    if work.perplexity:
        result["perplexity"] = measure_perplexity(llm, work.languages, work.perplexity, folder, say)
    return result


def make_documents(work: Work, frame: Frame, folder: Path | None) -> tuple[list[Document], list[str]]:
    """All texts of a run, the shortest first, and what is left out, with the reason."""
    documents: list[Document] = []
    skipped: dict[str, None] = {}
    passages = {language: read_passages(folder, language) for language in work.languages}
    found, counted = ([task for task in group.TASKS if task in work.tasks] for group in (retrieval, aggregation))
    for length in sorted(work.lengths):
        for language in work.languages:
            own = found
            if "passage" in found and not passages[language]:
                skipped[f"passage, {language}: {why_no_passages(folder, language)}"] = None
                own = [task for task in found if task != "passage"]
            for index in range(work.texts):
                seed = f"{work.seed}/{index}"
                name = f"{language}-{length}-{index}"
                if own:
                    documents.append(
                        retrieval.retrieval_document(
                            f"retrieval-{name}",
                            language,
                            length,
                            seed,
                            frame,
                            tasks=own,
                            limit=work.limit,
                            passages=passages[language],
                        )
                    )
                if counted:
                    documents.append(
                        aggregation.aggregation_document(
                            f"aggregation-{name}", language, length, seed, frame, tasks=counted, limit=work.limit
                        )
                    )
    return documents, list(skipped)


def summarize(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The tables of :func:`measure_recall`."""

    def rows(*names: str) -> list[dict[str, Any]]:
        keys = dict.fromkeys(tuple(item[name] for name in names) for item in items)
        return [
            {
                **dict(zip(names, key, strict=True)),
                **compare([item for item in items if tuple(item[name] for name in names) == key]),
            }
            for key in keys
        ]

    tasks = rows("length", "task")
    worst = {
        length: min((row for row in tasks if row["length"] == length and row["informative"]), key=_ratio, default=None)
        for length in dict.fromkeys(item["length"] for item in items)
    }
    return {
        "tasks": tasks,
        "languages": rows("length", "language"),
        "totals": rows("length"),
        "worst": [
            {"length": length, "task": row["task"], "ratio": row["ratio"]} for length, row in worst.items() if row
        ],
    }


def _ratio(row: dict[str, Any]) -> float:
    """Of a task whose dense score is above chance, so that there is one."""
    return float(row["ratio"])


def _ask(llm: LLM, document: Document, seconds: dict[str, float], say: Say) -> list[dict[str, Any]]:
    """All questions about one text in all modes."""
    frame = Frame.of(llm.tokenizer)
    prompts = [frame.prompt(document, question) for question in document.questions]
    # With a seed, cached pages are shared only where they are equal to the bit, see engine/request.py.
    params = [SamplingParams(temperature=0.0, seed=0, max_tokens=one.max_tokens) for one in document.questions]
    answers: dict[str, list[str]] = {}
    for mode in MODES:
        start = time.perf_counter()
        answers[mode] = [one.text for one in llm.generate(prompts, params, **ATTENTION[mode])]
        seconds[mode] += (spent := time.perf_counter() - start)
        say(f"{document.name}, {mode}: {len(prompts)} questions in {spent:.0f} s")
    return [
        _item(document, question, {mode: answers[mode][index] for mode in MODES})
        for index, question in enumerate(document.questions)
    ]


def _item(document: Document, question: Question, answers: dict[str, str]) -> dict[str, Any]:
    return {
        "text": document.name,
        "length": document.length,
        "language": document.language,
        "task": question.task,
        "chance": question.chance,
        **{mode: score(question, answer) for mode, answer in answers.items()},
        "right": list(question.answers),
        "answers": answers,
    }


def _estimate(llm: LLM, work: Work, documents: Sequence[Document]) -> str:
    """How long it will take at most: sparse counted as dense, from the time of two short prompts, whose attention
    grows with the square of their length."""
    random = Random(0)
    short, long = (min(probe, work.context - 1) // part for probe, part in zip(_PROBES, (2, 1), strict=True))
    times = []
    for tokens in (short, long):
        prompt = [random.randrange(llm.info.vocab_size) for _ in range(tokens)]
        start = time.perf_counter()
        llm.generate([prompt], SamplingParams(temperature=0.0, max_tokens=1), attention="dense")
        times.append(time.perf_counter() - start)
    each = times[0] / short
    square = max(0.0, times[1] - each * long) / long**2

    def prefill(tokens: int) -> float:
        return each * tokens + square * tokens**2

    # Two texts' prefills: the sparse one serves both ways of asking. Behind it a question and its answer, whose tokens
    # one by one cost about as much as eight of a prompt.
    total = 2.0 * sum(prefill(document.length) for document in documents)
    rows = sum(256 + 8 * question.max_tokens for document in documents for question in document.questions)
    total += len(MODES) * rows * each + 2 * len(work.languages) * prefill(work.perplexity)
    questions = sum(len(document.questions) for document in documents)
    return (
        f"{len(documents)} texts, {questions} questions, each asked {len(MODES)} times: at most about "
        f"{total / 60:.0f} minutes on this machine"
    )
