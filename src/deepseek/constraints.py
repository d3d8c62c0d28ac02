"""What an answer's text must look like: the contract between those who ask and the engine that enforces it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import msgspec

from deepseek.errors import InvalidRequestError

MAX_SOURCE = 256 * 1024

Kind = Literal["json_object", "json_schema", "regex", "grammar", "choice"]


class Constraint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A form that the answer keeps to, token by token.

    >>> Constraint.choice(["yes", "no"])
    Constraint(kind='choice', source='["yes", "no"]')

    Attributes:
        kind: what ``source`` is.
        schemas: of a grammar: the JSON text of an object, rule -> schema of the JSON that the rule derives. They are
            bounded as those of ``json_schema``. At most :data:`MAX_SOURCE` characters.
        json_after: of a grammar with schemas: the text behind which JSON begins, None for no such text.
        json_first: of a grammar with schemas: JSON may begin where the answer does. Without either, what a schema
            cannot bound, such as a number's digits, has no bound.
        source: the JSON text of a schema; a regular expression for the whole answer; a grammar in llguidance's dialect
            of Lark (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md); a JSON list of the strings to
            choose from; empty for ``json_object``. At most :data:`MAX_SOURCE` characters.

    What is wrong inside of a source is found by :func:`deepseek.engine.grammar.check`.
    """

    kind: Kind
    source: str = ""
    schemas: str = ""
    json_after: str | None = None
    json_first: bool = False

    def __post_init__(self) -> None:
        longest = max(len(self.source), len(self.schemas))
        if longest > MAX_SOURCE:
            raise invalid(f"the {self.kind} has {longest} characters; at most {MAX_SOURCE}.")

    @classmethod
    def json_object(cls) -> Self:
        """Any JSON object."""
        return cls(kind="json_object")

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str | Any) -> Self:
        """JSON that a schema describes: a dictionary, its JSON text, or a pydantic model class."""
        if isinstance(schema, str):
            return cls(kind="json_schema", source=schema)
        if not isinstance(schema, Mapping):
            describe = getattr(schema, "model_json_schema", None)
            if describe is None:
                raise invalid("a JSON schema must be a dictionary, JSON text, or a pydantic model class.")
            schema = describe()
        return cls(kind="json_schema", source=_dump(schema))

    @classmethod
    def regex(cls, pattern: str) -> Self:
        """A text that ``pattern`` matches as a whole. Without look-around and back references."""
        return cls(kind="regex", source=pattern)

    @classmethod
    def grammar(
        cls,
        lark: str,
        *,
        schemas: Mapping[str, Any] | None = None,
        json_after: str | None = None,
        json_first: bool = False,
    ) -> Self:
        """A text that the rule ``start`` of a grammar derives. Rules of ``schemas`` derive JSON."""
        described = _dump(schemas) if schemas else ""
        return cls(kind="grammar", source=lark, schemas=described, json_after=json_after, json_first=json_first)

    @classmethod
    def choice(cls, choices: Sequence[str]) -> Self:
        """One of several texts."""
        return cls(kind="choice", source=_dump(list(choices)))


def invalid(problem: str) -> InvalidRequestError:
    """The error of a constraint that cannot be kept to."""
    return InvalidRequestError(f"Invalid response format: {problem}", param="response_format", code="invalid_value")


def _dump(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise invalid(f"it is not JSON: {error}.") from error
