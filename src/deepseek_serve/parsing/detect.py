"""What a model's chat template knows of tools and thinking."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deepseek.errors import ChatTemplateError, ConfigurationError
from deepseek_serve.parsing import thinking
from deepseek_serve.parsing.formats import FORMATS, Format, format_named, format_of_template

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer

TOOL_PARSERS = ("auto", "none", *(found.name for found in FORMATS))
REASONING_PARSERS = ("auto", "none", "think")

_TAIL = 16  # tokens at a prompt's end that may spell <think>
_PROBE: dict[str, Any] = {
    "name": "probe_function",
    "description": "",
    "parameters": {"type": "object", "properties": {}},
}
_PROBE_CALL = {"id": "probe", "type": "function", "function": {"name": "probe_function", "arguments": "{}"}}


@dataclass(frozen=True, kw_only=True)
class ChatFormat:
    """How one model writes calls and thoughts.

    Attributes:
        calls: the format of its calls; None if nothing is known of any.
        thinks: it may think before it answers.
        shows_tools: its chat template tells it of tools.
        shows_calls: its chat template shows it earlier calls and their results.
        special: spellings of its special tokens.
        variables: names that its chat template may be given to turn thinking on and off.
    """

    calls: Format | None
    thinks: bool
    shows_tools: bool
    shows_calls: bool
    special: frozenset[str]
    variables: frozenset[str] = frozenset()


def check_names(tool_parser: str, reasoning_parser: str) -> None:
    """Raises :class:`ConfigurationError` for a parser that there is not."""
    for field, name, known in (
        ("tool_parser", tool_parser, TOOL_PARSERS),
        ("reasoning_parser", reasoning_parser, REASONING_PARSERS),
    ):
        if name not in known:
            raise ConfigurationError(f"{field} must be one of {', '.join(known)}, not {name!r}.")


def chat_format(tokenizer: Tokenizer, tool_parser: str, reasoning_parser: str) -> ChatFormat:
    """The formats of a model, as its chat template has them or as the operator says.

    Without the operator's word, calls need a template that tells the model of tools.
    """
    source = "\n".join(tokenizer.chat_templates)
    shows_tools = "probe_function" in _render(tokenizer, [{"role": "user", "content": "probe"}], tools=True)
    calls = format_of_template(source) if tool_parser == "auto" else format_named(tool_parser)
    thinks = reasoning_parser == "think"
    if reasoning_parser == "auto":
        thinks = thinking.BEGIN in source or thinking.END in source
    return ChatFormat(
        calls=calls,
        thinks=thinks,
        shows_tools=shows_tools,
        shows_calls=_shows_calls(tokenizer),
        special=frozenset(tokenizer.token_bytes(i).decode("utf-8", "replace") for i in tokenizer.special_ids),
        variables=frozenset(re.findall(r"\b(?:enable_)?thinking\b", source)),
    )


def opens_thinking(tokenizer: Tokenizer, prompt: Sequence[int]) -> bool:
    """Whether a prompt ends inside of the reasoning, so that the answer begins there."""
    return tokenizer.decode(prompt[-_TAIL:], skip_special_tokens=False).rstrip().endswith(thinking.BEGIN)


def _shows_calls(tokenizer: Tokenizer) -> bool:
    text = _render(
        tokenizer,
        [
            {"role": "user", "content": "probe"},
            {"role": "assistant", "content": None, "tool_calls": [_PROBE_CALL]},
            {"role": "tool", "content": "probe_result", "tool_call_id": "probe", "name": "probe_function"},
        ],
        tools=False,
    )
    return "probe_function" in text and "probe_result" in text


def _render(tokenizer: Tokenizer, messages: list[dict[str, Any]], *, tools: bool) -> str:
    """The rendered messages; empty where the template refuses them."""
    try:
        return tokenizer.render_chat(messages, tools=[{"type": "function", "function": _PROBE}] if tools else None)
    except ChatTemplateError:
        return ""
