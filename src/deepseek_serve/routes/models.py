"""``GET /v1/models`` and ``GET /v1/models/{id}``."""

from __future__ import annotations

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepseek_serve.models import ServedModel
from deepseek_serve.protocol.responses import ModelCard, ModelList
from deepseek_serve.state import state_of

router = APIRouter()


@router.get("/v1/models")
@router.get("/models")
async def list_models(request: Request) -> Response:
    """The models of this server, each under its public name."""
    state = state_of(request)
    return _json(ModelList([_card(model, model.name) for model in state.models]))


@router.get("/v1/models/{model:path}")
@router.get("/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> Response:
    """A model by any of its names."""
    state = state_of(request)
    return _json(_card(state.model(model), model))


def _card(model: ServedModel, name: str) -> ModelCard:
    info = model.info
    return ModelCard(name, model.created, model.real_name, info.max_context if info is not None else None)


def _json(body: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(body), media_type="application/json")
