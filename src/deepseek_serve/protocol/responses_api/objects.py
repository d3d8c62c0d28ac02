"""``/v1/responses``: the response, its output, and the events that it is streamed in."""

from __future__ import annotations

from typing import Any

import msgspec

from deepseek_serve.protocol.responses import ContentLogprob


class OutputText(msgspec.Struct, frozen=True):
    text: str
    annotations: tuple[()] = ()
    logprobs: list[ContentLogprob] = []
    type: str = "output_text"


class ReasoningText(msgspec.Struct, frozen=True):
    text: str
    type: str = "reasoning_text"


Part = OutputText | ReasoningText


class OutputMessage(msgspec.Struct, frozen=True):
    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"
    type: str = "message"


class OutputReasoning(msgspec.Struct, frozen=True):
    id: str
    status: str
    content: list[ReasoningText]
    summary: tuple[()] = ()
    type: str = "reasoning"


class OutputCall(msgspec.Struct, frozen=True):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str
    type: str = "function_call"


OutputItem = OutputMessage | OutputReasoning | OutputCall


class InputDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True):
    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseFailure(msgspec.Struct, frozen=True):
    """``error`` of a response that failed."""

    code: str
    message: str


class Incomplete(msgspec.Struct, frozen=True):
    """``incomplete_details``."""

    reason: str


class ResponseObject(msgspec.Struct, frozen=True, kw_only=True):
    """A response. What was asked for is in it as it holds, defaults included."""

    id: str
    created_at: int
    model: str
    status: str
    output: list[OutputItem]
    background: bool
    store: bool
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str
    temperature: float
    text: dict[str, Any]
    tool_choice: Any
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: str
    user: str | None
    completed_at: int | None = None
    error: ResponseFailure | None = None
    incomplete_details: Incomplete | None = None
    usage: ResponseUsage | None = None
    object: str = "response"


class InputTokens(msgspec.Struct, frozen=True):
    input_tokens: int
    object: str = "response.input_tokens"


# -- events; `type` and `sequence_number` are added when they are written ---------------------------------------


class Lifecycle(msgspec.Struct, frozen=True):
    """The response changes its state."""

    response: ResponseObject


class ItemEvent(msgspec.Struct, frozen=True):
    """An item of the output begins, or is whole."""

    output_index: int
    item: OutputItem


class PartEvent(msgspec.Struct, frozen=True):
    """A part of an item begins, or is whole."""

    item_id: str
    output_index: int
    part: Part
    content_index: int = 0


class TextDelta(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    delta: str
    logprobs: list[ContentLogprob] = []
    content_index: int = 0


class TextDone(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    text: str
    logprobs: list[ContentLogprob] = []
    content_index: int = 0


class ReasoningDelta(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    delta: str
    content_index: int = 0


class ReasoningDone(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    text: str
    content_index: int = 0


class ArgumentsDelta(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(msgspec.Struct, frozen=True):
    item_id: str
    output_index: int
    name: str
    arguments: str


class ErrorEvent(msgspec.Struct, frozen=True):
    """The stream cannot go on."""

    message: str
    code: str | None
    param: str | None


EventBody = (
    Lifecycle
    | ItemEvent
    | PartEvent
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
    | ErrorEvent
)


class Event(msgspec.Struct, frozen=True):
    """One event of a stream.

    Attributes:
        name: its ``type``.
        number: its place in the stream, from 0.
        body: the rest.
    """

    name: str
    number: int
    body: EventBody

    def encode(self) -> bytes:
        """The event as it is sent."""
        head = {"type": self.name, "sequence_number": self.number}
        document = msgspec.json.encode(head | {name: getattr(self.body, name) for name in self.body.__struct_fields__})
        return b"event: " + self.name.encode() + b"\ndata: " + document + b"\n\n"
