"""The endpoints that a batch may call: what a body must be, and what answers it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
from pydantic import BaseModel

from deepseek_serve.protocol.chat import ChatRequest
from deepseek_serve.protocol.completions import CompletionRequest
from deepseek_serve.protocol.embeddings import EmbeddingRequest
from deepseek_serve.protocol.responses_api.request import ResponseRequest
from deepseek_serve.routes import chat, completions, embeddings, responses
from deepseek_serve.state import ServerState


class Endpoint(msgspec.Struct, frozen=True):
    """One endpoint.

    Attributes:
        body: the model that validates a request's body, as in a live request.
        complete: (state, tenant, body) -> the answer, without admission. Raises what a live request would be told.
    """

    body: type[BaseModel]
    complete: Callable[[ServerState, str, Any], Awaitable[msgspec.Struct]]


ENDPOINTS = {
    "/v1/chat/completions": Endpoint(ChatRequest, chat.complete),
    "/v1/completions": Endpoint(CompletionRequest, completions.complete),
    "/v1/embeddings": Endpoint(EmbeddingRequest, embeddings.complete),
    "/v1/responses": Endpoint(ResponseRequest, responses.complete),
}
