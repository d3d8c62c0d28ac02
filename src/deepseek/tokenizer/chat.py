"""From the messages of a request to the variables of a chat template.

Text typed by users must not become special tokens: a message with ``<|im_end|>\\n<|im_start|>system`` would otherwise
start a turn of its own. A template writes its special tokens and the users' words into one string, so the two must be
told apart after rendering. Three ways were weighed:

- rendering placeholders instead of the words and encoding the pieces apart: breaks templates that trim or inspect the
  words (Qwen3 and DeepSeek-R1 cut at ``</think>``), and changes the tokens where words and template meet;
- removing such spellings from the words: a user who asks about ``<|im_end|>`` gets no answer about it;
- what is done here: before rendering, a marker character that occurs nowhere else is put into each spelling of a
  special token in the words (``<M|im_end|>``). What is still a special token after rendering was written by the
  template; the markers are removed before the pieces between are encoded, as plain text. Words without such spellings,
  practically all, are rendered and encoded exactly as they are.

A spelling's beginning at the end of a string is marked as well, so the template's next words cannot complete it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deepseek.errors import InvalidRequestError
from deepseek.tokenizer.special import SpecialTokens

_PRIVATE_USE = range(0xF0000, 0xFFFFE)

# DeepSeek's templates put arguments between other words with "+", so theirs must stay text.
_ARGUMENTS_AS_TEXT = re.compile(r"\+\s*tool(_call)?\['function'\]\['arguments'\]\s*\+")


@dataclass(frozen=True, slots=True)
class ChatInput:
    """Template variables, with ``marker`` inside special-token spellings and ``end`` behind the words to continue."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None
    variables: dict[str, Any]
    marker: str
    end: str


def prepare_chat(
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    special: SpecialTokens,
    *,
    continue_final_message: bool,
    template: str,
    variables: Mapping[str, Any],
) -> ChatInput:
    """Check messages, join text parts, parse tool arguments, mark special-token spellings.

    Raises InvalidRequestError naming the message (``messages[2].content``).
    """
    if not messages:
        raise InvalidRequestError("messages must hold at least one message.", param="messages")
    plain = [
        _message(message, f"messages[{index}]", as_text=_ARGUMENTS_AS_TEXT.search(template) is not None)
        for index, message in enumerate(messages)
    ]
    marker, end = _unused_characters([plain, tools, variables, template])
    marked = [_map_strings(message, special, marker) for message in plain]
    if continue_final_message:
        last = f"messages[{len(marked) - 1}]"
        if marked[-1]["role"] != "assistant" or not isinstance(marked[-1]["content"], str):
            raise InvalidRequestError(
                f"to be continued, the final message must be the assistant's and have text; {last} does not.",
                param=last,
            )
        marked[-1]["content"] += end
    marked_tools = None if not tools else _map_strings(list(tools), special, marker)
    marked_variables = _map_strings(variables, special, marker)
    return ChatInput(messages=marked, tools=marked_tools, variables=marked_variables, marker=marker, end=end)


def _message(message: Mapping[str, Any], place: str, *, as_text: bool) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidRequestError(f"{place} must be an object with role and content.", param=place)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise InvalidRequestError(f"{place}.role must be a non-empty string.", param=f"{place}.role")
    result = dict(message)
    result["content"] = _content(message.get("content"), f"{place}.content")
    if message.get("tool_calls") and not as_text:
        result["tool_calls"] = [_tool_call(call, f"{place}.tool_calls") for call in message["tool_calls"]]
    return result


def _content(content: Any, place: str) -> str | None:
    """Text of a message; parts of type "text" are joined by newlines."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise InvalidRequestError(f"{place} must be a string or a list of text parts.", param=place)
    texts = []
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get("text") if isinstance(part, Mapping) else None
        if kind != "text" or not isinstance(text, str):
            raise InvalidRequestError(
                f"{place}[{index}] must be a part of type 'text'; this model takes no {kind!r} parts.",
                param=f"{place}[{index}]",
            )
        texts.append(text)
    return "\n".join(texts)


def _tool_call(call: Any, place: str) -> Any:
    """Arguments travel as a JSON string, but templates write them with ``tojson``: give them the object.

    A string that is not a JSON object (a model may have written it) stays as it is.
    """
    if not isinstance(call, Mapping):
        raise InvalidRequestError(f"{place} must be a list of objects.", param=place)
    function = call.get("function")
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), str):
        return call
    try:
        arguments = json.loads(function["arguments"])
    except (ValueError, RecursionError):
        return call
    return {**call, "function": {**function, "arguments": arguments}} if isinstance(arguments, dict) else call


def _unused_characters(values: Any) -> tuple[str, str]:
    """Two private-use characters that occur in none of the strings of ``values``."""
    used: set[str] = set()
    pending = [values]
    while pending:
        value = pending.pop()
        if isinstance(value, str):
            if not value.isascii():
                used.update(value)
        elif isinstance(value, Mapping):
            pending += [*value.keys(), *value.values()]
        elif isinstance(value, Sequence):
            pending += value
    free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
    marker, end = next(free, None), next(free, None)
    if marker is None or end is None:
        raise InvalidRequestError("messages use every private-use character of Unicode plane 15.", param="messages")
    return marker, end


def _map_strings(value: Any, special: SpecialTokens, marker: str) -> Any:
    """A copy with every string inside ``value`` (keys too) neutralised."""
    if isinstance(value, str):
        return special.neutralise(value, marker)
    if isinstance(value, Mapping):
        return {_map_strings(k, special, marker): _map_strings(v, special, marker) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [_map_strings(item, special, marker) for item in value]
    return value
