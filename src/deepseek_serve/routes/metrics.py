"""``GET /metrics`` for Prometheus."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.reference.described import described
from deepseek_serve.state import state_of

router = APIRouter()


@router.get("/metrics")
@described(tag="Health", media_type="text/plain")
async def metrics(request: Request) -> Response:
    """Counters of the server and the newest numbers of the engine."""
    return Response(state_of(request).metrics.render(), media_type=CONTENT_TYPE_LATEST)
