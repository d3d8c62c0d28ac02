"""What the node takes on: a bound on answers in work and on prompt tokens that wait, and when to come again.

Whoever does not fit is told so at once, with 503 and the time after which a retry makes sense, and never queued
unanswered. That time is measured: if units of something stay for ``d`` seconds on average and ``m`` of them are here,
``k`` of them are gone after about ``d * k / m`` seconds (Little's law).
"""

from __future__ import annotations

import contextlib
import math
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from deepseek.errors import EngineOverloadedError, InvalidRequestError
from deepseek_serve.auth import EVERYBODY, ApiKey

RETRY_WHEN_DRAINING = 5.0  # seconds
MIN_RETRY, MAX_RETRY = 0.5, 60.0  # seconds; clients ignore longer ones
LEVERAGE = 8.0  # times as much as stays free is what one of several holders may hold
MEMORY = 0.05  # how much a new duration moves the mean


class Stock:
    """Units of something that come and go, of which there is room for so many.

    If there are several holders, none may fill it alone: each may hold :data:`LEVERAGE` times its weight as much as
    stays free (dynamic thresholds, Choudhury and Hahne, IEEE/ACM Trans. Networking 1998). So one holder gets to 8/9 of
    the room, two to 8/17 each, and there is always some for another one.

    Attributes:
        capacity: units there is room for.
        in_use: units here now.
    """

    def __init__(self, capacity: int, *, several: bool = False) -> None:
        self.capacity = capacity
        self.in_use = 0
        self._several = several
        self._held: Counter[str] = Counter()
        self._arrivals = 0.0  # sum of the arrival times of the units here
        self._stay: float | None = None  # mean duration of those that have gone

    def missing(self, units: int, holder: str = "", weight: float = 1.0) -> int:
        """How many units must go before ``units`` more of this holder's fit; 0 if they do."""
        free = self.capacity - self.in_use - units
        if free < 0:
            return -free
        held = self._held[holder]
        if not self._several or not held:
            return 0
        factor = LEVERAGE * weight
        return max(0, math.ceil((held + units - factor * free) / (1 + factor)))

    def enter(self, units: int, holder: str = "") -> float:
        """Units arrive; returns when, which :meth:`leave` wants to know."""
        now = time.monotonic()
        self.in_use += units
        self._held[holder] += units
        self._arrivals += units * now
        return now

    def leave(self, units: int, entered: float, holder: str = "") -> None:
        now = time.monotonic()
        self.in_use -= units
        self._held[holder] -= units
        if not self._held[holder]:
            del self._held[holder]
        self._arrivals = self._arrivals - units * entered if self.in_use else 0.0
        stay = now - entered
        self._stay = stay if self._stay is None else self._stay + MEMORY * (stay - self._stay)

    def wait_for(self, units: int) -> float:
        """Seconds until about ``units`` of those here have gone.

        Those still here have stayed for so long already: when they stay longer than earlier ones did, so will the rest.
        The result is spread, so that those who are refused together do not come back together.
        """
        if not self.in_use:
            return MIN_RETRY
        age = time.monotonic() - self._arrivals / self.in_use
        stay = max(self._stay or 0.0, 2 * age)  # on average a unit is half way through
        seconds = stay * min(1.0, units / self.in_use) * random.uniform(1.0, 1.5)
        return min(max(seconds, MIN_RETRY), MAX_RETRY)


class Admission:
    """The node's bounds.

    Args:
        capacity: answers in work at a time.
        prompt_capacity: prompt tokens that may wait for their first step. A prompt longer than that is let in when no
            other waits.
        several: there are several API keys, none of which may take all the room.

    Attributes:
        draining: nobody is let in any more.
        refusals: why how many requests were refused.
    """

    def __init__(self, capacity: int, prompt_capacity: int, *, several: bool = False) -> None:
        self.draining = False
        self.refusals: Counter[str] = Counter()
        self._answers = Stock(capacity, several=several)
        self._prompts = Stock(prompt_capacity, several=several)

    @property
    def capacity(self) -> int:
        """Answers in work at a time."""
        return self._answers.capacity

    @property
    def in_use(self) -> int:
        """Answers in work."""
        return self._answers.in_use

    @property
    def prompt_tokens(self) -> int:
        """Prompt tokens that wait for their first step."""
        return self._prompts.in_use

    @contextlib.contextmanager
    def enter(self, answers: int, key: ApiKey = EVERYBODY) -> Iterator[None]:
        """Hold room for so many answers.

        Raises :class:`EngineOverloadedError` if there is none now, :class:`InvalidRequestError` if there never is.
        """
        if self.draining:
            self.refusals["draining"] += 1
            raise EngineOverloadedError(
                "The server is shutting down. Send the request again to its successor.",
                retry_after=RETRY_WHEN_DRAINING,
            )
        if answers > self.capacity:
            raise InvalidRequestError(
                f"The request asks for {answers} answers; this server takes {self.capacity} at a time.", param="n"
            )
        missing = self._answers.missing(answers, key.tenant, key.weight)
        if missing:
            self.refusals["answers"] += 1
            kept = " The rest is kept for other API keys." if self.in_use + answers <= self.capacity else ""
            raise EngineOverloadedError(
                f"The server is full: {self.in_use} of {self.capacity} answers are in work.{kept} Try again shortly.",
                retry_after=self._answers.wait_for(missing),
            )
        entered = self._answers.enter(answers, key.tenant)
        try:
            yield
        finally:
            self._answers.leave(answers, entered, key.tenant)

    def wait(self, lengths: Sequence[int], key: ApiKey = EVERYBODY) -> list[WaitingPrompt]:
        """Count prompts of these lengths as waiting until their first tokens come.

        Raises :class:`EngineOverloadedError` if too many tokens would wait.
        """
        tokens = sum(lengths)
        missing = self._prompts.missing(tokens, key.tenant, key.weight)
        if missing and self.prompt_tokens:
            self.refusals["prompt_tokens"] += 1
            raise EngineOverloadedError(
                f"The server is full: {self.prompt_tokens} prompt tokens wait already, and this request has {tokens}; "
                f"at most {self._prompts.capacity} may wait. Try again shortly.",
                retry_after=self._prompts.wait_for(missing),
            )
        return [WaitingPrompt(self._prompts, length, key.tenant) for length in lengths]


class WaitingPrompt:
    """Prompt tokens that wait; :meth:`close` when they do no longer, once or more often."""

    def __init__(self, stock: Stock, tokens: int, holder: str) -> None:
        self._stock = stock
        self._tokens = tokens
        self._holder = holder
        self._entered = stock.enter(tokens, holder)

    def close(self) -> None:
        tokens, self._tokens = self._tokens, 0
        if tokens:
            self._stock.leave(tokens, self._entered, self._holder)
