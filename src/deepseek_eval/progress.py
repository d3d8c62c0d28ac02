"""Who hears how far a run is."""

from __future__ import annotations

from typing import Protocol


class Watcher(Protocol):
    """Hears how far a run is."""

    def start(self, model: str, task: str, total: int, done: int) -> None: ...

    def advance(self) -> None: ...

    def note(self, text: str) -> None: ...


class Silent:
    """Does nothing. Implements :class:`Watcher`."""

    def start(self, model: str, task: str, total: int, done: int) -> None: ...

    def advance(self) -> None: ...

    def note(self, text: str) -> None: ...
