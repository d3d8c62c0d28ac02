"""``/v1/responses``: the response, its output, and the events that it is streamed in."""

from __future__ import annotations

from typing import Any

import msgspec

from deepseek_serve.protocol.responses import ContentLogprob


class OutputText(msgspec.Struct, frozen=True, tag_field="type", tag="output_text"):
    text: str
    annotations: tuple[()] = ()
    logprobs: list[ContentLogprob] = []


class ReasoningText(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning_text"):
    text: str


Part = OutputText | ReasoningText


class OutputMessage(msgspec.Struct, frozen=True, tag_field="type", tag="message"):
    id: str
    status: str
    content: list[OutputText]
    role: str = "assistant"


class OutputReasoning(msgspec.Struct, frozen=True, tag_field="type", tag="reasoning"):
    id: str
    status: str
    content: list[ReasoningText]
    summary: tuple[()] = ()


class OutputCall(msgspec.Struct, frozen=True, tag_field="type", tag="function_call"):
    id: str
    status: str
    call_id: str
    name: str
    arguments: str


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


# -- events -----------------------------------------------------------------------------------------------------


class _Event(msgspec.Struct, tag_field="type", kw_only=True):
    """``sequence_number`` is the event's place in the stream, from 0; known when it is sent."""

    sequence_number: int = 0


class _Lifecycle(_Event):
    """The response changes its state."""

    response: ResponseObject


class Created(_Lifecycle, tag="response.created"): ...


class Queued(_Lifecycle, tag="response.queued"): ...


class InProgress(_Lifecycle, tag="response.in_progress"): ...


class Completed(_Lifecycle, tag="response.completed"): ...


class IncompleteEnd(_Lifecycle, tag="response.incomplete"): ...


class Failed(_Lifecycle, tag="response.failed"): ...


class _OfItem(_Event):
    output_index: int
    item: OutputItem


class ItemAdded(_OfItem, tag="response.output_item.added"): ...


class ItemDone(_OfItem, tag="response.output_item.done"): ...


class _OfPart(_Event):
    """Every item has one part at most."""

    item_id: str
    output_index: int
    part: Part
    content_index: int = 0


class PartAdded(_OfPart, tag="response.content_part.added"): ...


class PartDone(_OfPart, tag="response.content_part.done"): ...


class TextDelta(_Event, tag="response.output_text.delta"):
    item_id: str
    output_index: int
    delta: str
    logprobs: list[ContentLogprob] = []
    content_index: int = 0


class TextDone(_Event, tag="response.output_text.done"):
    item_id: str
    output_index: int
    text: str
    logprobs: list[ContentLogprob] = []
    content_index: int = 0


class ReasoningDelta(_Event, tag="response.reasoning_text.delta"):
    item_id: str
    output_index: int
    delta: str
    content_index: int = 0


class ReasoningDone(_Event, tag="response.reasoning_text.done"):
    item_id: str
    output_index: int
    text: str
    content_index: int = 0


class ArgumentsDelta(_Event, tag="response.function_call_arguments.delta"):
    item_id: str
    output_index: int
    delta: str


class ArgumentsDone(_Event, tag="response.function_call_arguments.done"):
    item_id: str
    output_index: int
    name: str
    arguments: str


class ErrorEvent(_Event, tag="error"):
    """The stream cannot go on."""

    message: str
    code: str | None
    param: str | None


OutputEvent = (
    ItemAdded
    | ItemDone
    | PartAdded
    | PartDone
    | TextDelta
    | TextDone
    | ReasoningDelta
    | ReasoningDone
    | ArgumentsDelta
    | ArgumentsDone
)
Event = Created | Queued | InProgress | Completed | IncompleteEnd | Failed | OutputEvent | ErrorEvent
