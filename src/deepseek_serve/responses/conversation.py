"""From a request and what went before it to the chat that the model answers."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
from pydantic import TypeAdapter

from deepseek.errors import ChatTemplateError, ContextLengthError, InvalidRequestError
from deepseek_serve.errors import ApiError
from deepseek_serve.protocol.chat import MAX_MESSAGES, ChatRequest, Message
from deepseek_serve.protocol.common import InvalidFieldError
from deepseek_serve.protocol.responses_api.items import CallItem, CallOutputItem, Item, MessageItem, new_id, words_of
from deepseek_serve.protocol.responses_api.request import InputRequest, ResponseRequest, ToolChoice
from deepseek_serve.protocol.tools import CalledFunction, CallOfMessage
from deepseek_serve.protocol.tools import ToolChoice as ChatToolChoice
from deepseek_serve.store.responses import ResponseRecord, ResponseStore

MAX_DEPTH = 500  # responses that one may stand upon
ALIKE = (  # fields that a chat has too
    *("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed"),
    *("attention", "attention_error", "user_id", "service_tier"),
)
_ITEMS: TypeAdapter[list[Item]] = TypeAdapter(list[Item])

# What a chat calls a field -> what it is called here.
FIELDS = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "response_format": "text.format",
    "reasoning_effort": "reasoning.effort",
    "logprobs": "top_logprobs",
}


async def earlier_items(store: ResponseStore, tenant: str, previous_id: str | None) -> list[Item]:
    """The items of the conversation that a request continues, oldest first.

    Raises :class:`ApiError` 404 for a response that is not there (or is another key's), 409 for one that has not
    ended, :class:`InvalidRequestError`, :class:`StoreError`.
    """
    if previous_id is None:
        return []
    try:
        chain = await store.chain(tenant, previous_id, limit=MAX_DEPTH)
    except ApiError as error:
        if error.status != 404:
            raise
        raise ApiError(
            404,
            f"No response to continue: {error} It may have been deleted, or have expired.",
            param="previous_response_id",
            code="previous_response_not_found",
        ) from error
    if chain[0].previous_id is not None:
        raise InvalidFieldError("previous_response_id", f"the conversation has more than {MAX_DEPTH} responses")
    return [item for record in chain for item in _items_of(record)]


def _items_of(record: ResponseRecord) -> list[Item]:
    if record.status in ("queued", "in_progress"):
        raise ApiError(
            409,
            f"The response {record.id!r} is still {record.status}. Wait for its end before it is continued.",
            param="previous_response_id",
            code="response_in_progress",
        )
    if record.status == "failed":
        raise InvalidFieldError(
            "previous_response_id", f"the response {record.id!r} failed; continue the one before it, or ask again"
        )
    output = msgspec.json.decode(record.body)["output"]
    whole = [item for item in output if item["type"] != "function_call" or item["status"] == "completed"]
    return _ITEMS.validate_python([*msgspec.json.decode(record.input_items), *whole], strict=True)


def input_items(body: InputRequest) -> list[dict[str, Any]]:
    """The request's own items, complete, as they are stored and listed: each with an id of its own."""
    if isinstance(body.input, str):
        parts = [{"type": "input_text", "text": body.input}]
        return [{"type": "message", "role": "user", "content": parts, "status": "completed", "id": new_id("message")}]
    items: list[dict[str, Any]] = []
    seen: set[str] = set()
    for item in body.input:
        plain = item.model_dump(exclude_unset=True)
        if isinstance(item, MessageItem) and isinstance(item.content, str):
            kind = "output_text" if item.role == "assistant" else "input_text"
            plain["content"] = [{"type": kind, "text": item.content}]
        given = {name: value for name, value in plain.items() if value is not None}
        if item.id is None or item.id in seen:
            given["id"] = new_id(item.type)
        seen.add(given["id"])
        items.append({"type": item.type, "status": "completed"} | given)
    return items


def chat_request(body: InputRequest, earlier: Sequence[Item]) -> ChatRequest:
    """The chat that ``body`` asks for. Raises :class:`InvalidRequestError`."""
    own: Sequence[Item] = (
        body.input if not isinstance(body.input, str) else [MessageItem(role="user", content=body.input)]
    )
    messages = messages_of(earlier, own, body.instructions)
    if len(messages) > MAX_MESSAGES:
        raise InvalidFieldError("input", f"the conversation has more than {MAX_MESSAGES} messages")
    text, choice = body.text, body.tool_choice
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": messages,
        "response_format": text.format.chat() if text is not None and text.format is not None else None,
        "tools": [tool.chat() for tool in body.tools] if body.tools else None,
        "tool_choice": choice.chat() if isinstance(choice, ToolChoice) else choice and ChatToolChoice(type=choice),
        "parallel_tool_calls": body.parallel_tool_calls,
        "reasoning_effort": body.reasoning.effort if body.reasoning is not None else None,
        "chat_template_kwargs": body.chat_template_kwargs,
    }
    if isinstance(body, ResponseRequest):
        fields |= {
            "max_completion_tokens": body.max_output_tokens,
            "logprobs": True if body.rivals is not None else None,
            "top_logprobs": body.rivals,
        }
        fields |= {name: getattr(body, name) for name in ALIKE}
    return ChatRequest(**fields)


