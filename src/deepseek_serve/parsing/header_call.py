"""One call of DeepSeek's formats: the function's name, then its arguments."""

from __future__ import annotations

from deepseek_serve.parsing.calls import CallReader, Schemas, Status
from deepseek_serve.parsing.json_scanner import WHITESPACE, JsonScanner

SEPARATOR = "<｜tool▁sep｜>"
_KIND = "function"
_FENCE = "```json"


class HeaderCallReader(CallReader):
    """``NAME<｜tool▁sep｜>{...}`` of V3.1; ``function<｜tool▁sep｜>NAME`` and ``{...}`` in a fence of V3 and R1."""

    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas)
        self._scanner = JsonScanner()
        self._head = ""

    def push(self, char: str) -> Status:
        if self.begun:
            return self._go_on(char)
        if char != "{":
            self._head += char
            return "more" if self._may_become_call() else "broken"
        name = self._name()
        if name is None:
            return "broken"
        self.begin(name)
        return self._go_on(char)

    def _go_on(self, char: str) -> Status:
        if not self._scanner.push(char):
            return "broken"
        self.arguments(char)
        return "done" if self._scanner.complete else "more"

    def _may_become_call(self) -> bool:
        _, found, rest = self._head.partition(SEPARATOR)
        if not found:
            return len(self._head) <= len(SEPARATOR) + max(map(len, (*self._schemas, _KIND))) + len(WHITESPACE)
        return len(rest) <= max(map(len, self._schemas), default=0) + len(_FENCE) + 16 and "<" not in rest

    def _name(self) -> str | None:
        """The function that the header names, if it is whole and there is such a function."""
        first, found, rest = (part.strip(WHITESPACE) for part in self._head.partition(SEPARATOR))
        if not found:
            return None
        if first == _KIND and rest:
            name = rest.removesuffix(_FENCE).strip(WHITESPACE)
            return name if name in self._schemas else None
        return first if first in self._schemas and not rest else None
