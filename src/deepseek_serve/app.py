"""The ASGI application: which routes there are, and which of them are open to everybody."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import TYPE_CHECKING

import msgspec
from fastapi import APIRouter, Depends, FastAPI
from starlette.requests import Request

from deepseek_serve import errors
from deepseek_serve.auth import require_anthropic_key, require_key
from deepseek_serve.middleware import Envelope
from deepseek_serve.reference.document import document
from deepseek_serve.routes import (
    batches,
    chat,
    completions,
    embeddings,
    files,
    health,
    messages,
    metrics,
    models,
    playground,
    reference,
    responses,
    tokenize,
    usage,
)
from deepseek_serve.state import ServerState
from deepseek_serve.turnstile import Turnstile

if TYPE_CHECKING:
    from fastapi.telemetry import TelemetryConfig

# FastAPI's own would log rejected bodies, and trace each request a second time. Releases without it ignore this.
NO_TELEMETRY: TelemetryConfig = {
    "tracing": False,
    "metrics": False,
    "logs": False,
    "operation_spans": False,
    "auto_configure": False,
}
OPEN_ROUTES = (
    *("/health/live", "/health/ready", "/metrics"),
    *("/", "/playground/{version}/{path:path}"),
    *("/openapi.json", "/docs", "/docs/{name}"),
)
# Router, and who is let in: holders of a key, or everybody.
ROUTERS: tuple[tuple[APIRouter, Callable[[Request], Awaitable[None]] | None], ...] = (
    (chat.router, require_key),
    (completions.router, require_key),
    (embeddings.router, require_key),
    (messages.router, require_anthropic_key),
    (responses.router, require_key),
    (models.router, require_key),
    (tokenize.router, require_key),
    (files.router, require_key),
    (batches.router, require_key),
    (usage.router, require_key),
    (health.router, None),
    (metrics.router, None),
)


def create_app(state: ServerState) -> FastAPI:
    """The application around ``state``. It starts nothing: the engine's client belongs to the caller."""
    app = FastAPI(
        title="DeepSeek V2.1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        telemetry=NO_TELEMETRY,
    )
    app.state.server = state
    app.state.describe = cache(lambda: msgspec.json.encode(document((router, bool(key)) for router, key in ROUTERS)))
    for router, key in ROUTERS:
        app.include_router(router, dependencies=[Depends(key)] if key is not None else [])
    for router, wanted in ((playground.router, state.config.playground), (reference.router, state.config.docs)):
        if wanted:
            app.include_router(router)
    errors.install(app)
    app.add_middleware(Turnstile, exempt=OPEN_ROUTES)
    app.add_middleware(Envelope, metrics=state.metrics, tracing=state.tracing)
    return app
