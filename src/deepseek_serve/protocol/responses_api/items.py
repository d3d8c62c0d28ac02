"""The items of a conversation, as clients send them and as answers are made of them."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from deepseek_serve.protocol.common import InvalidFieldError, NotYetError, Strict
from deepseek_serve.protocol.tools import MAX_CALL_ID

Status = Literal["in_progress", "completed", "incomplete"]
MAX_ID = 512


class TextPart(Strict):
    """Words of anybody; what an answer says of its words beside them is accepted without effect."""

    type: Literal["input_text", "output_text", "text", "refusal"]
    text: str | None = None
    refusal: str | None = None
    annotations: Any = None
    logprobs: Any = None
    prompt_cache_breakpoint: Any = None

    def words(self, place: str) -> str:
        field = "refusal" if self.type == "refusal" else "text"
        words: str | None = getattr(self, field)
        if words is None:
            raise InvalidFieldError(f"{place}.{field}", "it must be a string")
        return words


class ReasoningPart(Strict):
    type: Literal["reasoning_text", "summary_text"]
    text: str


class MessageItem(Strict):
    """Something that somebody says."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[TextPart]
    id: str | None = Field(default=None, max_length=MAX_ID)
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = None


class CallItem(Strict):
    """A function call that an earlier answer made."""

    type: Literal["function_call"]
    call_id: str = Field(min_length=1, max_length=MAX_CALL_ID)
    name: str = Field(min_length=1, max_length=256)
    arguments: str
    id: str | None = Field(default=None, max_length=MAX_ID)
    status: Status | None = None


class CallOutputItem(Strict):
    """What a called function returned."""

    type: Literal["function_call_output"]
    call_id: str = Field(min_length=1, max_length=MAX_CALL_ID)
    output: str | list[TextPart]
    id: str | None = Field(default=None, max_length=MAX_ID)
    status: Status | None = None


class ReasoningItem(Strict):
    """What an earlier answer thought; the chat template decides what becomes of it."""

    type: Literal["reasoning"]
    summary: list[ReasoningPart] = Field(default_factory=list)
    content: list[ReasoningPart] | None = None
    id: str | None = Field(default=None, max_length=MAX_ID)
    status: Status | None = None
    encrypted_content: None = None

    @property
    def thoughts(self) -> str:
        return "\n".join(part.text for part in self.content or self.summary)


def _tag(item: Any) -> str | None:
    kind = item.get("type", "message") if isinstance(item, dict) else getattr(item, "type", None)
    return f"[{kind}]"  # the brackets keep it out of the paths of errors


Item = Annotated[
    Annotated[MessageItem, Tag("[message]")]
    | Annotated[CallItem, Tag("[function_call]")]
    | Annotated[CallOutputItem, Tag("[function_call_output]")]
    | Annotated[ReasoningItem, Tag("[reasoning]")],
    Discriminator(_tag),
]
PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
PARTS = frozenset({"input_text", "output_text", "text", "refusal"})


def check_kinds(items: Sequence[Any], place: str) -> None:
    """Refuse items and parts of kinds that are not known here, by name. What else is wrong is not looked for.

    Raises :class:`InvalidRequestError`.
    """
    if not items:
        raise InvalidFieldError(place, "it must not be empty")
    for index, item in enumerate(items):
        where = f"{place}[{index}]"
        if not isinstance(item, dict):
            raise InvalidFieldError(where, "it must be an object")
        kind = item.get("type", "message")
        if not isinstance(kind, str) or kind not in PREFIXES:
            raise NotYetError(f"{where}: {str(kind)[:40]}")
        for field in ("content", "output") if kind != "reasoning" else ():
            parts = item.get(field)
            for number, part in enumerate(parts if isinstance(parts, list) else ()):
                name = part.get("type") if isinstance(part, dict) else None
                if isinstance(name, str) and name not in PARTS:
                    raise NotYetError(f"{where}.{field}[{number}]: {name[:40]}")


def new_id(kind: str) -> str:
    """An id for an item of this type."""
    return f"{PREFIXES[kind]}_{secrets.token_hex(16)}"


def words_of(content: str | Sequence[TextPart], place: str) -> str:
    """The text of a content. Raises :class:`InvalidRequestError` for a part without its words."""
    if isinstance(content, str):
        return content
    return "\n".join(part.words(f"{place}[{i}]") for i, part in enumerate(content))
