"""Wall-clock time, and whether it can be believed."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

logger = logging.getLogger("deepseek.serve")

JUMP = 30.0  # seconds by which the wall clock and the monotonic one may drift apart between two looks
DISTRUST = 3600.0  # seconds after a jump in which nothing is deleted for its age


class Clock:
    """Tells the time, and notices when somebody has set it.

    What has expired is answered as gone by the wall clock, which a corrected clock undoes; deleting cannot be undone,
    so it waits until the clock has run evenly for a while.
    """

    def __init__(self, wall: Callable[[], float] = time.time, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._monotonic = monotonic
        self._last = (wall(), monotonic())
        self._jumped: float | None = None

    def now(self) -> int:
        """Unix seconds."""
        return int(self._wall())

    def may_delete(self) -> bool:
        """Look at both clocks; False for :data:`DISTRUST` seconds after they disagreed."""
        wall, monotonic = self._wall(), self._monotonic()
        drift = (wall - self._last[0]) - (monotonic - self._last[1])
        self._last = (wall, monotonic)
        if abs(drift) > JUMP:
            self._jumped = monotonic
            logger.warning("the clock was set by %+.0f s: nothing is deleted for its age for an hour", drift)
        return self._jumped is None or monotonic - self._jumped >= DISTRUST
