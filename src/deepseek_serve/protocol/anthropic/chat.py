"""A Messages request as a :class:`ChatRequest`, and the names of its errors back in Anthropic's words."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby
from typing import Any

import msgspec
import pydantic

from deepseek.errors import InvalidRequestError
from deepseek_serve.errors import api_error
from deepseek_serve.protocol.anthropic.request import (
    Block,
    CountRequest,
    InputMessage,
    MessagesRequest,
    Other,
    RedactedThinkingBlock,
    TextBlock,
    ThinkingBlock,
    Tool,
    ToolChoice,
    ToolResultBlock,
    ToolUseBlock,
)
from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.protocol.common import InvalidFieldError, NotYetError

Located = tuple[str, Block]
"""A block and its place in the request."""

NAMES = {
    "stop": "stop_sequences",
    "user_id": "metadata.user_id",
    "response_format": "output_config.format",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
}
TIERS = {"auto": "auto", "standard_only": "default"}
CHOICES = {"auto": "auto", "any": "required", "none": "none"}
MESSAGE = re.compile(r"messages\[(\d+)\].*")
FUNCTION = re.compile(r"(tools\[\d+\])\.function(\.parameters)?")


class Translation:
    """The chat that a Messages request asks for.

    Raises :class:`InvalidRequestError` for what cannot be one.

    Attributes:
        chat: the request.
    """

    def __init__(self, body: CountRequest) -> None:
        self._messages: list[dict[str, Any]] = []
        self._places: list[str] = []  # of each of these in the body
        self._unanswered: dict[str, str] = {}  # tool_use id -> its place
        if body.system:
            texts = body.system if isinstance(body.system, str) else _parts([block.text for block in body.system])
            self._add("system", {"role": "system", "content": texts})
        for role, blocks in _turns(body.messages):
            self._add_turn(role, blocks)
        self._end_with_a_prefix()
        fields = _fields(body) | (_options(body) if isinstance(body, MessagesRequest) else {})
        with self.errors():
            self.chat = ChatRequest.model_validate({"messages": self._messages} | fields)

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Errors in here name the fields that the client has sent."""
        try:
            yield
        except (InvalidRequestError, pydantic.ValidationError) as error:
            told = api_error(error).body
            if told.param is None:
                raise InvalidRequestError(told.message, code=told.code) from error
            param = self._name(told.param)
            message = re.sub(rf"(?<!\w){re.escape(told.param)}(?!\w)", lambda _: param, told.message)
            raise InvalidRequestError(message, param=param, code=told.code) from error

    def _name(self, param: str) -> str:
        if (found := MESSAGE.fullmatch(param)) and int(found[1]) < len(self._places):
            return self._places[int(found[1])]
        param = FUNCTION.sub(lambda match: match[1] + (".input_schema" if match[2] else ""), param)
        return NAMES.get(param, param)

    def _add(self, place: str, message: dict[str, Any]) -> None:
        self._messages.append(message)
        self._places.append(place)

    def _add_turn(self, role: str, blocks: list[Located]) -> None:
        if self._unanswered:
            self._check_results(blocks)
        if role == "assistant":
            self._add_assistant(blocks)
            return
        for is_result, group in groupby(blocks, key=lambda located: isinstance(located[1], ToolResultBlock)):
            if is_result and role == "user":
                for place, block in group:
                    self._add_result(place, block)
                continue
            texts = list(group)
            for place, block in texts:
                if not isinstance(block, TextBlock):
                    raise _misplaced(place, block, role)
            content = _parts([block.text for _, block in texts if isinstance(block, TextBlock)])
            self._add(texts[0][0], {"role": role, "content": content})

    def _add_result(self, place: str, block: Block) -> None:
        assert isinstance(block, ToolResultBlock)
        if self._unanswered.pop(block.tool_use_id, None) is None:
            problem = f"the turn before it has no tool_use block with the id {block.tool_use_id[:100]!r}"
            raise InvalidFieldError(f"{place}.tool_use_id", problem)
        texts = [block.content] if isinstance(block.content, str) else []
        for index, part in enumerate([] if isinstance(block.content, str) else block.content or []):
            if not isinstance(part, TextBlock):
                raise _misplaced(f"{place}.content[{index}]", part, "tool_result")
            texts.append(part.text)
        content = "\n".join(texts)
        if block.is_error:  # chats have no field for it, and the model must know
            content = f"Error: {content}"
        self._add(place, {"role": "tool", "tool_call_id": block.tool_use_id, "content": content})

    def _add_assistant(self, blocks: list[Located]) -> None:
        texts, thoughts, calls = [], [], []
        for place, block in blocks:
            match block:
                case TextBlock():
                    texts.append(block.text)
                case ThinkingBlock():
                    thoughts.append(block.thinking)
                case RedactedThinkingBlock():
                    pass  # another server's secret
                case ToolUseBlock():
                    if block.id in self._unanswered:
                        raise InvalidFieldError(f"{place}.id", "another tool_use block has the same id")
                    self._unanswered[block.id] = place
                    calls.append(_call(block))
                case _:
                    raise _misplaced(place, block, "assistant")
        message: dict[str, Any] = {"role": "assistant", "content": _parts(texts)}
        if thoughts:
            message["reasoning_content"] = "\n".join(thoughts)
        if calls:
            message["tool_calls"] = calls
        self._add(blocks[0][0], message)

    def _check_results(self, blocks: list[Located]) -> None:
        """All calls of a turn must have their results in the next one."""
        given = {block.tool_use_id for _, block in blocks if isinstance(block, ToolResultBlock)}
        for call, place in self._unanswered.items():
            if call not in given:
                raise InvalidFieldError(place, "the next turn has no tool_result block for it")

    def _end_with_a_prefix(self) -> None:
        """A last turn of the assistant's is continued."""
        if self._unanswered:
            place = next(iter(self._unanswered.values()))
            raise InvalidFieldError(place, "a tool_result block must follow in the next turn")
        last = self._messages[-1]
        if last["role"] == "assistant":
            last["prefix"] = True


