"""The training loop: steps, judgements, checkpoints, and going on from one as if nothing had happened."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from deepseek.errors import TrainingError
from deepseek_tune import checkpoints
from deepseek_tune.data.cache import TokenCache
from deepseek_tune.data.packing import PackedRow, Packer, pack
from deepseek_tune.forward import PackedModel
from deepseek_tune.method import Method
from deepseek_tune.parallel import World
from deepseek_tune.progress import Evaluation, Reporter, Step
from deepseek_tune.schedule import rate
from deepseek_tune.settings import TuningSettings

logger = logging.getLogger(__name__)

MAX_HELD_OUT = 2000
"""Held-out examples; more do not tell more, and each judgement costs their forward passes."""
_BATCH_TOKENS = 8192
_LEAST_BATCH_TOKENS = 256
_STEPS_OF_SMALL_DATA = 16
"""Optimizer steps that an epoch of small data is cut into."""
_SHOWN_EXAMPLES = 5

ALL_EPOCHS, EARLY = "all epochs", "early: the held-out examples got no better"


@dataclass(frozen=True)
class Batches:
    """How examples are divided: into those trained on and those held out, and into rows and steps.

    Attributes:
        train, held_out: of the rows of each.
        rows_per_step: rows whose gradients are added up.
    """

    train: Packer
    held_out: Packer
    rows_per_step: int

    def steps(self, epoch: int, row: int) -> Iterator[list[list[int]]]:
        """The rows of each step of an epoch, from row ``row`` on."""
        rows = self.train.rows(epoch, row)
        while step := list(islice(rows, self.rows_per_step)):
            yield step


def make_batches(lengths: NDArray[np.int64], settings: TuningSettings) -> Batches:
    """Divide the examples of these lengths; the seed decides which are held out."""
    order = np.random.default_rng([settings.seed, len(lengths)]).permutation(len(lengths))
    held = min(int(settings.validation * len(lengths)), MAX_HELD_OUT)
    train = np.sort(order[held:])
    tokens, longest = int(lengths[train].sum()), int(lengths.max())
    batch = settings.batch_tokens
    if batch is None:
        batch = min(_BATCH_TOKENS, max(_LEAST_BATCH_TOKENS, tokens // _STEPS_OF_SMALL_DATA))
    row = max(longest, min(settings.row_tokens, batch))
    return Batches(
        Packer(lengths, train, row, settings.seed),
        Packer(lengths, np.sort(order[:held]), row, settings.seed),
        max(1, round(batch / row)),
    )


class RunState(msgspec.Struct):
    """Where a run is.

    Attributes:
        epoch, row: of the next step; ``row`` counts the rows of the epoch.
        tokens: trained on so far.
        steps: every step so far.
        evaluations: every judgement so far.
        since_best: judgements since the best.
        finished: why the run is over; "" while it is not.
    """

    epoch: int = 0
    row: int = 0
    tokens: int = 0
    steps: list[Step] = []
    evaluations: list[Evaluation] = []
    since_best: int = 0
    finished: str = ""

    @property
    def best(self) -> Evaluation | None:
        """The best judgement, the first of equals."""
        return min(self.evaluations, key=lambda evaluation: evaluation.loss, default=None)


class Trainer:
    """Trains the adapter in a model.

    Args:
        packed: the model that computes losses.
        method: what is trained.
        settings: of the run.
        cache: the examples.
        batches: how they are divided.
        describe: an example -> a line that shows it.
        folder: for checkpoints.
        identity: what a checkpoint must have been made with; kept in it.
        reporter: hears of the run.
        world: the processes that share the work.
    """

    def __init__(
        self,
        packed: PackedModel,
        method: Method,
        settings: TuningSettings,
        cache: TokenCache,
        batches: Batches,
        *,
        describe: Callable[[int], str],
        folder: Path,
        identity: Mapping[str, Any],
        reporter: Reporter,
        world: World = World(),  # noqa: B008  # frozen
    ) -> None:
        self.state = RunState()
        self._world = world
        self._packed, self._method, self._settings = packed, method, settings
        self.cache, self._batches, self._describe = cache, batches, describe
        self._folder, self._identity, self._reporter = folder, dict(identity), reporter
        self._best_weights: dict[str, Tensor] = {}
        self._optimizer = torch.optim.AdamW(
            method.groups(), lr=method.learning_rate, weight_decay=settings.weight_decay
        )
        self._parameters = [weight for group in self._optimizer.param_groups for weight in group["params"]]

    def train(self) -> dict[str, Tensor]:
        """Train to the end, from where the state is. Returns the adapter's weights: the best where examples were held
        out, else the last.

        Raises TrainingError if a loss or a gradient is no number, DiskSpaceError if a checkpoint has no room.
        """
        settings, state = self._settings, self.state
        self._reporter.start(self._batches.train.tokens * settings.epochs, state.tokens)
        try:
            while not state.finished:
                self._epoch()
                if state.epoch == settings.epochs and not state.finished:
                    state.finished = ALL_EPOCHS
            self.save()
        finally:
            self._reporter.finish()
        return self._best_weights or self._method.weights()

    def _epoch(self) -> None:
        """The rest of an epoch, unless the run ends early."""
        state, settings = self.state, self._settings
        for rows in self._batches.steps(state.epoch, state.row):
            before = self._due()
            self._step(rows)
            state.row += len(rows)
            # The last judgement of an epoch comes after it, so that it is made once.
            if before < self._due() < settings.evals_per_epoch:
                self._judge()
                self.save()
            elif len(state.steps) % settings.checkpoint_every == 0:
                self.save()
            if state.finished:
                return
        state.epoch, state.row = state.epoch + 1, 0
        self._judge()
        if state.epoch < settings.epochs and not state.finished:
            self.save()

    def _due(self) -> int:
        """Judgements that the epoch's tokens so far ask for."""
        total = self._batches.train.tokens
        done = self.state.tokens - self.state.epoch * total
        return done * self._settings.evals_per_epoch // total

    def _step(self, examples: list[list[int]]) -> None:
        began = time.perf_counter()
        rows = [pack(self.cache, row, share=self._settings.share_prompts) for row in examples]
        answers, tokens = sum(row.answer_tokens for row in rows), sum(row.example_tokens for row in rows)
        progress = (self.state.tokens + tokens / 2) / (self._batches.train.tokens * self._settings.epochs)
        share = rate(progress, self._settings.schedule, self._settings.warmup)
        for group in self._optimizer.param_groups:
            group["lr"] = self._method.learning_rate * share * group["scale"]
        self._method.module.train()
        total, bad = 0.0, rows
        for row in self._world.own(rows):
            loss = self.backward(row, answers)
            total += loss
            if not math.isfinite(loss):
                bad = [row]
                break
        (total,) = self._world.add(total)
        if not math.isfinite(total):
            raise self._not_finite(f"the loss is {total}", bad)
        self._world.add_gradients(self._parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, self._settings.max_grad_norm))
        if not math.isfinite(norm):
            raise self._not_finite(f"the norm of the gradient is {norm}", rows)
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.state.tokens += tokens
        step = Step(
            step=len(self.state.steps) + 1,
            epoch=self.state.epoch,
            loss=total,
            learning_rate=self._method.learning_rate * share,
            grad_norm=norm,
            tokens=tokens,
            answer_tokens=answers,
            seconds=time.perf_counter() - began,
        )
        self.state.steps.append(step)
        self._reporter.step(step)

    def backward(self, row: PackedRow, answers: int) -> float:
        """Add the gradient of a row's loss over ``answers`` to the parameters'; returns that loss."""
        loss = self._packed.loss(row) / answers
        value = loss.item()
        if math.isfinite(value):
            loss.backward()  # type: ignore[no-untyped-call]
        return value

    def _judge(self) -> None:
        """Judge the held-out examples, if there are any; keep the weights if they were never better."""
        if not len(self._batches.held_out.indices):
            return
        evaluation = Evaluation(len(self.state.steps), self.held_out_loss())
        if not math.isfinite(evaluation.loss):
            raise TrainingError(
                f"after step {evaluation.step} the loss of the held-out examples is {evaluation.loss}. {_ADVICE}"
            )
        best = self.state.best
        self.state.evaluations.append(evaluation)
        if best is None or evaluation.loss < best.loss:
            self._best_weights = self._method.weights()
            self.state.since_best = 0
        else:
            self.state.since_best += 1
            if self._settings.patience and self.state.since_best >= self._settings.patience:
                self.state.finished = EARLY
        self._reporter.evaluation(evaluation)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """The mean loss over the answer tokens of the held-out examples, nats."""
        self._method.module.eval()
        total, answers = 0.0, 0
        for examples in self._world.own(list(self._batches.held_out.rows(0))):
            row = pack(self.cache, examples, share=self._settings.share_prompts)
            total += self._packed.loss(row).item()
            answers += row.answer_tokens
        total, told = self._world.add(total, answers)
        return total / told

    def _not_finite(self, what: str, rows: Iterable[PackedRow]) -> TrainingError:
        examples = [example for row in rows for example in row.examples]
        lines = [f"  line {self.cache.row(example)}: {self._describe(example)}" for example in examples]
        if len(lines) > _SHOWN_EXAMPLES:
            others = ", ".join(str(self.cache.row(example)) for example in examples[_SHOWN_EXAMPLES:])
            lines[_SHOWN_EXAMPLES:] = [f"  and lines {others}"]
        return TrainingError(
            f"step {len(self.state.steps) + 1}: {what}. Nothing was changed by this step. {_ADVICE} Its examples:\n"
            + "\n".join(lines)
        )

    # Checkpoints

    def save(self) -> None:
        """Write a checkpoint of everything that the rest of the run depends on."""
        tensors = {f"adapter.{name}": weight for name, weight in self._method.state().items()}
        tensors |= {f"best.{name}": weight for name, weight in self._best_weights.items()}
        for index, values in self._optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value.detach().cpu() for name, value in values.items()}
        tensors |= {f"random.cpu.{i}": state for i, state in enumerate(self._world.gather(torch.get_rng_state()))}
        if torch.cuda.is_available():
            tensors |= {f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
        values = {"identity": self._identity, "state": msgspec.to_builtins(self.state)}
        if self._world.first:
            checkpoints.save(self._folder, len(self.state.steps), tensors, values)

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take over what :meth:`save` wrote."""
        self.state = msgspec.convert(values["state"], RunState)
        self._method.restore(_part(tensors, "adapter."))
        self._best_weights = _part(tensors, "best.")
        stored: dict[int, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            index, _, what = name.partition(".")
            stored.setdefault(int(index), {})[what] = value
        self._optimizer.load_state_dict({**self._optimizer.state_dict(), "state": stored})
        if (state := tensors.get(f"random.cpu.{self._world.rank}")) is not None:
            torch.set_rng_state(state)
        if torch.cuda.is_available():
            states = _part(tensors, "random.cuda.")
            if len(states) == torch.cuda.device_count():
                torch.cuda.set_rng_state_all([states[str(index)] for index in range(len(states))])


_ADVICE = (
    "Lower learning_rate, or take dtype='fp32' if this is bf16; if the same rows show up again, look at them. "
    "The same command goes on from the last checkpoint, resume=False starts over."
)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
