"""Finding a format's own words in a text that comes character by character."""

from __future__ import annotations

from collections.abc import Sequence


class MarkerFinder:
    """Holds back what may become a marker. No marker begins with another one."""

    def __init__(self, markers: Sequence[str]) -> None:
        self._markers = tuple(markers)
        self.held = ""

    def push(self, char: str) -> tuple[str, str]:
        """(text that is no part of a marker, the marker that is complete with ``char`` or nothing)."""
        self.held += char
        start = 0
        while start < len(self.held) and not any(m.startswith(self.held[start:]) for m in self._markers):
            start += 1
        text, self.held = self.held[:start], self.held[start:]
        if self.held in self._markers:
            marker, self.held = self.held, ""
            return text, marker
        return text, ""

    def take(self) -> str:
        """What is held, as text."""
        held, self.held = self.held, ""
        return held