def messages_of(earlier: Sequence[Item], own: Sequence[Item], instructions: str | None) -> list[Message]:
    """The turns of a conversation: what one answer thought, said and called is one turn.

    Raises :class:`InvalidRequestError`, with the place among ``own``.
    """
    turns: list[dict[str, Any]] = []
    if instructions is not None:
        turns.append({"role": "system", "content": instructions})
    called: set[str] = set()
    for index, item in enumerate([*earlier, *own]):
        place = f"input[{index - len(earlier)}]"
        match item:
            case MessageItem(role="assistant"):
                turn = _open_turn(turns, "content", "tool_calls")
                turn["content"] = words_of(item.content, f"{place}.content")
            case MessageItem():
                turns.append({"role": item.role, "content": words_of(item.content, f"{place}.content")})
            case CallItem():
                function = CalledFunction(name=item.name, arguments=item.arguments)
                call = CallOfMessage(id=item.call_id, function=function)
                _open_turn(turns).setdefault("tool_calls", []).append(call)
                called.add(item.call_id)
            case CallOutputItem():
                if item.call_id not in called:
                    name = item.call_id[:100]
                    raise InvalidFieldError(f"{place}.call_id", f"no item before it makes a call {name!r}")
                output = words_of(item.output, f"{place}.output")
                turns.append({"role": "tool", "content": output, "tool_call_id": item.call_id})
            case _:
                _open_turn(turns, "reasoning_content", "content", "tool_calls")["reasoning_content"] = item.thoughts
    return [Message(**turn) for turn in turns]


def _open_turn(turns: list[dict[str, Any]], *excluded: str) -> dict[str, Any]:
    """The assistant's turn that is being put together: a new one if there is none, or it has one of these already."""
    if not turns or turns[-1]["role"] != "assistant" or any(name in turns[-1] for name in excluded):
        turns.append({"role": "assistant"})
    return turns[-1]


@contextlib.contextmanager
def errors_in_own_words() -> Iterator[None]:
    """Errors of the chat that a request became, told about the request's own fields."""
    try:
        yield
    except ChatTemplateError as error:
        raise ApiError(400, str(error), param="input", code="chat_template_error") from error
    except InvalidRequestError as error:
        param = error.param or ""
        old = re.split(r"[.\[]", param)[0]
        if old == "tools":  # a function here is what a chat has in an object around it
            told = str(error).replace("].function", "]")
            raise InvalidRequestError(told, param=param.replace("].function", "]"), code=error.code) from error
        if old not in FIELDS:
            raise
        new = FIELDS[old]
        message = str(error).replace(f"'{old}", f"'{new}").replace(f"the {old}", f"the {new}")
        message = f"{new}{message.removeprefix(old)}" if message.startswith(f"{old} ") else message
        if isinstance(error, ContextLengthError):
            raise ContextLengthError(message, param=new) from error
        raise InvalidRequestError(message, param=new, code=error.code) from error
