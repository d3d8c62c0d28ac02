"""A step's work on the device: forward, tokens, log-probabilities and scores, without the host in between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from deepseek.engine.batch import StepBatch
from deepseek.engine.sampler import ChosenLogprobs, Draws, Scores
from deepseek.kernels.staging import bring, start_fetching
from deepseek.models.base import Model


@dataclass(frozen=True)
class Outputs:
    """What a step leaves; None where nobody asked for it.

    Attributes:
        tokens: int64 [S], of the rows that are sampled, in the order of the batch's logits.
        logprobs: of those rows of them whose sequences want log-probabilities.
        scores: of :attr:`StepBatch.scored_tokens`.
        hidden: fp32 [H, hidden_size], of ``StepBatch.hidden_rows``. Stays on the device.
    """

    tokens: Tensor | None = None
    logprobs: ChosenLogprobs | None = None
    scores: Scores | None = None
    hidden: Tensor | None = None

    def fetched(self) -> Outputs:
        """On the host, when what has been given to the device so far is done."""
        fetch = start_fetching
        logprobs, scores = self.logprobs, self.scores
        return replace(
            self,
            tokens=None if self.tokens is None else fetch(self.tokens),
            logprobs=logprobs and ChosenLogprobs(fetch(logprobs.chosen), fetch(logprobs.ids), fetch(logprobs.values)),
            scores=scores and Scores(fetch(scores.logprobs), fetch(scores.greedy), fetch(scores.finite)),
        )


Compute = Callable[[], Outputs]


class Launcher(Protocol):
    """Has steps computed, in the order in which they are started.

    Attributes:
        device: where the tokens of steps stay for those that follow; None if a step is done when :meth:`start` returns,
            so that there is nothing to be gained by planning ahead.
    """

    @property
    def device(self) -> torch.device | None: ...

    def start(self, compute: Compute) -> Compute:
        """Have a step computed. What is returned waits for its outputs."""
        ...


class Inline:
    """Computes a step when it is started."""

    device: torch.device | None = None

    def start(self, compute: Compute) -> Compute:
        outputs = compute()
        return lambda: outputs


class CudaLauncher:
    """Puts steps on the current stream of a GPU, and their outputs into pinned memory behind them."""

    def __init__(self, device: torch.device) -> None:
        self.device: torch.device | None = device

    def start(self, compute: Compute) -> Compute:
        outputs = compute().fetched()
        done = torch.cuda.Event()  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self.device))

        def wait() -> Outputs:
            done.synchronize()
            return outputs

        return wait


def launcher_for(model: Model) -> Launcher:
    """How the steps of a model are started."""
    return Inline() if model.stream_device is None else CudaLauncher(model.stream_device)


def computation(model: Model, cache: Any, step: StepBatch, left_at: slice | None) -> Compute:
    """What is to be computed for a step, with all that depends on the present state of its sequences (but see
    :meth:`Draws.of`).

    Args:
        left_at: where the sampled tokens are left in ``step.batch.previous``; None: nowhere.
    """
    owners = step.row_owners
    draws = Draws.of(owners, [chunk.draft[:n] for chunk in step.sampled for n in range(1 + len(chunk.draft))])
    rows, top = step.logprob_rows
    scored_rows, scored = step.scored_tokens

    def compute() -> Outputs:
        with torch.inference_mode():
            return _outputs()

    def _outputs() -> Outputs:
        hidden: Tensor | None = None
        if step.hidden_rows is None:
            logits = model.forward(step.batch, cache)
        else:
            logits, hidden = model.forward_with_hidden(step.batch, step.hidden_rows, cache)
        tokens: Tensor | None = None
        logprobs: ChosenLogprobs | None = None
        scores: Scores | None = None
        if scored:
            places = (bring(torch.tensor(places), logits.device) for places in (scored_rows, scored))
            scores = Scores.of(logits[len(owners) :], *places)
        if owners:
            where = bring(torch.tensor(rows, dtype=torch.int64), logits.device) if rows else None
            unchanged = None if where is None else logits.index_select(0, where)
            tokens = draws.choose(model.choose_tokens, logits[: len(owners)])
            if where is not None and unchanged is not None:
                logprobs = ChosenLogprobs.of(unchanged, tokens.index_select(0, where), max(top))
            if left_at is not None and step.batch.previous is not None:
                step.batch.previous[left_at] = tokens
        return Outputs(tokens, logprobs, scores, hidden)

    return compute
