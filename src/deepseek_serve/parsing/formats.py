"""The formats in which models write calls, and which of them a model's chat template speaks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from deepseek_serve.parsing.calls import CallParser, CallReader, Marks, Schemas
from deepseek_serve.parsing.header_call import SEPARATOR, HeaderCallReader
from deepseek_serve.parsing.json_call import JsonCallReader
from deepseek_serve.parsing.json_scanner import WHITESPACE
from deepseek_serve.parsing.xml_call import XmlCallReader

_CALLS_BEGIN, _CALLS_END = "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"
_CALL_BEGIN, _CALL_END = "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>"


@dataclass(frozen=True, kw_only=True)
class Format:
    """One way to write calls.

    Attributes:
        name: what ``--tool-parser`` calls it.
        marks: how calls are told from words.
        lenient: how else a model may set calls apart, unless a grammar keeps it from that.
        reader: reads one call.
        pattern: a call, with ``NAME`` and ``ARGUMENTS`` in their places.
        before, between, after: text around all calls of an answer.
        json_after: the words of ``pattern`` behind which all is JSON; None for no such words.
        elements: arguments are elements, a parameter each, and no JSON.
        words: further marks inside of calls.
        signs: words that are all in a chat template that speaks this format.
    """

    name: str
    marks: Marks
    reader: Callable[[Schemas], CallReader]
    pattern: str
    before: str = ""
    between: str = "\n"
    after: str = ""
    json_after: str | None = None
    elements: bool = False
    signs: tuple[str, ...]
    words: tuple[str, ...] = ()
    lenient: Marks | None = None

    def parser(self, schemas: Schemas, *, kept: bool = False, single: bool = False) -> CallParser:
        """For one answer.

        Args:
            kept: a grammar keeps its calls to their schemas, so that what is set apart otherwise is no call.
            single: it may make one call only.
        """
        marks = self.marks if kept or self.lenient is None else self.lenient
        return CallParser(marks, lambda: self.reader(schemas), single=single)

    def call(self, name: str, arguments: str) -> str:
        """A call, written out."""
        return self.pattern.replace("NAME", name).replace("ARGUMENTS", arguments)


_TOOL_CALL = Marks(begin="<tool_call>", ends=("</tool_call>",))
# Small models write their calls as they have seen JSON most.
_TOOL_CALL_OR_JSON = Marks(begin="<tool_call>", ends=("</tool_call>", "```"), bare=True, fence="```json")
_DEEPSEEK = Marks(begin=_CALL_BEGIN, ends=(_CALL_END,), silent=(_CALLS_BEGIN, _CALLS_END), filler=WHITESPACE + "`")

# In the order in which templates are asked: an earlier one has all signs of a later one, and more.
FORMATS = (
    Format(
        name="qwen3_coder",
        marks=_TOOL_CALL,
        reader=XmlCallReader,
        pattern="<tool_call>\n<function=NAME>\nARGUMENTS</function>\n</tool_call>",
        elements=True,
        signs=("<tool_call>", "<function="),
    ),
    Format(
        name="hermes",
        marks=_TOOL_CALL,
        lenient=_TOOL_CALL_OR_JSON,
        reader=JsonCallReader,
        pattern='<tool_call>\n{"name": "NAME", "arguments": ARGUMENTS}\n</tool_call>',
        json_after="<tool_call>",
        signs=("<tool_call>",),
    ),
    Format(
        name="deepseek_v3",
        marks=_DEEPSEEK,
        reader=HeaderCallReader,
        words=(SEPARATOR,),
        pattern=f"{_CALL_BEGIN}function{SEPARATOR}NAME\n```json\nARGUMENTS\n```{_CALL_END}",
        before=_CALLS_BEGIN,
        after=_CALLS_END,
        json_after=SEPARATOR,
        signs=(_CALLS_BEGIN, "```json"),
    ),
    Format(
        name="deepseek_v31",
        marks=_DEEPSEEK,
        reader=HeaderCallReader,
        words=(SEPARATOR,),
        pattern=f"{_CALL_BEGIN}NAME{SEPARATOR}ARGUMENTS{_CALL_END}",
        before=_CALLS_BEGIN,
        between="",
        after=_CALLS_END,
        json_after=SEPARATOR,
        signs=(_CALLS_BEGIN,),
    ),
    Format(
        name="llama3_json",
        marks=Marks(begin="<|python_tag|>", bare=True, filler=WHITESPACE + ";,"),
        reader=JsonCallReader,
        pattern='{"name": "NAME", "parameters": ARGUMENTS}',
        between="; ",
        signs=("<|start_header_id|>", '"parameters": '),
    ),
)


def format_named(name: str) -> Format | None:
    """The format of this name; None if there is none."""
    return next((found for found in FORMATS if found.name == name), None)


def format_of_template(source: str) -> Format | None:
    """The format in which a chat template tells its model to write calls; None if it is none of ours."""
    return next((found for found in FORMATS if all(sign in source for sign in found.signs)), None)


def example(found: Format) -> str:
    """A call as the format wants it, to show to a model."""
    return found.before + found.call("NAME", json.dumps({"PARAMETER": "VALUE"})) + found.after