def _turns(messages: list[InputMessage]) -> Iterator[tuple[str, list[Located]]]:
    """Role and blocks of each turn: neighbours of one role are one."""
    for role, group in groupby(enumerate(messages), key=lambda pair: pair[1].role):
        yield role, [located for index, message in group for located in _blocks(message, f"messages[{index}].content")]


def _blocks(message: InputMessage, place: str) -> list[Located]:
    if isinstance(message.content, str):
        return [(place, TextBlock(type="text", text=message.content))]
    if not message.content:
        raise InvalidFieldError(place, "a message must have content")
    return [(f"{place}[{index}]", block) for index, block in enumerate(message.content)]


def _misplaced(place: str, block: Any, where: str) -> InvalidRequestError:
    if not isinstance(block, Other):
        return InvalidFieldError(f"{place}.type", f"a block of this type cannot be in a turn of role '{where}'")
    if isinstance(block.type, str):
        return NotYetError(f"{place}: {block.type[:40]}")
    return InvalidFieldError(f"{place}.type", "a block must have a type, such as 'text'")


def _parts(texts: list[str]) -> str | list[dict[str, str]]:
    return "".join(texts) if len(texts) < 2 else [{"type": "text", "text": text} for text in texts]


def _call(block: ToolUseBlock) -> dict[str, Any]:
    arguments = msgspec.json.encode(block.input).decode()
    return {"id": block.id, "type": "function", "function": {"name": block.name, "arguments": arguments}}


def _fields(body: CountRequest) -> dict[str, Any]:
    """What prompts are made of, but for the messages."""
    fields: dict[str, Any] = {"model": body.model}
    if body.tools:
        fields["tools"] = [_tool(tool, f"tools[{index}]") for index, tool in enumerate(body.tools)]
    if body.tool_choice is not None:
        fields |= _choice(body.tool_choice)
    if body.thinking is not None and body.thinking.type != "adaptive":
        fields["thinking"] = {"type": body.thinking.type}
    if body.output_config is not None and body.output_config.effort is not None:
        # not the chat's own field, which would switch thinking on
        fields["chat_template_kwargs"] = {"reasoning_effort": body.output_config.effort}
    return fields


def _options(body: MessagesRequest) -> dict[str, Any]:
    """How the answer is to be."""
    _check_budget(body)
    wanted = body.output_config.format if body.output_config is not None else None
    schema = {"name": "output", "schema": wanted.schema_} if wanted is not None else None
    options = {
        "max_tokens": body.max_tokens,
        "temperature": body.temperature,
        "top_p": body.top_p,
        "top_k": body.top_k,
        "stop": body.stop_sequences,
        "stream": body.stream,
        "response_format": {"type": "json_schema", "json_schema": schema} if schema is not None else None,
        "user_id": body.metadata.user_id if body.metadata is not None else None,
        "service_tier": TIERS[body.service_tier] if body.service_tier is not None else None,
        "attention": body.attention,
        "attention_error": body.attention_error,
    }
    return {name: value for name, value in options.items() if value is not None}


def _tool(tool: Tool, place: str) -> dict[str, Any]:
    if isinstance(tool, Other):
        kind = tool.type if isinstance(tool.type, str) else repr(tool.type)
        raise NotYetError(f"{place}: {kind[:40]}")
    function: dict[str, Any] = {"name": tool.name, "parameters": tool.input_schema}
    if tool.description is not None:
        function["description"] = tool.description
    if tool.strict is not None:
        function["strict"] = tool.strict
    return {"type": "function", "function": function}


def _choice(choice: ToolChoice) -> dict[str, Any]:
    if (choice.name is not None) != (choice.type == "tool"):
        wanted = "required" if choice.name is None else "not allowed"
        raise InvalidFieldError("tool_choice.name", f"it is {wanted} with type '{choice.type}'")
    named = {"type": "function", "function": {"name": choice.name}}
    fields: dict[str, Any] = {"tool_choice": CHOICES.get(choice.type, named)}
    if choice.disable_parallel_tool_use:
        fields["parallel_tool_calls"] = False
    return fields


def _check_budget(body: MessagesRequest) -> None:
    """Thinking must leave tokens for the answer. Nothing else is made of the budget."""
    thinking = body.thinking
    if thinking is None:
        return
    if (thinking.budget_tokens is not None) != (thinking.type == "enabled"):
        wanted = "required" if thinking.type == "enabled" else "not allowed"
        raise InvalidFieldError("thinking.budget_tokens", f"it is {wanted} with type '{thinking.type}'")
    if thinking.budget_tokens is not None and thinking.budget_tokens >= body.max_tokens:
        raise InvalidFieldError("thinking.budget_tokens", "it must be less than 'max_tokens'")
