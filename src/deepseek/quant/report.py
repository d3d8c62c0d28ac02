"""How much a quantized model differs from the model it was made of."""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepseek.errors import ConfigurationError, DiskSpaceError
from deepseek.models.base import Model
from deepseek.quant.windows import Encoder, forward, read_rows, shared_start

RESAMPLES = 2000
_ROWS = 64


@dataclass(frozen=True)
class Compared:
    """Per prediction, [predictions] each: KL divergence of the model from the reference in nats, whether both find the
    same token likeliest, and what each loses on the token that follows."""

    kl: Tensor
    agreed: Tensor
    loss: Tensor
    reference_loss: Tensor


@dataclass(frozen=True)
class TextFigures:
    """Over all tokens of one or more texts but those without anything before them.

    Attributes:
        tokens: predictions compared.
        kl_mean, kl_p99: KL divergence of the model from the reference per token, in nats.
        top1_agreement: share of tokens for which both find the same one likeliest.
        perplexity, reference_perplexity, perplexity_ratio: of the text itself.
        top1_interval, perplexity_ratio_interval: 95%, by bootstrap over runs of 64 tokens.
    """

    tokens: int
    kl_mean: float
    kl_p99: float
    top1_agreement: float
    top1_interval: list[float]
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float
    perplexity_ratio_interval: list[float]


class ReferenceLogits:
    """fp32 logits of the reference model for some windows, in a temporary file: both models need not be in memory
    together, and a vocabulary times a text is too much for it. A context manager, which removes the file.

    Raises DiskSpaceError if the temporary folder has no room.
    """

    def __init__(self, windows: Sequence[Sequence[int]], vocab_size: int) -> None:
        self.windows = windows
        rows = sum(map(len, windows))
        self._folder = tempfile.TemporaryDirectory(prefix="deepseek-quality-")
        needed, free = rows * vocab_size * 4, shutil.disk_usage(self._folder.name).free
        if needed > free:
            self._folder.cleanup()
            raise DiskSpaceError(
                f"comparing {rows} tokens takes {needed / 2**30:.1f} GiB in {tempfile.gettempdir()}, which has "
                f"{free / 2**30:.1f}; take fewer tokens, or set TMPDIR to a folder with more room."
            )
        path = Path(self._folder.name) / "logits"
        self._rows = torch.from_file(str(path), shared=True, size=rows * vocab_size, dtype=torch.float32)
        self._rows = self._rows.view(rows, vocab_size)

    def __enter__(self) -> ReferenceLogits:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows = torch.empty(0)
        self._folder.cleanup()

    def record(self, model: Model) -> None:
        """Run the reference."""
        start = 0
        for window in self.windows:
            self._rows[start : start + len(window)] = forward(model, [window])
            start += len(window)

    def compare(self, model: Model) -> Compared:
        """Run the model and compare. Raises ConfigurationError for another vocabulary."""
        if model.vocab_size != self._rows.shape[1]:
            raise ConfigurationError(
                f"the models have vocabularies of {model.vocab_size} and {self._rows.shape[1]} tokens: they cannot be "
                "compared token by token."
            )
        parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        start = 0
        for window in self.windows:
            logits = forward(model, [window])
            truth = self._rows[start : start + len(window)]
            start += len(window)
            following = torch.tensor(window[1:])
            for first in range(0, len(window) - 1, _ROWS):
                rows = slice(first, min(first + _ROWS, len(window) - 1))
                ours, theirs = logits[rows].log_softmax(-1), truth[rows].log_softmax(-1)
                targets = following[rows, None]
                parts.append(
                    (
                        (theirs.exp() * (theirs - ours)).sum(-1),
                        ours.argmax(-1) == theirs.argmax(-1),
                        -ours.gather(1, targets)[:, 0],
                        -theirs.gather(1, targets)[:, 0],
                    )
                )
        return Compared(*map(torch.cat, zip(*parts, strict=True)))


