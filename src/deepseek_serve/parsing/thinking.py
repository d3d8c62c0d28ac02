"""What a model thinks before it answers: ``<think>...</think>``, of Qwen3 and DeepSeek-R1."""

from __future__ import annotations

from deepseek_serve.parsing.json_scanner import WHITESPACE
from deepseek_serve.parsing.markers import MarkerFinder

BEGIN = "<think>"
END = "</think>"
MARKERS = (BEGIN, END)


class ThinkParser:
    """Divides an answer into reasoning and the rest; whitespace at their borders belongs to neither.

    Only what stands at the very beginning is reasoning. An answer that ends inside of it is all reasoning.

    Args:
        opened: the prompt ends inside of the reasoning, as some templates have it.

    Attributes:
        start: the answer's character at which reasoning begins, None if there is none so far.
        end: the one at which it ends, None before.
        decided: characters of which it is known where they belong.
    """

    def __init__(self, *, opened: bool) -> None:
        self.start = 0 if opened else None
        self.end: int | None = None
        self._finder = MarkerFinder((END,) if opened else (BEGIN,))
        self._inside = opened
        self._space = ""  # held, until it is known what follows
        self._begun = False  # the part that is being read has had a visible character
        self._pushed = 0

    @property
    def decided(self) -> int:
        return self._pushed - len(self._finder.held)

    def push(self, text: str) -> tuple[str, str]:
        """(reasoning, content) that the text adds."""
        reasoning: list[str] = []
        content: list[str] = []
        for char in text:
            self._pushed += 1
            if self._inside:
                found, marker = self._finder.push(char)
                self._show(found, reasoning)
                if marker:
                    self._inside, self._begun, self._space = False, False, ""
                    self.end = self._pushed - len(marker)
            elif self.end is not None:
                content.append(self._after(char))
            else:
                content.append(self._before(char))
        return "".join(reasoning), "".join(content)

    def finish(self) -> tuple[str, str]:
        """What was held back to the end."""
        if self._inside:
            reasoning: list[str] = []
            self._show(self._finder.take(), reasoning)
            return "".join(reasoning), ""
        if self.end is not None:
            return "", ""
        return "", self._space + self._finder.take()

    def _show(self, text: str, shown: list[str]) -> None:
        for char in text:
            if char in WHITESPACE:
                self._space += char if self._begun else ""
            else:
                shown.append(self._space + char)
                self._space, self._begun = "", True

    def _after(self, char: str) -> str:
        self._begun = self._begun or char not in WHITESPACE
        return char if self._begun else ""

    def _before(self, char: str) -> str:
        """Nothing has been said yet: perhaps reasoning begins."""
        if self._begun:
            return char
        if char in WHITESPACE and not self._finder.held:
            self._space += char
            return ""
        found, marker = self._finder.push(char)
        if marker:
            self._inside, self._space = True, ""
            self.start, self._finder = self._pushed, MarkerFinder((END,))
            return ""
        if not found:
            return ""
        space, self._space, self._begun = self._space, "", True
        return space + found + self._finder.take()
