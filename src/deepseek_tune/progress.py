"""How a run tells how far it is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from rich.progress import Progress as RichBar
    from rich.progress import TaskID


SECONDS_BETWEEN_LINES = 30.0
"""In a log."""


class Step(msgspec.Struct, frozen=True):
    """One optimizer step.

    Attributes:
        step: from 1.
        epoch: from 0.
        loss: mean over the batch's answer tokens, nats.
        learning_rate: of the matrices A.
        grad_norm: before it was cut.
        tokens, answer_tokens: of the batch.
        seconds: that it took.
    """

    step: int
    epoch: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    answer_tokens: int
    seconds: float


class Evaluation(msgspec.Struct, frozen=True):
    """The held-out examples after ``step`` steps: mean loss over their answer tokens, nats."""

    step: int
    loss: float


class Reporter(Protocol):
    """Hears of a run."""

    def start(self, total: int, done: int) -> None:
        """Training of ``total`` tokens begins, ``done`` of them behind it."""
        ...

    def step(self, step: Step) -> None:
        """A step was made."""
        ...

    def evaluation(self, evaluation: Evaluation) -> None:
        """The held-out examples were judged."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line of its own."""
        ...

    def finish(self) -> None:
        """The run is over, whether it succeeded or not."""
        ...


class Silent:
    """Implements :class:`Reporter` by saying nothing."""

    def start(self, total: int, done: int) -> None:
        return

    def step(self, step: Step) -> None:
        return

    def evaluation(self, evaluation: Evaluation) -> None:
        return

    def note(self, text: str) -> None:
        return

    def finish(self) -> None:
        return


class RichReporter:
    """Implements :class:`Reporter` on standard error: a bar of tokens, tokens/s, loss and time left; where that is no
    terminal but a log, a line now and then."""

    def __init__(self) -> None:
        self._bar: RichBar | None = None
        self._task: TaskID | None = None
        self._held_out = ""
        self._seconds = 0.0
        self._tokens = 0
        self._total = self._done = 0
        self._next_line = 0.0

    def start(self, total: int, done: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._total, self._done = total, done
        console = Console(stderr=True)
        if not console.is_terminal:
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        self._bar = Bar(*columns, console=console, speed_estimate_period=600)
        self._bar.start()
        self._task = self._bar.add_task("tuning", total=total, completed=done, detail="")

    def step(self, step: Step) -> None:
        self._seconds += step.seconds
        self._tokens += step.tokens
        self._done += step.tokens
        speed = self._tokens / max(self._seconds, 1e-9)
        detail = f"epoch {step.epoch + 1}, loss {step.loss:.3f}{self._held_out}, {speed:,.0f} tokens/s"
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, advance=step.tokens, detail=detail)
        elif self._bar is None and time.monotonic() >= self._next_line:
            left = duration((self._total - self._done) / speed)
            self.note(f"step {step.step:,}, {self._done / self._total:.0%}: {detail}, {left} left")
            self._next_line = time.monotonic() + SECONDS_BETWEEN_LINES

    def evaluation(self, evaluation: Evaluation) -> None:
        self._held_out = f", held out {evaluation.loss:.3f}"
        if self._bar is None:
            self._next_line = 0.0  # the next step says it

    def note(self, text: str) -> None:
        from rich.console import Console

        console = self._bar.console if self._bar is not None else Console(stderr=True)
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    def finish(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Seconds as hours and minutes, or as minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
