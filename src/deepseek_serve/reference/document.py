"""The OpenAPI description of routes, from the types of their requests and answers."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Literal, NamedTuple

import msgspec
from fastapi import APIRouter
from fastapi.routing import APIRoute
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from deepseek import __version__
from deepseek_serve.errors import MESSAGES, ErrorBody
from deepseek_serve.reference.described import Described, description_of

REF = "#/components/schemas/"
INSUFFICIENT = {402: "The key's quota is used up", 507: "The disk or the memory is full", 529: "The node is full"}
OVERVIEW = """Errors have one form on all paths, but for those of Anthropic's API, which have Anthropic's.
What can refuse a request (`429`, `503`, with `Retry-After`) does so before the first byte of an answer."""


class ErrorResponse(msgspec.Struct):
    """Every error."""

    error: ErrorBody


class AnthropicErrorBody(msgspec.Struct):
    type: str
    message: str


class AnthropicErrorResponse(msgspec.Struct):
    """Every error of Anthropic's API."""

    error: AnthropicErrorBody
    request_id: str
    type: str = "error"


class Found(NamedTuple):
    """A path and method of the reference. ``protected`` if a key is asked for."""

    path: str
    method: str
    handler: Callable[..., Any]
    protected: bool


def routes_of(routers: Iterable[tuple[APIRouter, bool]]) -> list[Found]:
    """Everything that belongs into the reference, the paths under /v1 first. ``routers`` are protected, or not."""
    found = [
        Found(re.sub(r"\{(\w+):path\}", r"{\1}", route.path), method.lower(), route.endpoint, protected)
        for router, protected in routers
        for route in router.routes
        if isinstance(route, APIRoute) and route.include_in_schema
        for method in sorted(route.methods or ())
    ]
    return sorted(found, key=lambda route: not route.path.startswith("/v1/"))


def document(routers: Iterable[tuple[APIRouter, bool]]) -> dict[str, Any]:
    """The description, OpenAPI 3.1. Raises :class:`LookupError` for a route that nothing is said of."""
    found = routes_of(routers)
    facts = {}
    for route in found:
        described = description_of(route.handler)
        if described is None:
            name = f"{route.method.upper()} {route.path}"
            raise LookupError(f"{name} is not described: see deepseek_serve/reference/described.py")
        facts[route.handler] = described
    schemas = _Schemas(facts.values())
    paths: dict[str, dict[str, Any]] = {}
    names: set[str] = set()
    for route in found:
        operation = _operation(route, facts[route.handler], schemas)
        if operation["operationId"] in names:
            operation["operationId"] += "_at" + re.sub(r"\W+", "_", route.path).rstrip("_")
        names.add(operation["operationId"])
        paths.setdefault(route.path, {})[route.method] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "DeepSeek V2.1", "version": __version__, "description": OVERVIEW},
        "paths": paths,
        "components": {
            "schemas": schemas.components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "anthropic": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


class _Schemas:
    """The schemas of requests (pydantic's) and of answers (msgspec's), under names that do not collide."""

    def __init__(self, facts: Iterable[Described]) -> None:
        all_facts = list(facts)
        answers = {
            kind
            for fact in all_facts
            for kind in (fact.answer, fact.items, fact.stream, fact.unready, ErrorResponse, AnthropicErrorResponse)
            if kind is not None
        }
        ordered = sorted(answers, key=str)
        found, self.components = msgspec.json.schema_components(ordered, ref_template=REF + "{name}")
        self._answers = dict(zip(ordered, found, strict=True))
        bodies = sorted({fact.body for fact in all_facts if fact.body is not None}, key=str)
        mode: Literal["validation"] = "validation"
        wanted = [(body, mode) for body in bodies]
        references, described = models_json_schema(wanted, ref_template=REF + "{model}")
        definitions = described.get("$defs", {})
        renamed = {name: f"{name}Param" if name in self.components else name for name in definitions}
        for name, schema in definitions.items():
            self.components[renamed[name]] = _renamed(schema, renamed)
        self._bodies = {body: _renamed(references[(body, mode)], renamed) for body in bodies}

    def answer(self, kind: Any) -> dict[str, Any]:
        schema: dict[str, Any] = self._answers[kind]
        return schema

    def body(self, kind: type[BaseModel]) -> dict[str, Any]:
        schema: dict[str, Any] = self._bodies[kind]
        return schema


def _renamed(schema: Any, names: Mapping[str, str]) -> Any:
    """A copy whose references use the new names."""
    if isinstance(schema, list):
        return [_renamed(item, names) for item in schema]
    if not isinstance(schema, dict):
        return schema
    copy = {key: _renamed(value, names) for key, value in schema.items()}
    reference = copy.get("$ref")
    if isinstance(reference, str) and reference.startswith(REF):
        copy["$ref"] = REF + names[reference.removeprefix(REF)]
    return copy


def _operation(route: Found, fact: Described, schemas: _Schemas) -> dict[str, Any]:
    path = route.path
    summary, _, rest = (route.handler.__doc__ or "").strip().partition("\n")
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "tags": [fact.tag],
        "summary": summary,
        "parameters": _parameters(path, fact),
        "responses": _responses(path, fact, schemas),
        "security": [{"bearer": []}, {"anthropic": []}] if _anthropic(path) else [{"bearer": []}],
    }
    if not route.protected:
        operation["security"] = []
    if rest.strip():
        operation["description"] = rest.strip()
    content: dict[str, Any] | None = None
    if fact.body is not None:
        content = {"application/json": {"schema": schemas.body(fact.body)}}
        if fact.example is not None:
            content["application/json"]["example"] = fact.example
    elif fact.form is not None:
        content = {"multipart/form-data": {"schema": fact.form}}
    if content is not None:
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _parameters(path: str, fact: Described) -> list[dict[str, Any]]:
    of_path = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in re.findall(r"\{(\w+)\}", path)
    ]
    return of_path + [{"name": name, "in": "query", "schema": schema} for name, schema in fact.query.items()]


def _responses(path: str, fact: Described, schemas: _Schemas) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if fact.answer is not None:
        content[fact.media_type] = {"schema": _of_items(schemas.answer(fact.answer), fact, schemas)}
    else:
        content[fact.media_type] = {}
    if fact.stream is not None:
        content["text/event-stream"] = {"schema": schemas.answer(fact.stream)}
    responses: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    if fact.unready is not None:
        unready = {"application/json": {"schema": schemas.answer(fact.unready)}}
        responses["503"] = {"description": "Not now", "content": unready}
    kind = AnthropicErrorResponse if _anthropic(path) else ErrorResponse
    for status in fact.errors:
        responses[str(status)] = {
            "description": INSUFFICIENT.get(status) or HTTPStatus(status).phrase,
            "content": {"application/json": {"schema": schemas.answer(kind)}},
        }
    return responses


def _of_items(schema: dict[str, Any], fact: Described, schemas: _Schemas) -> dict[str, Any]:
    if fact.items is None:
        return schema
    return {"allOf": [schema, {"properties": {"data": {"type": "array", "items": schemas.answer(fact.items)}}}]}


def _anthropic(path: str) -> bool:
    return path.startswith((MESSAGES, "/anthropic/"))
