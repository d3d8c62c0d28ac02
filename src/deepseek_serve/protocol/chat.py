"""``/v1/chat/completions``: the request."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from deepseek.constraints import Constraint
from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.common import GenerationRequest, InvalidFieldError, NotYetError, Strict
from deepseek_serve.protocol.structured import ResponseFormat

MAX_MESSAGES = 10_000


class Message(Strict):
    """One turn. ``content`` may be a list of parts of type ``text``."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = None
    name: str | None = None
    prefix: bool | None = None
    reasoning_content: str | None = None  # of an earlier answer; not part of the prompt
    tool_calls: Any = None
    tool_call_id: str | None = None
    function_call: Any = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None

    def plain(self, place: str) -> dict[str, Any]:
        """What the chat template gets. Raises :class:`InvalidRequestError` for what it cannot be given yet."""
        if self.role in ("tool", "function"):
            raise NotYetError(f"{place}.role: {self.role}")
        for field in ("tool_calls", "function_call", "audio"):
            if getattr(self, field):
                raise NotYetError(f"{place}.{field}")
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": self._text(f"{place}.content")}

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

    # of no effect unless they ask for something
    tools: Any = None
    tool_choice: Any = None
    parallel_tool_calls: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: ResponseFormat | None = None
    modalities: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    reasoning_effort: Any = None
    thinking: Any = None
    verbosity: Any = None

    LATER: ClassVar[dict[str, tuple[Any, ...]]] = {
        "tools": ([],),
        "tool_choice": ("none", "auto"),
        "functions": ([],),
        "function_call": ("none", "auto"),
        "modalities": (["text"],),
        "audio": (),
        "prediction": (),
        "web_search_options": (),
        "reasoning_effort": ("none",),
        "thinking": ({"type": "disabled"},),
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
    plain = [message.plain(f"messages[{i}]") for i, message in enumerate(messages)]
    return plain, not continues and add_generation_prompt is not False, continues
