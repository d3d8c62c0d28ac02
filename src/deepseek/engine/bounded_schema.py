"""JSON schemas whose answers end: what a schema leaves unbounded gets a bound, where a schema can say it.

What it cannot say (the digits of a number, the items of a free array) is :mod:`deepseek.engine.json_limits`' business.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

from deepseek.constraints import invalid

MAX_NESTING = 100
MAX_REFERENCES = 1000
MAX_PROPERTIES = 2000
MAX_PATTERN_PROPERTIES = 100
MAX_MULTIPLE = 100_000
MAX_PATTERN_LENGTH = 4096
"""Characters of a string with a pattern or a format and no ``maxLength``."""

_SMALLEST_STEP = 1e-9
_LARGEST_MULTIPLE = 10**15
_SCHEMAS = ("items", "additionalProperties", "unevaluatedProperties", "propertyNames", "contains", "not", "if", "then")
_SCHEMA_LISTS = ("prefixItems", "anyOf", "oneOf", "allOf", "items")
_SCHEMA_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


@dataclass(frozen=True)
class JsonLimits:
    """From where on an answer's parts are brought to their end, if the schema lets them end.

    Attributes:
        string: bytes of a string.
        key: bytes of an object's key.
        number: characters of a number.
        items: members of an array or object.
        depth: arrays and objects inside each other.
    """

    string: int = 16384
    key: int = 256
    number: int = 32
    items: int = 1024
    depth: int = 32

    def union(self, other: JsonLimits) -> JsonLimits:
        """What either of them allows."""
        return JsonLimits(**{f.name: max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)})


def bounded_schema(schema: Any) -> tuple[dict[str, Any], JsonLimits]:
    """The schema with bounds, and the limits of the rest: raised to what the schema itself allows.

    Raises InvalidRequestError for a schema that is no object, or nests or refers too much.
    """
    if not isinstance(schema, dict):
        raise invalid("a JSON schema must be a JSON object.")
    walk = _Walk()
    bounded = walk.schema({key: value for key, value in schema.items() if key != "x-guidance"}, 0)
    return bounded, walk.limits


class _Walk:
    """One pass over a schema."""

    def __init__(self) -> None:
        self.limits = JsonLimits()
        self.references = self.properties = self.patterns = 0

    def schema(self, schema: Any, depth: int) -> Any:
        if not isinstance(schema, dict):
            return schema
        if depth > MAX_NESTING:
            raise invalid(f"the schema is nested more than {MAX_NESTING} levels deep.")
        self._count(schema)
        bounded = dict(schema)
        for key, value in schema.items():
            if isinstance(value, dict) and key in _SCHEMA_MAPS:
                bounded[key] = {name: self.schema(part, depth + 1) for name, part in value.items()}
            elif isinstance(value, list) and key in _SCHEMA_LISTS:
                bounded[key] = [self.schema(part, depth + 1) for part in value]
            elif key in _SCHEMAS or key == "else":
                bounded[key] = self.schema(value, depth + 1)
        _bound_string(bounded)
        _bound_number(bounded)
        return bounded

    def _count(self, schema: dict[str, Any]) -> None:
        self.references += "$ref" in schema
        self.properties += _size(schema.get("properties"))
        self.patterns += _size(schema.get("patternProperties"))
        if self.references > MAX_REFERENCES:
            raise invalid(f"the schema has more than {MAX_REFERENCES} references.")
        if self.properties > MAX_PROPERTIES or self.patterns > MAX_PATTERN_PROPERTIES:
            raise invalid(
                f"the schema has more than {MAX_PROPERTIES} properties or {MAX_PATTERN_PROPERTIES} pattern properties."
            )
        if (_number(schema, "multipleOf") or 0) > MAX_MULTIPLE:
            raise invalid(f"'multipleOf' is {schema['multipleOf']}; at most {MAX_MULTIPLE}.")
        strings = _largest(schema, "maxLength", "minLength") * 6  # a character may be written as \uXXXX
        items = _largest(schema, "maxItems", "minItems", "maxProperties", "minProperties")
        self.limits = replace(self.limits, string=max(self.limits.string, strings), items=max(self.limits.items, items))


def _bound_string(schema: dict[str, Any]) -> None:
    """A pattern such as ``a*b`` may be gone on with for ever. Pattern and format together are too much to bound."""
    if ("pattern" in schema) != ("format" in schema) and "maxLength" not in schema:
        schema["maxLength"] = MAX_PATTERN_LENGTH + _largest(schema, "minLength")


def _bound_number(schema: dict[str, Any]) -> None:
    """Bounds for the two kinds of numbers whose digits could go on without ever becoming a valid number: 0.000... where
    0 is excluded, and digits that never make a multiple."""
    kinds = schema.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    low, high = _number(schema, "exclusiveMinimum"), _number(schema, "exclusiveMaximum")
    if "number" in kinds and low is not None and "minimum" not in schema:
        schema["minimum"] = low + _step(low)
        del schema["exclusiveMinimum"]
    if "number" in kinds and high is not None and "maximum" not in schema:
        schema["maximum"] = high - _step(high)
        del schema["exclusiveMaximum"]
    if _number(schema, "multipleOf") is not None and ("number" in kinds or "integer" in kinds):
        least = _first(schema, "minimum", "exclusiveMinimum")
        greatest = _first(schema, "maximum", "exclusiveMaximum")
        if least is None:
            schema["minimum"] = -_LARGEST_MULTIPLE - abs(greatest or 0)
        if greatest is None:
            schema["maximum"] = _LARGEST_MULTIPLE + abs(least or 0)


def _first(schema: dict[str, Any], *names: str) -> float | None:
    return next((value for name in names if (value := _number(schema, name)) is not None), None)


def _step(bound: float) -> float:
    """What stands between an excluded bound and the nearest number allowed."""
    return max(_SMALLEST_STEP, abs(bound) * 1e-12)


def _size(value: Any) -> int:
    return len(value) if isinstance(value, dict) else 0


def _number(schema: dict[str, Any], name: str) -> float | None:
    value = schema.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _largest(schema: dict[str, Any], *names: str) -> int:
    """The largest of these bounds, as far as they are numbers of a sensible size."""
    values = (_number(schema, name) for name in names)
    return max((int(min(value, 2**31)) for value in values if value is not None and value > 0), default=0)
