"""``/v1/messages`` and ``/v1/messages/count_tokens``: the requests."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from deepseek_serve.protocol.chat import MAX_MESSAGES
from deepseek_serve.protocol.common import MAX_USER_ID, AttentionErrorField, AttentionField, Strict

MIN_BUDGET = 1024  # tokens, Anthropic's


class CacheControl(Strict):
    """A mark where a prefix ends that is to be cached. All prefixes are, so it has no effect."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None


class TextBlock(Strict):
    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Any = None  # of an earlier answer; not part of the prompt


class ToolUseBlock(Strict):
    """A call that the assistant made."""

    type: Literal["tool_use"]
    id: str
    name: str
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: Any = None  # of an earlier answer; not part of the prompt


class ThinkingBlock(Strict):
    type: Literal["thinking"]
    thinking: str
    signature: str | None = None  # of an earlier answer; not checked


class RedactedThinkingBlock(Strict):
    """Thinking that only another server could read; not part of the prompt."""

    type: Literal["redacted_thinking"]
    data: str


class Other(BaseModel):
    """A block or tool of another type: refused by name, whatever it has."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    type: Any = None


def _kind(*known: str | None) -> Discriminator:
    """Tells blocks apart. Tags are in brackets, so that errors do not take them for fields (errors.py)."""

    def tag(value: Any) -> str:
        kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
        return f"[{kind or ''}]" if kind in known else "[other]"

    return Discriminator(tag)


ResultPart = Annotated[
    Annotated[TextBlock, Tag("[text]")] | Annotated[Other, Tag("[other]")],
    _kind("text"),
]


class ToolResultBlock(Strict):
    """What a call returned."""

    type: Literal["tool_result"]
    tool_use_id: str
    content: str | list[ResultPart] | None = None
    is_error: bool | None = None
    cache_control: CacheControl | None = None


Block = Annotated[
    Annotated[TextBlock, Tag("[text]")]
    | Annotated[ToolUseBlock, Tag("[tool_use]")]
    | Annotated[ToolResultBlock, Tag("[tool_result]")]
    | Annotated[ThinkingBlock, Tag("[thinking]")]
    | Annotated[RedactedThinkingBlock, Tag("[redacted_thinking]")]
    | Annotated[Other, Tag("[other]")],
    _kind("text", "tool_use", "tool_result", "thinking", "redacted_thinking"),
]


class InputMessage(Strict):
    """A part of a turn: neighbours of one role are one turn."""

    role: Literal["user", "assistant", "system"]
    content: str | list[Block]


class CustomTool(Strict):
    """A tool that the client runs."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    input_schema: dict[str, Any]
    description: str | None = None
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: CacheControl | None = None
    eager_input_streaming: bool | None = None  # arguments are always streamed as they come


Tool = Annotated[
    Annotated[CustomTool, Tag("[custom]")] | Annotated[CustomTool, Tag("[]")] | Annotated[Other, Tag("[other]")],
    _kind("custom", None),
]


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(Strict):
    """``adaptive`` leaves it to the model. ``display: omitted`` keeps the text back."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(default=None, ge=MIN_BUDGET)
    display: Literal["summarized", "omitted"] | None = None


class JsonFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    format: JsonFormat | None = None
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None


class Metadata(Strict):
    user_id: str | None = Field(default=None, max_length=MAX_USER_ID)


class CountRequest(Strict):
    """Body of ``POST /v1/messages/count_tokens``: what a prompt is made of."""

    model: str
    messages: list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES)
    system: str | list[TextBlock] | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None


class MessagesRequest(CountRequest):
    """Body of ``POST /v1/messages``."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    temperature: float | None = Field(default=None, ge=0, le=1)
    top_p: float | None = None
    top_k: int | None = Field(default=None, ge=0)
    stream: bool | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None

    # extensions
    attention: AttentionField = None
    attention_error: AttentionErrorField = None
