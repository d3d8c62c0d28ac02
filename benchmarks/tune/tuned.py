"""One run of :mod:`benchmarks.tune.quality`: a model is tuned, then judged where it is, in the same forward pass."""

from __future__ import annotations

import json
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.tune.data import data_folder, intents
from benchmarks.tune.full import FullTuner
from deepseek.tokenizer.load import load_tokenizer
from deepseek_tune import LoRATuner, PTuner
from deepseek_tune.data.cache import DataSettings, TokenCache, tokenized
from deepseek_tune.data.packing import IGNORED, Packer, pack
from deepseek_tune.forward import PackedModel

Pairs = list[tuple[str, str]]

TUNERS: dict[str, Any] = {
    "full": FullTuner,
    "lora": LoRATuner,
    "tiny": LoRATuner,
    "p-tuning": PTuner,
    "prefix": PTuner,
}
SETTINGS: dict[str, dict[str, Any]] = {"tiny": {"preset": "tiny"}, "prefix": {"variant": "prefix"}}
"""What a method sets, besides the defaults of its tuner."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        method: a key of :data:`TUNERS`.
        seed: of the rows that are drawn, their order, and the initial weights.
        learning_rate: the highest of the schedule.
        part: what judges it: ``held_out`` rows of the training set, or ``test``.
        train: rows to learn from.
    """

    method: str
    seed: int
    learning_rate: float
    part: str
    train: int


@dataclass(frozen=True)
class Setup:
    """What all runs of a measurement share: the set, items of the test, rows held out for the sweep, passes over the
    rows, tokens of a step."""

    set: str
    test: int
    held_out: int
    epochs: int
    batch_tokens: int | None


def run(job: Job, setup: Setup, base: Path, folder: Path, threads: int | None) -> dict[str, Any]:
    """Tune the model in ``base``, then judge it; files go into ``folder``. Returns the job and what came out: ``right``
    is a digit for each item."""
    learned, judged = rows(job, setup)
    tuner = _keeping(TUNERS[job.method])(
        base_model=str(base),
        train_data=_written(learned, folder / "learned.jsonl"),
        output_dir=folder / "tuned",
        cache_dir=folder,
        epochs=setup.epochs,
        batch_tokens=setup.batch_tokens,
        learning_rate=job.learning_rate,
        seed=job.seed,
        threads=threads,
        validation=0.0,
        checkpoint_every=1 << 30,
        report=False,
        progress=False,
        **SETTINGS.get(job.method, {}),
    )
    began = time.process_time()
    trained = tuner.train()
    tuned = time.process_time()
    questions = tokenized(_written(judged, folder / "judged.jsonl"), load_tokenizer(base), DataSettings(), root=folder)
    right, nats = judge(tuner.packed, tuner.model, questions)
    return {
        **asdict(job),
        "accuracy": statistics.mean(right),
        "nats_per_token": nats,
        "trained_parameters": trained.trainable_parameters,
        "steps": trained.steps,
        "last_loss": trained.loss,
        "processor_seconds": {"tuning": tuned - began, "judging": time.process_time() - tuned},
        "right": "".join(str(int(one)) for one in right),
    }


def rows(job: Job, setup: Setup) -> tuple[Pairs, Pairs]:
    """(what a run learns from, what judges it). Rows that judge the sweep are in no run's training set."""
    folder = data_folder()
    assert folder is not None
    train, test = intents(folder, setup.set)
    ordered = list(_in_turn(train, seed=0))
    held_out, others = ordered[: setup.held_out], ordered[setup.held_out :]
    learned = list(_in_turn(others, job.seed))[: job.train]
    if job.part == "held_out":
        return learned, held_out
    return learned, random.Random(0).sample(test, min(setup.test, len(test)))


def _in_turn(pairs: Pairs, seed: int) -> Iterator[tuple[str, str]]:
    """Shuffled rows: one of each intent, then the next of each, until one has no more."""
    groups: dict[str, Pairs] = defaultdict(list)
    for text, intent in random.Random(seed).sample(pairs, len(pairs)):
        groups[intent].append((text, intent))
    for together in zip(*groups.values(), strict=False):
        yield from together


def _written(pairs: Pairs, path: Path) -> Path:
    lines = [json.dumps({"prompt": text, "completion": intent}) for text, intent in pairs]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _keeping(kind: Any) -> Any:
    """The tuner with its tuned model left in ``model`` and ``packed``."""

    class Keeping(kind):  # type: ignore[misc]
        def _method(self, model: Any, packed: PackedModel, base_name: str) -> Any:
            self.model, self.packed = model, packed
            return super()._method(model, packed, base_name)

    return Keeping


@torch.no_grad()
def judge(packed: PackedModel, model: Any, questions: TokenCache) -> tuple[list[bool], float]:
    """(whether each answer is what the model would generate greedily, its mean loss in nats per token).

    An answer is generated exactly if each of its tokens, the end included, is the likeliest after those before it: one
    forward pass over question and answer tells.
    """
    model.eval()
    head = model.get_output_embeddings()
    right, nats, tokens = [False] * len(questions), 0.0, 0
    for examples in Packer(questions.lengths, torch.arange(len(questions)).numpy(), 1024).rows(0):
        row = pack(questions, examples)
        targets = torch.from_numpy(row.targets)
        told = (targets != IGNORED).nonzero()[:, 0]
        logits = head(packed.hidden(row)[told]).float()
        nats += cross_entropy(logits, targets[told], reduction="sum").item()
        tokens += len(told)
        hit = torch.ones(len(targets), dtype=torch.bool)
        hit[told] = logits.argmax(-1) == targets[told]
        for example, part in zip(row.examples, torch.split(hit[row.shared :], list(row.lengths)), strict=True):
            right[questions.row(example) - 1] = bool(part.all())
    return right, nats / tokens
