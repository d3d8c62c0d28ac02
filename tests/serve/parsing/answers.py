"""Answers of a model as a server reads them, cut into deltas in any way."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from deepseek.runtime.output import TextDelta
from deepseek_serve.parsing.answer import AnswerParser
from deepseek_serve.parsing.formats import format_named
from deepseek_serve.parsing.pieces import Answer, AnswerPiece
from deepseek_serve.parsing.thinking import ThinkParser

SCHEMAS: dict[str, Any] = {
    "get": {
        "type": "object",
        "properties": {"city": {"type": "string"}, "n": {"type": "integer"}, "o": {"type": "object"}},
    },
    "f-2": {"type": "object"},
}


def parser_of(form: str, thinking: str = "no", *, kept: bool = False) -> AnswerParser:
    """``thinking``: no, yes, or opened by the prompt."""
    counter = itertools.count()
    found = format_named(form)
    assert found is not None
    think = None if thinking == "no" else ThinkParser(opened=thinking == "opened")
    return AnswerParser(think, found.parser(SCHEMAS, kept=kept), lambda: f"id{next(counter)}")


def read(parser: AnswerParser, parts: Sequence[str], reason: Any = "stop") -> list[AnswerPiece]:
    """The pieces of an answer whose deltas, of one token each, have these texts."""
    pieces, length = [], 0
    for part in parts:
        length += len(part)
        pieces.append(parser.push(TextDelta(text=part, token_ids=(1,), token_ends=(length,))))
    pieces.append(parser.push(TextDelta(finish_reason=reason)))
    return pieces


def answer(form: str, text: str, thinking: str = "no", *, kept: bool = False) -> Answer:
    """The whole answer, character by character."""
    return Answer.of(read(parser_of(form, thinking, kept=kept), list(text)))
