"""From the deltas of one answer to its pieces."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable

from deepseek.runtime.output import TextDelta
from deepseek_serve.parsing.calls import Arguments, Begin, CallParser, End, Event, Text
from deepseek_serve.parsing.pieces import AnswerEnd, AnswerPiece, CallPiece
from deepseek_serve.parsing.thinking import ThinkParser


def new_call_id() -> str:
    """An id that no other call has."""
    return f"call_{secrets.token_hex(12)}"


def plain_parser() -> AnswerParser:
    """Of an answer that is all words."""
    return AnswerParser(None, None)


class AnswerParser:
    """Reads one answer: what it thinks, then words and calls.

    Args:
        thinking: divides reasoning from the rest; None for a model that does not think.
        calls: divides words from calls; None where none may be made.
        new_id: makes the id of a call.

    Attributes:
        reasoning_tokens: tokens inside of the reasoning so far, its markers not counted.
    """

    def __init__(
        self, thinking: ThinkParser | None, calls: CallParser | None, new_id: Callable[[], str] = new_call_id
    ) -> None:
        self._thinking = thinking
        self._calls = calls
        self._new_id = new_id
        self._call = -1
        self._whole_calls = 0
        self._ends: deque[int] = deque()
        self.reasoning_tokens = 0

    def push(self, delta: TextDelta) -> AnswerPiece:
        """The piece that ``delta`` adds, empty where all of it has to wait."""
        ended = delta.finish_reason is not None
        reasoning, rest = self._divide(delta.text, ended=ended)
        self._count(delta.token_ends, ended=ended)
        content, calls = rest, tuple[CallPiece, ...]()
        if self._calls is not None:
            events = self._calls.push(rest)
            content, calls = self._pieces(events + self._calls.finish() if ended else events)
        reason: AnswerEnd | None = delta.finish_reason
        if reason == "stop" and self._whole_calls:
            reason = "tool_calls"
        return AnswerPiece(reasoning, content, calls, delta.logprobs, reason, delta.stop_string)

    def _divide(self, text: str, *, ended: bool) -> tuple[str, str]:
        if self._thinking is None:
            return "", text
        reasoning, rest = self._thinking.push(text)
        if ended:
            last_reasoning, last_rest = self._thinking.finish()
            return reasoning + last_reasoning, rest + last_rest
        return reasoning, rest

    def _count(self, token_ends: tuple[int, ...], *, ended: bool) -> None:
        """Count the tokens that end inside of the reasoning, as soon as it is known that they do."""
        thinking = self._thinking
        if thinking is None:
            return
        self._ends += token_ends
        while self._ends and (ended or self._ends[0] <= thinking.decided):
            end = self._ends.popleft()
            inside = thinking.start is not None and end > thinking.start
            self.reasoning_tokens += inside and (thinking.end is None or end <= thinking.end)

    def _pieces(self, events: list[Event]) -> tuple[str, tuple[CallPiece, ...]]:
        content: list[str] = []
        calls: list[CallPiece] = []
        for event in events:
            match event:
                case Text(text):
                    content.append(text)
                case Begin(name):
                    self._call += 1
                    calls.append(CallPiece(self._call, "", self._new_id(), name))
                case Arguments(text) if calls and calls[-1].index == self._call:
                    last = calls[-1]
                    calls[-1] = CallPiece(last.index, last.arguments + text, last.id, last.name)
                case Arguments(text):
                    calls.append(CallPiece(self._call, text))
                case End():
                    self._whole_calls += 1
        return "".join(content), tuple(calls)
