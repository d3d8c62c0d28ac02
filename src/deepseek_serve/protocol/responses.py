"""What the server answers: msgspec structs, encoded without any validation on the way out."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from deepseek_serve.models import Progress


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class Usage(msgspec.Struct):
    """Token counts; the ``prompt_cache_*`` fields are DeepSeek's."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails
    prompt_cache_hit_tokens: int
    prompt_cache_miss_tokens: int


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[ContentLogprob]
    refusal: None = None


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    id: str
    function: FunctionCall
    type: str = "function"


class ChatMessage(msgspec.Struct):
    """``reasoning_content`` is DeepSeek's; ``content`` is null in an answer of tool calls alone. ``function_call``
    answers requests with ``functions``."""

    content: str | None
    role: str = "assistant"
    refusal: None = None
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None


class ChatCompletion(msgspec.Struct):
    id: str
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    service_tier: str | UnsetType = UNSET
    object: str = "chat.completion"


class FunctionDelta(msgspec.Struct):
    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct):
    """A piece of a call: ``id``, ``type`` and the function's name come with its first one."""

    index: int
    function: FunctionDelta
    id: str | UnsetType = UNSET
    type: str | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionDelta | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct):
    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None


class ChatChunk(msgspec.Struct):
    """One event of a stream; ``usage`` is null but in the last one, and absent if nobody asked for it."""

    id: str
    created: int
    model: str
    choices: list[ChatChunkChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
    object: str = "chat.completion.chunk"


class TextLogprobs(msgspec.Struct):
    """The shape of ``/v1/completions``: parallel lists."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class TextChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: TextLogprobs | None = None
    finish_reason: str | None = None


class TextCompletion(msgspec.Struct):
    """An answer of ``/v1/completions``, and each event of its stream too."""

    id: str
    created: int
    model: str
    choices: list[TextChoice]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    service_tier: str | UnsetType = UNSET
    object: str = "text_completion"


class ModelCard(msgspec.Struct):
    """One served model. ``root`` is the real one's name, ``error`` why it cannot be used. An adapter has the model it
    belongs to as ``parent``, and the name of its folder as ``root``."""

    id: str
    created: int
    root: str
    max_model_len: int | None
    owned_by: str = "deepseek"
    object: str = "model"
    parent: str | None = None
    status: str = "ready"
    progress: Progress | None = None
    error: str | None = None


class ModelUnloaded(msgspec.Struct):
    """Answer of ``/v1/models/unload``, when its memory is free."""

    id: str
    status: str = "unloaded"
    object: str = "model"


class ModelList(msgspec.Struct):
    data: list[ModelCard]
    object: str = "list"
