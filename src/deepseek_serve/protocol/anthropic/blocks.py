"""From the pieces of an answer to its content blocks. An answer that is not streamed is made of the same events."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import pydantic_core

from deepseek_serve.answers import AnswerPiece, CallPiece
from deepseek_serve.protocol.anthropic.response import (
    BlockDelta,
    BlockEvent,
    BlockStart,
    BlockStop,
    Content,
    InputJsonDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolUse,
)


class BlockWriter:
    """Makes the events of content blocks: one block at a time, a new one whenever the kind changes.

    Args:
        show_thinking: False leaves out the text of thinking blocks.
    """

    def __init__(self, *, show_thinking: bool = True) -> None:
        self._show_thinking = show_thinking
        self._open: Content | None = None
        self._index = -1
        self._thoughts = hashlib.sha256()

    def push(self, piece: AnswerPiece) -> Iterator[BlockEvent]:
        if piece.reasoning:
            if not isinstance(self._open, Thinking):
                yield from self._begin(Thinking("", ""))
                self._thoughts = hashlib.sha256()
            self._thoughts.update(piece.reasoning.encode())
            if self._show_thinking:
                yield BlockDelta(self._index, ThinkingDelta(piece.reasoning))
        if piece.content:
            if not isinstance(self._open, Text):
                yield from self._begin(Text(""))
            yield BlockDelta(self._index, TextDelta(piece.content))
        for call in piece.calls:
            yield from self._push_call(call)

    def end(self) -> Iterator[BlockEvent]:
        """Close the open block. A thinking block gets a signature, which clients want; it is its text's digest."""
        if isinstance(self._open, Thinking):
            yield BlockDelta(self._index, SignatureDelta(base64.b64encode(self._thoughts.digest()).decode()))
        if self._open is not None:
            yield BlockStop(self._index)
        self._open = None

    def _begin(self, block: Content) -> Iterator[BlockEvent]:
        yield from self.end()
        self._open = block
        self._index += 1
        yield BlockStart(self._index, block)

    def _push_call(self, call: CallPiece) -> Iterator[BlockEvent]:
        if call.id is not None:
            yield from self._begin(ToolUse(call.id, call.name or "", {}))
        if call.arguments:
            yield BlockDelta(self._index, InputJsonDelta(call.arguments))


def content_of(events: Iterable[BlockEvent]) -> list[Content]:
    """The blocks that these events tell of, from first to last."""
    blocks: list[Content] = []
    parts: list[str] = []
    signature = ""
    for event in events:
        match event:
            case BlockStart(content_block=block):
                parts, signature = [], ""
            case BlockDelta(delta=SignatureDelta(signature)):
                pass
            case BlockDelta(
                delta=TextDelta(text=part) | ThinkingDelta(thinking=part) | InputJsonDelta(partial_json=part)
            ):
                parts.append(part)
            case BlockStop():
                blocks.append(_whole(block, "".join(parts), signature))
    return blocks


def _whole(block: Content, joined: str, signature: str) -> Content:
    if isinstance(block, Thinking):
        return Thinking(joined, signature)
    if isinstance(block, ToolUse):
        return ToolUse(block.id, block.name, _input(joined))
    return Text(joined)


def _input(arguments: str) -> dict[str, Any]:
    """The arguments of a call; of one that was cut off, those that were there, as the SDK reads a stream."""
    try:
        value = pydantic_core.from_json(arguments, allow_partial=True)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
