"""``/health/live``: this process answers. ``/health/ready``: a request sent now would be served."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deepseek.runtime.client import RETRY_WHILE_STARTING
from deepseek_serve.state import state_of

router = APIRouter()


@router.get("/health/live")
async def live() -> Response:
    """200 as long as the event loop turns; never waits for the engine."""
    return JSONResponse({"status": "ok"})


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """200 if the engine makes progress, or is idle and answers; else 503 with the state and the reason."""
    state = state_of(request)
    model = state.models[0] if state.models else None
    if state.ready and model is not None:
        return JSONResponse({"status": "ready", "model": model.name})
    status = "draining" if state.admission.draining else model.status if model is not None else "no_model"
    request.state.record.error_code = "not_ready"
    headers = {"retry-after": str(round(RETRY_WHILE_STARTING))}
    return JSONResponse({"status": status, "reason": model.failure if model is not None else None}, 503, headers)
