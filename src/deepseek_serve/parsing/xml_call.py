"""One call of Qwen3-Coder's format: an element per parameter, its value in plain text."""

from __future__ import annotations

import json
import re
from typing import Any

from deepseek_serve.parsing.calls import CallReader, Schemas, Status
from deepseek_serve.parsing.json_scanner import WHITESPACE
from deepseek_serve.parsing.markers import MarkerFinder

_FUNCTION = re.compile(r"<function=([^<>\s]+)>")
_PARAMETER = re.compile(r"<parameter=([^<>\s]+)>")
_END_PARAMETER, _END_FUNCTION = "</parameter>", "</function>"
_LONGEST_TAG = 256


class XmlCallReader(CallReader):
    """``<function=NAME><parameter=KEY>`` value ``</parameter>`` ... ``</function>``, made JSON by the schema.

    The value of a parameter of type string is handed out as it comes, another one when it is whole: as the JSON that
    it is, or as a string.
    """

    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas)
        self._properties: dict[str, Any] = {}
        self._tag = ""
        self._value: MarkerFinder | None = None  # inside of a parameter
        self._streams = False
        self._first = True  # nothing of the value has come
        self._held = ""  # of a value that is not handed out yet
        self._keys: set[str] = set()

    def push(self, char: str) -> Status:
        if self._value is not None:
            self._push_value(self._value, char)
            return "more"
        if not self._tag and char in WHITESPACE:
            return "more"
        self._tag += char
        if char != ">":
            return "more" if self._tag[0] == "<" and len(self._tag) < _LONGEST_TAG else "broken"
        tag, self._tag = self._tag, ""
        return self._push_tag(tag)

    def _push_tag(self, tag: str) -> Status:
        if not self.begun:
            found = _FUNCTION.fullmatch(tag)
            if found is None or found[1] not in self._schemas:
                return "broken"
            properties = self._schemas[found[1]].get("properties")
            self._properties = properties if isinstance(properties, dict) else {}
            self.begin(found[1])
            self.arguments("{")
            return "more"
        if tag == _END_FUNCTION:
            self.arguments("}")
            return "done"
        found = _PARAMETER.fullmatch(tag)
        if found is None or found[1] in self._keys:
            return "broken"
        self.arguments((", " if self._keys else "") + _quoted(found[1]) + ": ")
        self._keys.add(found[1])
        self._value, self._first, self._held = MarkerFinder((_END_PARAMETER,)), True, ""
        schema = self._properties.get(found[1])
        self._streams = schema is None or (isinstance(schema, dict) and schema.get("type") == "string")
        self.arguments('"' if self._streams else "")
        return "more"

    def _push_value(self, finder: MarkerFinder, char: str) -> None:
        found, marker = finder.push(char)
        for one in found:
            if not (self._first and one == "\n"):  # the new line behind the tag
                self._push_character(one)
            self._first = False
        if not marker:
            return
        self._value = None
        held = self._held.removesuffix("\n")
        self.arguments(_quoted(held)[1:] if self._streams else _as_json(held))

    def _push_character(self, char: str) -> None:
        """Hand out all but the last new line, which belongs to the closing tag."""
        if self._streams:
            self.arguments(_quoted(self._held)[1:-1])
            self._held = ""
        self._held += char


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _as_json(text: str) -> str:
    """The text if it is JSON, else the string of it; ``True`` and ``None`` as Python writes them are meant as JSON."""
    text = {"True": "true", "False": "false", "None": "null"}.get(text.strip(), text.strip())
    try:
        json.loads(text, parse_constant=_no_json)
    except (ValueError, RecursionError):
        return _quoted(text)
    return text


def _no_json(word: str) -> Any:
    raise ValueError(word)
