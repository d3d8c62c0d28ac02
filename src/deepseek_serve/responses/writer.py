"""Writes an answer's pieces as the items of a response and the events that tell of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from deepseek_serve.answers import AnswerPiece, CallPiece
from deepseek_serve.protocol.logprobs import chat_logprobs
from deepseek_serve.protocol.responses import ContentLogprob
from deepseek_serve.protocol.responses_api.items import new_id
from deepseek_serve.protocol.responses_api.objects import (
    ArgumentsDelta,
    ArgumentsDone,
    ItemAdded,
    ItemDone,
    OutputCall,
    OutputEvent,
    OutputItem,
    OutputMessage,
    OutputReasoning,
    OutputText,
    Part,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningText,
    TextDelta,
    TextDone,
)

ItemStatus = Literal["in_progress", "completed", "incomplete"]


@dataclass
class _Open:
    """The item that is being written."""

    kind: Literal["message", "reasoning", "function_call"]
    id: str
    index: int
    call_id: str = ""
    name: str = ""
    texts: list[str] = field(default_factory=list)
    logprobs: list[ContentLogprob] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def item(self, status: ItemStatus) -> OutputItem:
        """The item as it is now; one that has just begun has no parts."""
        begun = status != "in_progress"
        if self.kind == "message":
            return OutputMessage(self.id, status, [OutputText(self.text, (), list(self.logprobs))] if begun else [])
        if self.kind == "reasoning":
            return OutputReasoning(self.id, status, [ReasoningText(self.text)] if begun else [])
        return OutputCall(self.id, status, self.call_id, self.name, self.text)

    def part(self) -> Part:
        """The only part of its content."""
        return OutputText(self.text, (), list(self.logprobs)) if self.kind == "message" else ReasoningText(self.text)


class OutputWriter:
    """The output of one response. Thoughts, words and each call are items of their own, in the order of their coming.

    Attributes:
        output: the items that have ended.
    """

    def __init__(self) -> None:
        self.output: list[OutputItem] = []
        self._open: _Open | None = None
        self._logprobs: list[ContentLogprob] = []  # of tokens whose text has not come yet

    def push(self, piece: AnswerPiece) -> Iterator[OutputEvent]:
        """The events of the next piece."""
        if piece.reasoning:
            yield from self._switch("reasoning")
            yield self._delta(piece.reasoning)
        if not piece.reasoning and not piece.calls:
            self._logprobs += chat_logprobs(piece.logprobs)
        if piece.content:
            yield from self._switch("message")
            yield self._delta(piece.content)
        for call in piece.calls:
            yield from self._call(call)

    def end(self, *, whole: bool) -> Iterator[OutputEvent]:
        """The events of the end; ``whole`` if the model ended by itself. An answer of nothing is an empty message."""
        if not self.output and self._open is None:
            yield from self._switch("message")
        yield from self._close("completed" if whole else "incomplete")

    def break_off(self) -> None:
        """End without events, as nobody listens any more."""
        for _ in self._close("incomplete"):
            pass

    def _call(self, piece: CallPiece) -> Iterator[OutputEvent]:
        if piece.id is not None:
            yield from self._begin(_Open("function_call", "", 0, piece.id, piece.name or ""))
        if piece.arguments:
            yield self._delta(piece.arguments)

    def _switch(self, kind: Literal["message", "reasoning"]) -> Iterator[OutputEvent]:
        if self._open is None or self._open.kind != kind:
            yield from self._begin(_Open(kind, "", 0))

    def _begin(self, item: _Open) -> Iterator[OutputEvent]:
        yield from self._close("completed")
        item.id, item.index = new_id(item.kind), len(self.output)
        self._open = item
        yield ItemAdded(item.index, item.item("in_progress"))
        if item.kind != "function_call":
            yield PartAdded(item.id, item.index, item.part())

    def _delta(self, text: str) -> OutputEvent:
        item = self._open
        assert item is not None
        item.texts.append(text)
        if item.kind == "reasoning":
            return ReasoningDelta(item.id, item.index, text)
        if item.kind == "function_call":
            return ArgumentsDelta(item.id, item.index, text)
        logprobs, self._logprobs = self._logprobs, []
        item.logprobs += logprobs
        return TextDelta(item.id, item.index, text, logprobs)

    def _close(self, status: ItemStatus) -> Iterator[OutputEvent]:
        item = self._open
        if item is None:
            return
        if item.kind == "message" and self._logprobs:
            yield self._delta("")  # tokens without a text of their own, such as the last
        self._open = None
        self.output.append(item.item(status))
        text = item.text
        if item.kind == "message":
            yield TextDone(item.id, item.index, text, item.logprobs)
        elif item.kind == "reasoning":
            yield ReasoningDone(item.id, item.index, text)
        else:
            yield ArgumentsDone(item.id, item.index, item.name, text)
        if item.kind != "function_call":
            yield PartDone(item.id, item.index, item.part())
        yield ItemDone(item.index, self.output[-1])
