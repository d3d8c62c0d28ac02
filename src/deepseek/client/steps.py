"""What both clients do, written once: a generator yields calls of a client, and a driver makes or awaits them.

The same call returns a value in the synchronous client and an awaitable in the other. So a helper is a generator of
``lambda: client.batches.retrieve(id)`` and the like, and each ``yield`` gives the call's result or raises its error.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait for so many seconds."""

    seconds: float

    def __call__(self) -> None:
        time.sleep(self.seconds)


Step = Callable[[], Any] | Sleep
Steps = Generator[Step, Any, T]


class _Course(Generic[T]):
    """A helper on its way: the step that it is at, or its result."""

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self.result: T
        self.step: Step | None
        self.go_on(None)

    def go_on(self, value: Any) -> None:
        self._advance(lambda: self._steps.send(value))

    def fail(self, error: Exception) -> None:
        self._advance(lambda: self._steps.throw(error))

    def _advance(self, to_next: Callable[[], Step]) -> None:
        try:
            self.step = to_next()
        except StopIteration as end:
            self.step, self.result = None, end.value


def run(steps: Steps[T]) -> T:
    """The result of a helper over a synchronous client."""
    course = _Course(steps)
    while (step := course.step) is not None:
        try:
            value = step()
        except Exception as error:  # noqa: BLE001 - raised in the helper
            course.fail(error)
        else:
            course.go_on(value)
    return course.result


async def run_async(steps: Steps[T]) -> T:
    """The result of a helper over an asynchronous client."""
    course = _Course(steps)
    while (step := course.step) is not None:
        try:
            value = await (asyncio.sleep(step.seconds) if isinstance(step, Sleep) else step())
        except Exception as error:  # noqa: BLE001 - raised in the helper
            course.fail(error)
        else:
            course.go_on(value)
    return course.result
