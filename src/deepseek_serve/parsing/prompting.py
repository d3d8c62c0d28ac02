"""Tools told to a model whose chat template does not tell it of them: in the system message, in plain words."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from deepseek_serve.parsing.formats import Format, example

_INTRODUCTION = "You can call functions. Each line describes one:"
_FORM = "To call a function, write exactly this, with its name and its arguments:"


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]], form: Format
) -> list[Mapping[str, Any]]:
    """The messages with the tools in the system message, which is added if there is none."""
    lines = [json.dumps(tool["function"], ensure_ascii=False) for tool in tools]
    text = "\n".join([_INTRODUCTION, *lines, "", _FORM, example(form)])
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [{**first, "content": f"{first['content']}\n\n{text}"}, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]


def with_calls_as_text(messages: Sequence[Mapping[str, Any]], form: Format) -> list[Mapping[str, Any]]:
    """The messages with calls as the model would write them, and their results as words of the user."""
    return [_as_text(message, form) for message in messages]


def _as_text(message: Mapping[str, Any], form: Format) -> Mapping[str, Any]:
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
    if not message.get("tool_calls"):
        return message
    functions = [call["function"] for call in message["tool_calls"]]
    calls = form.between.join(form.call(function["name"], function["arguments"]) for function in functions)
    words = f"{message['content']}\n" if message["content"] else ""
    return {"role": "assistant", "content": words + form.before + calls + form.after}
