"""The ASGI application: which routes there are, and which of them are open to everybody."""

from __future__ import annotations

from fastapi import APIRouter, Depends, FastAPI

from deepseek_serve import errors
from deepseek_serve.auth import require_key
from deepseek_serve.middleware import Envelope
from deepseek_serve.routes import chat, completions, health, metrics, models, tokenize
from deepseek_serve.state import ServerState

OPEN_ROUTES = ("/health/live", "/health/ready", "/metrics")
PROTECTED: tuple[APIRouter, ...] = (chat.router, completions.router, models.router, tokenize.router)
OPEN: tuple[APIRouter, ...] = (health.router, metrics.router)


def create_app(state: ServerState) -> FastAPI:
    """The application around ``state``. It starts nothing: the engine's client belongs to the caller."""
    app = FastAPI(title="DeepSeek V2.1", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.server = state
    for router in PROTECTED:
        app.include_router(router, dependencies=[Depends(require_key)])
    for router in OPEN:
        app.include_router(router)
    errors.install(app)
    app.add_middleware(Envelope, metrics=state.metrics)
    return app
