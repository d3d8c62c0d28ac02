"""What the reference says of an endpoint, written beside its function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel

Handler = TypeVar("Handler", bound=Callable[..., Any])

PROBLEMS = (400, 401, 402, 408, 413, 429, 500, 503)
"""How a request that computes may be refused; also what a list call says of its parameters."""
STORE_PROBLEMS = (400, 401, 402, 404, 429, 500, 503, 507)

_ATTRIBUTE = "__described__"


@dataclass(frozen=True, kw_only=True)
class Described:
    """One endpoint. Its summary is the function's docstring.

    Attributes:
        tag: the part of the reference that it stands in.
        body: of the request.
        form: JSON schema of a ``multipart/form-data`` request.
        query: name -> JSON schema of the parameters of the query string.
        answer: a type that msgspec knows; None for a body that is not JSON.
        items: of the lists that ``answer`` holds without saying of what.
        media_type: of the answer.
        stream: the type of the events of a streamed answer.
        errors: the statuses of errors.
        unready: the type of an answer with status 503 that is no error.
        example: a request body.
    """

    tag: str
    body: type[BaseModel] | None = None
    form: Mapping[str, Any] | None = None
    query: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    answer: Any = None
    items: Any = None
    media_type: str = "application/json"
    stream: Any = None
    errors: tuple[int, ...] = ()
    unready: Any = None
    example: Mapping[str, Any] | None = None


def described(**facts: Any) -> Callable[[Handler], Handler]:
    """Decorator with the fields of :class:`Described`; the innermost one."""

    def describe(handler: Handler) -> Handler:
        setattr(handler, _ATTRIBUTE, Described(**facts))
        return handler

    return describe


def description_of(handler: Callable[..., Any]) -> Described | None:
    """What :func:`described` said of an endpoint."""
    found: Described | None = getattr(handler, _ATTRIBUTE, None)
    return found


PAGE_QUERY: Mapping[str, Mapping[str, Any]] = {
    "after": {"type": "string", "description": "The last id of the page before."},
    "limit": {"type": "integer", "minimum": 1, "maximum": 100},
    "order": {"type": "string", "enum": ["asc", "desc"]},
}
"""The parameters of list calls."""