def text_figures(compared: Sequence[Compared]) -> TextFigures:
    """The figures of one text, or of several together."""
    kl = torch.cat([one.kl for one in compared])
    names = ("agreed", "loss", "reference_loss")
    agreed, loss, reference_loss = (torch.cat([getattr(one, name) for one in compared]).double() for name in names)
    runs = -(-len(kl) // _ROWS)
    sums = [
        np.array([float(part.sum()) for part in torch.split(values, _ROWS)])
        for values in (agreed, loss - reference_loss, torch.ones_like(loss))
    ]
    picks = np.random.default_rng(0).integers(0, runs, (RESAMPLES, runs))
    same, lost, counted = (values[picks].sum(axis=-1) for values in sums)
    low, high = _interval(lost / counted)
    return TextFigures(
        tokens=len(kl),
        kl_mean=float(kl.mean()),
        kl_p99=float(kl.quantile(0.99)) if kl.numel() < 1 << 24 else float(kl.topk(kl.numel() // 100).values[-1]),
        top1_agreement=float(agreed.mean()),
        top1_interval=_interval(same / counted),
        perplexity=math.exp(float(loss.mean())),
        reference_perplexity=math.exp(float(reference_loss.mean())),
        perplexity_ratio=math.exp(float((loss - reference_loss).mean())),
        perplexity_ratio_interval=[math.exp(low), math.exp(high)],
    )


@dataclass(frozen=True)
class Question:
    """``choices`` continue ``question`` as they stand, spaces included; ``answer`` is the index of the right one."""

    question: str
    choices: tuple[str, ...]
    answer: int


def read_questions(path: Path) -> list[Question]:
    """A JSONL file of objects with ``question``, ``choices`` and ``answer``. Raises ConfigurationError naming what is
    at fault."""
    questions = []
    for number, row in enumerate(read_rows(path), 1):
        question, choices, answer = row.get("question"), row.get("choices"), row.get("answer")
        if (
            not isinstance(question, str)
            or not isinstance(choices, list)
            or len(choices) < 2
            or not all(isinstance(choice, str) and choice.strip() for choice in choices)
            or type(answer) is not int
            or not 0 <= answer < len(choices)
        ):
            raise ConfigurationError(
                f'{path}, object {number}: "question" must be a string, "choices" two or more strings, and "answer" '
                "the index of one of them."
            )
        questions.append(Question(question, tuple(choices), answer))
    if not questions:
        raise ConfigurationError(f"{path} holds no questions.")
    return questions


def answer_questions(model: Model, tokenizer: Encoder, questions: Sequence[Question]) -> list[bool]:
    """Per question, whether the right choice has the highest log-likelihood per UTF-8 byte."""
    return [_answer(model, tokenizer, question) == question.answer for question in questions]


def _answer(model: Model, tokenizer: Encoder, question: Question) -> int:
    prompt = tokenizer.encode(question.question)
    sequences = [tokenizer.encode(question.question + choice) for choice in question.choices]
    common = min(_common(prompt, ids) for ids in sequences)
    skipped = shared_start(common - 1)  # the token before the choice is computed for each
    rows: list[int] = []
    targets: list[int] = []
    counts: list[int] = []
    computed = 0
    for index, ids in enumerate(sequences):
        start = computed - (skipped if index else 0)  # where its first token would be
        begin = _common(prompt, ids)
        rows += range(start + begin - 1, start + len(ids) - 1)
        targets += ids[begin:]
        counts.append(len(ids) - begin)
        computed = start + len(ids)
    logits = forward(model, sequences, torch.tensor(rows), shared=common - 1)
    scores = logits.log_softmax(-1).gather(1, torch.tensor(targets)[:, None])
    sums = [float(part.sum()) for part in torch.split(scores, counts)]
    means = [total / len(choice.encode()) for total, choice in zip(sums, question.choices, strict=True)]
    return max(range(len(means)), key=means.__getitem__)


def _common(prompt: Sequence[int], ids: Sequence[int]) -> int:
    """Tokens that ``ids`` begin with as the prompt does, but something stands before the choice, and it has a token of
    its own."""
    same = next((i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids)))
    return max(1, min(same, len(ids) - 1))


def accuracy_figures(right: Sequence[bool], reference: Sequence[bool]) -> dict[str, Any]:
    """Accuracies, their difference on the same questions, and 95% bootstrap intervals (percentile; Efron 1979)."""
    both = np.array([right, reference], dtype=np.float64)
    picks = np.random.default_rng(0).integers(0, both.shape[1], (RESAMPLES, both.shape[1]))
    means = both[:, picks].mean(axis=-1)
    difference = means[0] - means[1]
    accuracy, reference_accuracy = both.mean(axis=1).tolist()
    return {
        "questions": both.shape[1],
        "accuracy": accuracy,
        "accuracy_interval": _interval(means[0]),
        "reference_accuracy": reference_accuracy,
        "reference_interval": _interval(means[1]),
        "difference": accuracy - reference_accuracy,
        "difference_interval": _interval(difference),
        "retained": accuracy / reference_accuracy if reference_accuracy else None,
    }


def _interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> list[float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return [float(low), float(high)]


def weights_size(path: Path) -> int:
    """Bytes of a model's weights on disk: a GGUF file, or all safetensors files of a folder."""
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)
