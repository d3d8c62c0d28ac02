"""Arguments of Qwen3-Coder's format as rules of a grammar: an element per parameter, in the schema's order."""

from __future__ import annotations

import json
import re
from typing import Any

from deepseek.constraints import invalid

_NAME = re.compile(r"[^<>\s\"\\]{1,200}")
_END = "\n</parameter>\n"
_TEXT_RULE = "parameter_text"
_COMPOSED = ("$ref", "anyOf", "oneOf", "allOf", "patternProperties")

SHARED = (
    f"{_TEXT_RULE}[lazy]: /(.|\\n)*/ {json.dumps(_END)}",
    f'any_parameters: ("<parameter=" /[a-zA-Z0-9_.-]{{1,64}}/ ">\\n" {_TEXT_RULE})*',
)
"""Rules that the arguments of all functions use."""

ANY = "any_parameters"


def parameter_rules(rule: str, schema: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """(rules, of which ``rule`` derives the arguments; the schemas of those that derive JSON).

    A string is any text, or one of its ``enum``; what else its schema says of it is not kept to. Parameters that the
    schema does not name cannot be given. Raises :class:`InvalidRequestError` for a schema without parameters' names.
    """
    properties = schema.get("properties", {})
    if not isinstance(properties, dict) or any(key in schema for key in _COMPOSED):
        raise invalid("for this model the schema must be an object with 'properties'.")
    required = schema.get("required")
    shared = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    rules: list[str] = []
    schemas: dict[str, Any] = {}
    parts: list[str] = []
    for index, (name, of_value) in enumerate(properties.items()):
        if not _NAME.fullmatch(name):
            raise invalid(f"for this model a parameter cannot be called {name[:40]!r}.")
        part = f"{rule}_{index}"
        value = _text_of(of_value)
        if value is None:
            schemas[f"{part}_value"] = {**of_value, **shared} if isinstance(of_value, dict) else {}
            value = f"{part}_value {json.dumps(_END)}"
        rules.append(f"{part}: {json.dumps(f'<parameter={name}>' + chr(10), ensure_ascii=False)} {value}")
        needed = isinstance(required, list) and name in required
        parts.append(part if needed else f"{part}?")
    return [f"{rule}: {' '.join(parts) or json.dumps('')}", *rules], schemas


def _text_of(schema: Any) -> str | None:
    """The value of a string and its end; None for what is written as JSON."""
    if not isinstance(schema, dict) or schema.get("type") != "string":
        return None
    choices = schema.get("enum", [schema["const"]] if "const" in schema else None)
    if choices is None:
        return _TEXT_RULE
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        raise invalid("the 'enum' of a string must be a list of strings.")
    return f"({' | '.join(json.dumps(choice, ensure_ascii=False) for choice in choices)}) {json.dumps(_END)}"
