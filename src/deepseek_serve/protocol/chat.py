"""``/v1/chat/completions``: the request."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from deepseek.constraints import Constraint
from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.common import GenerationRequest, InvalidFieldError, NotYetError, Strict
from deepseek_serve.protocol.structured import ResponseFormat
from deepseek_serve.protocol.tools import (
    MAX_CALLS,
    MAX_TOOLS,
    CalledFunction,
    CallOfMessage,
    Function,
    FunctionChoiceField,
    Tool,
    ToolChoice,
    ToolChoiceField,
    Tooling,
    tooling,
)

MAX_MESSAGES = 10_000
MAX_TEMPLATE_KWARGS = 32
SERVER_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class Thinking(Strict):
    """DeepSeek's switch."""

    type: Literal["enabled", "disabled"]


class Message(Strict):
    """One turn. ``content`` may be a list of parts of type ``text``."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    prefix: bool | None = None
    reasoning_content: str | None = None  # of an earlier answer; the chat template decides what becomes of it
    tool_calls: list[CallOfMessage] | None = Field(default=None, max_length=MAX_CALLS)
    tool_call_id: str | None = None
    function_call: CalledFunction | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None

    @property
    def calls(self) -> bool:
        """Whether it makes calls, or brings the result of one."""
        return bool(self.tool_calls or self.function_call or self.role in ("tool", "function"))

    def plain(self, place: str, made: dict[str, str]) -> dict[str, Any]:
        """What the chat template gets.

        Args:
            made: id -> function of the calls made by earlier messages; this message's are added.

        Raises :class:`InvalidRequestError` for what it cannot be given.
        """
        if self.audio:
            raise NotYetError(f"{place}.audio")
        self._check_fields(place)
        role = {"developer": "system", "function": "tool"}.get(self.role, self.role)
        turn: dict[str, Any] = {"role": role, "content": self._text(f"{place}.content")}
        if self.role == "assistant":
            if self.reasoning_content is not None:
                turn["reasoning_content"] = self.reasoning_content
            if calls := self._calls(place):
                made.update((call.id, call.function.name) for call in calls)
                turn["tool_calls"] = [call.plain() for call in calls]
                turn["content"] = turn["content"] or None  # templates tell calls from words by it
        elif role == "tool":
            turn["tool_call_id"] = self._answered(place, made)
            turn["name"] = made[turn["tool_call_id"]]
        return turn

    def _check_fields(self, place: str) -> None:
        for field, role in (("tool_calls", "assistant"), ("function_call", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, field) and self.role != role:
                raise InvalidFieldError(f"{place}.{field}", f"only messages of role '{role}' have it")

    def _calls(self, place: str) -> list[CallOfMessage]:
        """The calls, one of the older form too: it has no id, so it gets its place."""
        if self.function_call is None:
            return self.tool_calls or []
        if self.tool_calls:
            raise InvalidFieldError(f"{place}.function_call", "not allowed together with 'tool_calls'")
        return [CallOfMessage(id=f"{place}.function_call", function=self.function_call)]

    def _answered(self, place: str, made: dict[str, str]) -> str:
        """The id of the call whose result this is."""
        if self.role == "function":
            calls = [call for call, name in made.items() if name == self.name]
            if not calls:
                raise InvalidFieldError(f"{place}.name", "no message before it calls this function")
            return calls[-1]
        if self.tool_call_id is None:
            raise InvalidFieldError(f"{place}.tool_call_id", "a message of role 'tool' must name the call it answers")
        if self.tool_call_id not in made:
            raise InvalidFieldError(
                f"{place}.tool_call_id",
                f"no message from the assistant before it makes a call {self.tool_call_id[:100]!r}",
            )
        return self.tool_call_id

    def _text(self, place: str) -> str:
        if isinstance(self.content, str):
            return self.content
        if self.content is None:
            if self.role == "assistant":
                return ""
            raise InvalidFieldError(place, "a message must have content")
        texts = []
        for index, part in enumerate(self.content):
            where, kind = f"{place}[{index}]", part.get("type")
            if kind not in ("text", "refusal"):
                if isinstance(kind, str):
                    raise NotYetError(f"{where}: {kind[:40]}")
                raise InvalidFieldError(where, "a part must have a type, such as 'text'")
            text = part.get(kind)
            if not isinstance(text, str):
                raise InvalidFieldError(f"{where}.{kind}", "it must be a string")
            texts.append(text)
        return "\n".join(texts)


class ChatRequest(GenerationRequest):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None

    response_format: ResponseFormat | None = None

    tools: list[Tool] | None = Field(default=None, max_length=MAX_TOOLS)
    tool_choice: ToolChoiceField | None = None
    parallel_tool_calls: bool | None = None
    functions: list[Function] | None = Field(default=None, max_length=MAX_TOOLS)
    function_call: FunctionChoiceField | None = None

    reasoning_effort: Effort | None = None
    thinking: Thinking | None = None
    chat_template_kwargs: dict[str, str | int | float | bool | None] | None = Field(
        default=None, max_length=MAX_TEMPLATE_KWARGS
    )

    # of no effect unless they ask for something
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    verbosity: Any = None

    LATER: ClassVar[dict[str, tuple[Any, ...]]] = {
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "verbosity": ("medium",),
    }

    def token_limit(self) -> int | None:
        """``max_completion_tokens``, or its older name."""
        new, old = self.max_completion_tokens, self.max_tokens
        if new is not None and old is not None and new != old:
            raise InvalidFieldError("max_tokens", "it differs from 'max_completion_tokens'; send only the latter")
        return new if new is not None else old

    def constraint(self) -> Constraint | None:
        """The form that the answer must have, named by one of two fields."""
        of_format = self.response_format.constraint() if self.response_format is not None else None
        if of_format is None:
            return super().constraint()
        if self.structured_outputs is not None:
            raise InvalidFieldError("structured_outputs", "not allowed together with 'response_format'")
        return of_format

    def logprob_count(self) -> int | None:
        """Rivals wanted per token, or None without log-probabilities."""
        if self.top_logprobs is not None and not self.logprobs:
            raise InvalidFieldError("top_logprobs", "only allowed when 'logprobs' is true")
        return (self.top_logprobs or 0) if self.logprobs else None

    def conversation(self) -> tuple[list[dict[str, Any]], bool, bool]:
        """As :func:`conversation`."""
        return conversation(self.messages, self.add_generation_prompt, self.continue_final_message)

    def tooling(self) -> Tooling:
        """The functions that may be called. Raises :class:`InvalidRequestError` for wishes that contradict each
        other."""
        if not self.functions and self.function_call is None:
            return tooling(self.tools or (), self.tool_choice, parallel=self.parallel_tool_calls)
        if self.tools or self.tool_choice is not None:
            raise InvalidFieldError("functions", "not allowed together with 'tools' and 'tool_choice'")
        tools = [Tool(type="function", function=function) for function in self.functions or ()]
        choice, asked = None, self.function_call
        if asked is not None:
            if (asked.mode is None) == (asked.name is None):
                raise InvalidFieldError("function_call", "it must be 'none', 'auto' or an object with a 'name'")
            named = {"type": "function", "function": {"name": asked.name}}
            choice = ToolChoice.model_validate({"type": asked.mode} if asked.mode is not None else named)
        return tooling(tools, choice, parallel=False, field="functions", choice_field="function_call")

    @property
    def thinks(self) -> bool | None:
        """Whether the model is asked to think before it answers; None leaves it to the model."""
        switch = None if self.thinking is None else self.thinking.type == "enabled"
        effort = None if self.reasoning_effort is None else self.reasoning_effort != "none"
        if switch is not None and effort is not None and switch != effort:
            raise InvalidFieldError("reasoning_effort", "it contradicts 'thinking'")
        return effort if switch is None else switch

    def template_kwargs(self) -> dict[str, Any]:
        """Variables for the chat template. Raises :class:`InvalidRequestError` for one that is the server's."""
        kwargs: dict[str, Any] = {}
        if self.thinks is not None:
            kwargs = {"enable_thinking": self.thinks, "thinking": self.thinks}  # Qwen's name, and DeepSeek's
        if self.reasoning_effort is not None:
            kwargs["reasoning_effort"] = self.reasoning_effort
        for name, value in (self.chat_template_kwargs or {}).items():
            if not name.isidentifier() or name in SERVER_VARIABLES:
                raise InvalidFieldError("chat_template_kwargs", f"{name[:40]!r} is no variable that a request can set")
            kwargs[name] = value
        return kwargs


