"""Every error as an error body: OpenAI's, and Anthropic's on the paths of its API. The one place that decides on
status, type and code."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

import msgspec
import pydantic
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Scope

from deepseek.errors import (
    AdapterError,
    ChatTemplateError,
    DeepSeekError,
    EngineDeadError,
    EngineError,
    EngineOverloadedError,
    InvalidRequestError,
)
from deepseek_serve.last_response import LastResponse

INVALID_REQUEST = "invalid_request_error"
SERVER_ERROR = "server_error"
UNAVAILABLE = "service_unavailable_error"
OVERLOADED_CODE = "server_is_overloaded"
INTERNAL_MESSAGE = "The server had an error while processing your request. Its log has the reason."
DEAD_RETRY_AFTER = 2.0
CLIENT_CLOSED_REQUEST = 499  # nginx's number; seen only by metrics, since nobody is left to read the answer

MAX_PROBLEMS = 1000

MESSAGES = "/v1/messages"
ANTHROPIC = "/anthropic/"  # the beginning of DeepSeek's paths for the same API
OVERLOADED = 529  # Anthropic's number for a node that is full, where OpenAI has 503
ANTHROPIC_TYPES = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "request_too_large",
    429: "rate_limit_error",
    OVERLOADED: "overloaded_error",
}


class ErrorBody(msgspec.Struct, frozen=True):
    """``error`` of an error response; all four keys are always there."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ApiError(DeepSeekError):
    """An error that is answered as it stands."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = INVALID_REQUEST,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(message, type, param, code)
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(max(1, math.ceil(retry_after)))
            self.headers["retry-after-ms"] = str(max(1, math.ceil(retry_after * 1000)))

    def encode(self) -> bytes:
        return msgspec.json.encode({"error": self.body})


def speaks_anthropic(scope: Scope) -> bool:
    """Whether a request was sent to Anthropic's API."""
    path: str = scope["path"]
    return path == MESSAGES or path.startswith((f"{MESSAGES}/", ANTHROPIC))


def error_body(error: ApiError, scope: Scope) -> bytes:
    """The body in the words of the API that the request was sent to."""
    if not speaks_anthropic(scope):
        return error.encode()
    status = _anthropic_status(error)
    kind = ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else INVALID_REQUEST)
    body = {"type": "error", "error": {"type": kind, "message": str(error)}}
    return msgspec.json.encode(body | {"request_id": scope["state"]["request_id"]})


def error_response(error: ApiError, scope: Scope) -> Response:
    """The response in the words of the API that the request was sent to."""
    status = _anthropic_status(error) if speaks_anthropic(scope) else error.status
    kind = LastResponse if error.headers.get("connection") == "close" else Response
    return kind(error_body(error, scope), status, error.headers, "application/json")


def _anthropic_status(error: ApiError) -> int:
    return OVERLOADED if error.body.code == OVERLOADED_CODE else error.status


def api_error(error: BaseException) -> ApiError:
    """What a client is told about ``error``. Nothing internal leaves the server."""
    match error:
        case ApiError():
            return error
        case InvalidRequestError():
            status = 404 if error.code == "adapter_not_found" else 400
            return ApiError(status, str(error), param=error.param, code=error.code)
        case AdapterError():
            return ApiError(400, str(error), param="lora_path", code="invalid_adapter")
        case ChatTemplateError():
            return ApiError(400, str(error), param="messages", code="chat_template_error")
        case EngineOverloadedError():
            return ApiError(503, str(error), type=UNAVAILABLE, code=OVERLOADED_CODE, retry_after=error.retry_after)
        case EngineDeadError():
            return ApiError(503, str(error), type=UNAVAILABLE, code="engine_unavailable", retry_after=DEAD_RETRY_AFTER)
        case EngineError():
            return ApiError(500, str(error), type=SERVER_ERROR, code="engine_error")
        case pydantic.ValidationError():
            return _from_validation(error)
        case HTTPException():
            return _from_http(error)
        case ClientDisconnect():
            return ApiError(CLIENT_CLOSED_REQUEST, "The client closed the connection.")
        case _:
            return ApiError(500, INTERNAL_MESSAGE, type=SERVER_ERROR, code="internal_error")


def install(app: FastAPI) -> None:
    """Answer all exceptions that have an answer of their own; the others are the outermost middleware's."""

    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code in (404, 405):
            answer = _no_route(request, error)
        else:
            answer = api_error(error)
        request.state.record.error_code = answer.body.code
        return error_response(answer, request.scope)

    for kind in (DeepSeekError, pydantic.ValidationError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, handle)


def _no_route(request: Request, error: HTTPException) -> ApiError:
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        hint = f" Use {allowed}." if allowed else ""
        headers = {"allow": allowed} if allowed else None
        message = f"Not allowed to {request.method} on {request.url.path}.{hint}"
        return ApiError(405, message, code="method_not_supported", headers=headers)
    message = f"Invalid URL ({request.method} {request.url.path})"
    return ApiError(404, message, code="unknown_url")


def _from_http(error: HTTPException) -> ApiError:
    status = error.status_code
    kind = SERVER_ERROR if status >= 500 else INVALID_REQUEST
    phrase = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "Error"
    return ApiError(status, phrase, type=kind)


def _from_validation(error: pydantic.ValidationError) -> ApiError:
    """The first problem pydantic found, in OpenAI's words where it has words for it."""
    if error.error_count() > MAX_PROBLEMS:  # each takes a kilobyte when it is looked at
        return ApiError(400, f"The request body has {error.error_count()} errors.", code="invalid_value")
    first = _most_telling(error.errors(include_url=False))
    kind, where, context = first["type"], _path(first["loc"]), first.get("ctx", {})
    if kind == "value_error" and isinstance(context.get("error"), InvalidRequestError):
        return api_error(context["error"])  # raised by a validator of ours
    if kind == "json_invalid":
        detail = str(context.get("error", "it is not JSON"))
        return ApiError(400, f"We could not parse the JSON body of your request: {detail}.", code="invalid_json")
    if kind == "extra_forbidden":
        return ApiError(400, f"Unrecognized request argument supplied: {where}", param=where, code="unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"Missing required parameter: '{where}'.", param=where, code="missing_required_parameter")
    if not where:
        return ApiError(400, "The request body must be a JSON object.", code="invalid_type")
    return ApiError(400, f"Invalid value for '{where}': {first['msg']}.", param=where, code="invalid_value")


def _most_telling(problems: list[Any]) -> Any:
    """The first problem; where the value could be of several types, the type that it fits best."""
    field = _path(problems[0]["loc"][:1])
    return max((p for p in problems[:20] if _path(p["loc"][:1]) == field), key=lambda p: len(p["loc"]))


def _path(location: tuple[int | str, ...]) -> str:
    """``("messages", 0, "content", "str")`` -> ``messages[0].content``: the name of a type is no field.

    Pydantic puts the branch of a union it tried into the location. Our unions are of plain types only.
    """
    path = ""
    for depth, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif depth == 0:
            path = part
        elif part not in ("str", "int") and "[" not in part:
            path += f".{part}"
    return path
