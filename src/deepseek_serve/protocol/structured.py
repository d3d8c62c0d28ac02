"""The form of an answer: OpenAI's ``response_format``, and vLLM's ``structured_outputs`` for the other forms."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from deepseek.constraints import Constraint
from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.strict import Strict

_NAME = r"^[a-zA-Z0-9_-]{1,64}$"


class JsonSchema(Strict):
    """A schema with a name. It is kept to whatever ``strict`` says."""

    name: str = Field(pattern=_NAME)
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """``response_format`` of a chat."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    def constraint(self) -> Constraint | None:
        """None for plain text. Raises :class:`InvalidRequestError` for a type and a schema that do not go together."""
        if (self.json_schema is not None) != (self.type == "json_schema"):
            wanted = "is required" if self.json_schema is None else "is not allowed"
            raise InvalidRequestError(
                f"'response_format.json_schema' {wanted} with type '{self.type}'.",
                param="response_format",
                code="invalid_value",
            )
        if self.json_schema is not None:
            return Constraint.json_schema(self.json_schema.schema_)
        return Constraint.json_object() if self.type == "json_object" else None


class StructuredOutputs(Strict):
    """``structured_outputs`` of a chat or completion; exactly one of the fields is given."""

    json_: dict[str, Any] | str | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None

    def constraint(self) -> Constraint:
        """Raises :class:`InvalidRequestError` unless exactly one form is asked for."""
        forms = [
            None if self.json_ is None else lambda: Constraint.json_schema(self.json_),
            None if self.regex is None else lambda: Constraint.regex(self.regex or ""),
            None if self.choice is None else lambda: Constraint.choice(self.choice or []),
            None if self.grammar is None else lambda: Constraint.grammar(self.grammar or ""),
            Constraint.json_object if self.json_object else None,
        ]
        given = [form for form in forms if form is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                "'structured_outputs' must have exactly one of 'json', 'regex', 'choice', 'grammar' and 'json_object'.",
                param="structured_outputs",
                code="invalid_value",
            )
        try:
            return given[0]()
        except InvalidRequestError as error:
            raise InvalidRequestError(str(error), param="structured_outputs", code=error.code) from error