def conversation(
    messages: list[Message], add_generation_prompt: bool | None, continue_final_message: bool | None
) -> tuple[list[dict[str, Any]], bool, bool]:
    """(messages for the template, add_generation_prompt, continue_final_message), with the API's defaults.

    Raises :class:`InvalidRequestError` for wishes that contradict each other.
    """
    for index, message in enumerate(messages):
        if message.prefix and (index < len(messages) - 1 or message.role != "assistant"):
            raise InvalidFieldError(
                f"messages[{index}].prefix", "only the last message, from the assistant, can be a prefix"
            )
    prefix = bool(messages[-1].prefix)
    continues = prefix if continue_final_message is None else continue_final_message
    if prefix and not continues:
        raise InvalidFieldError("continue_final_message", "the last message has 'prefix': true")
    if continues and add_generation_prompt:
        raise InvalidFieldError("add_generation_prompt", "not possible together with 'continue_final_message'")
    if continues and messages[-1].role != "assistant":
        raise InvalidRequestError(
            "Only a last message from the assistant can be continued.", param="messages", code="invalid_value"
        )
    made: dict[str, str] = {}
    plain = [message.plain(f"messages[{i}]", made) for i, message in enumerate(messages)]
    return plain, not continues and add_generation_prompt is not False, continues
