"""The ASGI application: which routes there are, and which of them are open to everybody."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Depends, FastAPI

from deepseek_serve import errors
from deepseek_serve.auth import require_anthropic_key, require_key
from deepseek_serve.middleware import Envelope
from deepseek_serve.routes import (
    batches,
    chat,
    completions,
    files,
    health,
    messages,
    metrics,
    models,
    playground,
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
OPEN_ROUTES = ("/health/live", "/health/ready", "/metrics", "/", "/playground/{version}/{path:path}")
PROTECTED: tuple[APIRouter, ...] = (
    chat.router,
    completions.router,
    models.router,
    tokenize.router,
    files.router,
    batches.router,
    usage.router,
)
OPEN: tuple[APIRouter, ...] = (health.router, metrics.router, playground.router)


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
    for router in PROTECTED:
        app.include_router(router, dependencies=[Depends(require_key)])
    app.include_router(messages.router, dependencies=[Depends(require_anthropic_key)])
    for router in OPEN:
        if router is not playground.router or state.config.playground:
            app.include_router(router)
    errors.install(app)
    app.add_middleware(Turnstile, exempt=OPEN_ROUTES)
    app.add_middleware(Envelope, metrics=state.metrics, tracing=state.tracing)
    return app
