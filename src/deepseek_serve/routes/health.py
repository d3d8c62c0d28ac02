"""``/health/live``: this process answers. ``/health/ready``: a request sent now would be served."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from msgspec import UNSET, UnsetType
from starlette.requests import Request
from starlette.responses import Response

from deepseek.runtime.client import RETRY_WHILE_STARTING
from deepseek_serve.reference.described import described
from deepseek_serve.state import state_of

router = APIRouter()


class Health(msgspec.Struct):
    status: str


class Readiness(msgspec.Struct):
    """``model`` if it is ready; else the ``reason``, if there is one."""

    status: str
    model: str | UnsetType = UNSET
    reason: str | UnsetType | None = UNSET


@router.get("/health/live")
@described(tag="Health", answer=Health)
async def live() -> Response:
    """200 as long as the event loop turns; never waits for the engine."""
    return _json(Health("ok"))


@router.get("/health/ready")
@described(tag="Health", answer=Readiness, unready=Readiness)
async def ready(request: Request) -> Response:
    """200 if the engine makes progress, or is idle and answers; else 503 with the state and the reason."""
    state = state_of(request)
    model = state.models[0] if state.models else None
    if state.ready and model is not None:
        return _json(Readiness("ready", model.name))
    status = "draining" if state.admission.draining else model.status if model is not None else "no_model"
    request.state.record.error_code = "not_ready"
    headers = {"retry-after": str(round(RETRY_WHILE_STARTING))}
    return _json(Readiness(status, reason=model.failure if model is not None else None), 503, headers)


def _json(body: msgspec.Struct, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(msgspec.json.encode(body), status, headers, "application/json")
