"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.protocol.responses import ModelCard, ModelList
from deepseek_serve.state import ServerState, state_of

router = APIRouter()


@router.get("/v1/models")
@router.get("/models")
async def list_models(request: Request) -> Response:
    """The one model of this server, under its public name."""
    state = state_of(request)
    return _json(ModelList([_card(state, state.config.served_model_name)]))


@router.get("/v1/models/{model:path}")
@router.get("/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> Response:
    """A model by any of its names."""
    state = state_of(request)
    state.check_model(model)
    return _json(_card(state, model))


def _card(state: ServerState, name: str) -> ModelCard:
    info = state.client.info
    return ModelCard(name, state.created, state.real_name, info.max_context if info is not None else None)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
