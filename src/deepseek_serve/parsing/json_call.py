"""One call that is a JSON object with the function's name and its arguments."""

from __future__ import annotations

import json
from typing import Any, Literal

from deepseek_serve.parsing.calls import CallReader, Schemas, Status
from deepseek_serve.parsing.json_scanner import WHITESPACE, JsonScanner

ARGUMENTS = ("arguments", "parameters")


class JsonCallReader(CallReader):
    """``{"name": ..., "arguments": {...}}``; ``parameters`` means the same, other keys mean nothing.

    Arguments that are read before the name are held until the name comes.
    """

    def __init__(self, schemas: Schemas) -> None:
        super().__init__(schemas)
        self._scanner = JsonScanner()
        self._key = ""
        self._found: dict[str, str] = {}
        self._reading: Literal["key", "value", "arguments"] | None = None  # a member of the outermost object
        self._part = ""  # what has been read of it

    def push(self, char: str) -> Status:
        scanner, wanted = self._scanner, self._scanner.expect
        inside = scanner.depth == 1
        starts = inside and scanner.between and char not in WHITESPACE
        if not scanner.push(char):
            return "broken"
        if inside and self._reading == "value" and scanner.between and char in WHITESPACE + ",}":
            if not self._end_of_part():  # a number ends in front of what follows it
                return "broken"
        elif starts and wanted in ("key", "key_or_end") and char == '"':
            self._reading = "key"
        elif starts and wanted == "value":
            self._reading = self._kind_of_value(char)
        if self._reading == "arguments":
            self.arguments(char)
        elif self._reading is not None:
            self._part += char
        if self._reading and scanner.depth == 1 and scanner.between and not self._end_of_part():
            return "broken"
        return self._whole() if scanner.complete else "more"

    def _kind_of_value(self, char: str) -> Literal["value", "arguments"]:
        name = self._found.get("name")
        if self.begun or self._key not in ARGUMENTS or char != "{" or name is None:
            return "value"
        self.begin(json.loads(name))
        return "arguments"

    def _end_of_part(self) -> bool:
        """A key or value is whole. False if it names a function that there is not."""
        kind, part, self._reading, self._part = self._reading, self._part, None, ""
        if kind == "key":
            self._key = json.loads(part)
        elif kind == "value":
            self._found.setdefault(self._key, part)
            return self._key != "name" or self.begun or self._known(part)
        return True

    def _known(self, name: str) -> bool:
        value = _value(name)
        return isinstance(value, str) and value in self._schemas

    def _whole(self) -> Status:
        if self.begun:
            return "done"
        given = next((self._found[key] for key in ARGUMENTS if key in self._found), "{}")
        arguments = _object(given)
        if "name" not in self._found or arguments is None:
            return "broken"
        self.begin(json.loads(self._found["name"]))
        self.arguments(arguments)
        return "done"


def _object(text: str) -> str | None:
    """The JSON text of an object: ``text`` itself, ``{}`` for null, or what a JSON string holds."""
    if text == "null":
        return "{}"
    value = _value(text)
    if isinstance(value, str):
        text, value = value, _value(value)
    return text if isinstance(value, dict) else None


def _value(text: str) -> Any:
    """What the text stands for; None for what Python does not read: no JSON, nested too deeply, numbers too long."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
