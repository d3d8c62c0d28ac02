"""``/v1/responses``: the request."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
from pydantic import Field, StringConstraints

from deepseek_serve.protocol.chat import MAX_TEMPLATE_KWARGS, Effort
from deepseek_serve.protocol.common import (
    MAX_USER_ID,
    AttentionErrorField,
    AttentionField,
    InvalidFieldError,
    NotYetError,
    Strict,
)
from deepseek_serve.protocol.responses_api.items import Item, check_kinds
from deepseek_serve.protocol.structured import JsonSchema, ResponseFormat
from deepseek_serve.protocol.tools import MAX_TOOLS, NAME, AllowedTools, Function, FunctionName, NamedTool
from deepseek_serve.protocol.tools import Tool as ChatTool
from deepseek_serve.protocol.tools import ToolChoice as ChatToolChoice

MAX_ITEMS = 10_000
MAX_RIVALS = 20
Key = Annotated[str, StringConstraints(max_length=64)]
Value = Annotated[str, StringConstraints(max_length=512)]
Includable = Literal[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    "reasoning.encrypted_content",
    "message.output_text.logprobs",
]


class TextFormat(Strict):
    """The form of the answer. A schema is kept to whatever ``strict`` says."""

    type: Literal["text", "json_object", "json_schema"]
    name: str | None = Field(default=None, pattern=NAME)
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None

    def chat(self) -> ResponseFormat:
        """The same in a chat's words. Raises :class:`InvalidRequestError`."""
        given = [name for name in ("name", "description", "schema", "strict") if self._has(name)]
        if self.type != "json_schema":
            if given:
                raise InvalidFieldError(f"text.format.{given[0]}", f"it is not allowed with type '{self.type}'")
            return ResponseFormat(type=self.type)
        for name in ("name", "schema"):
            if name not in given:
                raise InvalidFieldError(f"text.format.{name}", "it is required with type 'json_schema'")
        schema = JsonSchema.model_validate({"name": self.name, "schema": self.schema_})
        return ResponseFormat(type="json_schema", json_schema=schema)

    def _has(self, name: str) -> bool:
        return (self.schema_ if name == "schema" else getattr(self, name)) is not None


class TextConfig(Strict):
    format: TextFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None

    @pydantic.model_validator(mode="after")
    def _one_verbosity(self) -> Self:
        if self.verbosity not in (None, "medium"):
            raise NotYetError("text.verbosity")
        return self


class FunctionTool(Function):
    """A function, without the object around it that chats have."""

    type: Literal["function"]

    def chat(self) -> ChatTool:
        """The same in a chat's words."""
        return ChatTool(type="function", function=Function.model_validate(self.model_dump(exclude={"type"})))


class ChoosableTool(Strict):
    type: Literal["function"]
    name: str = Field(pattern=NAME)

    def chat(self) -> NamedTool:
        """The same in a chat's words."""
        return NamedTool(type="function", function=FunctionName(name=self.name))


class ToolChoice(Strict):
    """A function that must be called, or the tools that may or must be."""

    type: Literal["function", "allowed_tools"]
    name: str | None = Field(default=None, pattern=NAME)
    mode: Literal["auto", "required"] | None = None
    tools: list[ChoosableTool] | None = Field(default=None, min_length=1, max_length=MAX_TOOLS)

    def chat(self) -> ChatToolChoice:
        """The same in a chat's words. Raises :class:`InvalidRequestError`."""
        wanted = {"function": ("name",), "allowed_tools": ("mode", "tools")}[self.type]
        for field in ("name", "mode", "tools"):
            if (getattr(self, field) is not None) != (field in wanted):
                problem = "is required" if field in wanted else "is not allowed"
                raise InvalidFieldError(f"tool_choice.{field}", f"it {problem} with type '{self.type}'")
        if self.name is not None:
            return ChatToolChoice(type="function", function=FunctionName(name=self.name))
        assert self.mode is not None and self.tools is not None
        allowed = AllowedTools(mode=self.mode, tools=[tool.chat() for tool in self.tools])
        return ChatToolChoice(type="allowed_tools", allowed_tools=allowed)


class Reasoning(Strict):
    """How much the model thinks. What it thought is given whole, so that there is never a summary."""

    effort: Effort | None = None
    summary: Literal["auto", "concise", "detailed"] | None = None
    generate_summary: Literal["auto", "concise", "detailed"] | None = None


class StreamOptions(Strict):
    include_obfuscation: bool | None = None  # pads events against traffic analysis; accepted, not done


class InputRequest(Strict):
    """What a response is made from, and the body of ``POST /v1/responses/input_tokens``."""

    model: str
    input: str | Annotated[list[Item], Field(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    previous_response_id: str | None = None
    text: TextConfig | None = None
    tools: list[FunctionTool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    truncation: Literal["auto", "disabled"] | None = None
    conversation: None = None

    # extensions
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = Field(
        default=None, max_length=MAX_TEMPLATE_KWARGS
    )

    LATER: ClassVar[tuple[str, ...]] = ("conversation",)  # fields that are refused, by name, until they mean something

    @pydantic.model_validator(mode="before")
    @classmethod
    def _refuse_what_comes_later(cls, body: Any) -> Any:
        if isinstance(body, dict):
            for name in cls.LATER:
                if body.get(name) is not None:
                    raise NotYetError(name)
            for index, tool in enumerate(body["tools"] if isinstance(body.get("tools"), list) else ()):
                kind = tool.get("type") if isinstance(tool, dict) else None
                if isinstance(kind, str) and kind != "function":
                    raise NotYetError(f"tools[{index}]: {kind[:40]}")
            if isinstance(body.get("input"), list):
                check_kinds(body["input"], "input")
        return body


class ResponseRequest(InputRequest):
    """Body of ``POST /v1/responses``."""

    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    include: list[Includable] | None = None
    max_output_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_RIVALS)
    metadata: Annotated[dict[Key, Value], Field(max_length=16)] | None = None
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None

    # extensions
    user_id: str | None = Field(default=None, max_length=MAX_USER_ID)
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    attention: AttentionField = None
    attention_error: AttentionErrorField = None

    # accepted without effect
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Any = None
    max_tool_calls: int | None = None  # of built-in tools

    prompt: None = None
    moderation: None = None
    context_management: None = None

    LATER: ClassVar[tuple[str, ...]] = ("conversation", "prompt", "moderation", "context_management")

    @pydantic.model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidFieldError("stream_options", "only allowed when 'stream' is true")
        if self.background and self.store is False:
            raise InvalidFieldError("background", "not allowed when 'store' is false: the answer would be nowhere")
        return self

    @property
    def stored(self) -> bool:
        """Whether the response is kept; it is unless the client says otherwise."""
        return self.store is not False

    @property
    def rivals(self) -> int | None:
        """Rivals wanted per token, or None without log-probabilities."""
        if self.top_logprobs or "message.output_text.logprobs" in (self.include or ()):
            return self.top_logprobs or 0
        return None
