"""``/v1/models``: which models there are, and loading and unloading them and their adapters."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from pathlib import Path

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepseek.errors import EngineOverloadedError
from deepseek_serve.adapted import AdaptedModel
from deepseek_serve.admission import RETRY_WHEN_DRAINING
from deepseek_serve.auth import require_admin
from deepseek_serve.errors import ApiError
from deepseek_serve.generation import off_loop
from deepseek_serve.limits import read_body
from deepseek_serve.models import ServedModel
from deepseek_serve.protocol.models import LoadAdapterRequest, LoadRequest, UnloadAdapterRequest, UnloadRequest
from deepseek_serve.protocol.responses import ModelCard, ModelList, ModelUnloaded
from deepseek_serve.reference.described import described
from deepseek_serve.sources import locate_adapter
from deepseek_serve.state import state_of
from deepseek_serve.streaming import EventStream

router = APIRouter()
encode = msgspec.json.Encoder().encode

ADMIN_PROBLEMS = (400, 401, 402, 403, 404, 408, 409, 413, 415, 429, 500, 503)
MAX_BODY_BYTES = 64 << 10
PROGRESS_INTERVAL = 0.2  # seconds


@router.get("/v1/models")
@router.get("/models")
@described(tag="Models", answer=ModelList, errors=(401, 402, 429, 500))
async def list_models(request: Request) -> Response:
    """The models of this server, each under its public name."""
    state = state_of(request)
    models = [served for model in state.models for served in (model, *model.adapters.values())]
    return _json(ModelList([_card(model, model.name) for model in models]))


@router.get("/v1/models/{model:path}")
@router.get("/models/{model:path}")
@described(tag="Models", answer=ModelCard, errors=(401, 402, 404, 429, 500))
async def retrieve_model(request: Request, model: str) -> Response:
    """A model by any of its names."""
    state = state_of(request)
    return _json(_card(state.model(model), model))


@router.post("/v1/models/load")
@router.post("/models/load")
@described(
    tag="Models",
    body=LoadRequest,
    answer=ModelCard,
    stream=ModelCard,
    errors=(*ADMIN_PROBLEMS, 507),
    example={"model": "smollm2-135m-instruct", "name": "small", "kv_cache_bytes": 268435456},
)
async def load_model(request: Request) -> Response:
    """Begin to load a model: answered at once, or with ``stream`` again and again until it is ready or failed."""
    state = state_of(request)
    body = LoadRequest.model_validate_json(await _body_of_admin(request))
    if state.admission.draining:
        raise EngineOverloadedError("The server is shutting down.", retry_after=RETRY_WHEN_DRAINING)
    model = state.loader.load(body.model, body.name, body.engine(state.config.engine), body.replicas)
    if body.stream:
        return EventStream(_progress(model), ExitStack(), state.config.keep_alive_interval)
    return _json(_card(model, model.name))


@router.post("/v1/models/unload")
@router.post("/models/unload")
@described(tag="Models", body=UnloadRequest, answer=ModelUnloaded, errors=ADMIN_PROBLEMS, example={"model": "small"})
async def unload_model(request: Request) -> Response:
    """Take a model or an adapter out of service; of a model, answered when its memory is free."""
    state = state_of(request)
    body = UnloadRequest.model_validate_json(await _body_of_admin(request))
    model = state.model(body.model)
    if isinstance(model, AdaptedModel):
        await state.loader.unload_adapter(model)
    else:
        await state.loader.unload(model)
    return _json(ModelUnloaded(model.name))


@router.post("/v1/load_lora_adapter")
@described(
    tag="Models",
    body=LoadAdapterRequest,
    answer=ModelCard,
    errors=ADMIN_PROBLEMS,
    example={"lora_name": "support", "lora_path": "adapters/support"},
)
async def load_adapter(request: Request) -> Response:
    """Serve an adapter under a name of its own, beside its model; answered when it is there."""
    state = state_of(request)
    body = LoadAdapterRequest.model_validate_json(await _body_of_admin(request))
    if state.admission.draining:
        raise EngineOverloadedError("The server is shutting down.", retry_after=RETRY_WHEN_DRAINING)
    model = state.model(body.base_model)
    if isinstance(model, AdaptedModel):
        raise ApiError(400, f"{model.name!r} is an adapter itself.", param="base_model", code="invalid_value")
    model_dir = state.config.model_dir
    folder = await off_loop(state, lambda: locate_adapter(body.lora_path, Path(model_dir) if model_dir else None))
    adapted = await state.loader.load_adapter(model, body.lora_name, folder, replace=body.load_inplace)
    return _json(_card(adapted, adapted.name))


@router.post("/v1/unload_lora_adapter")
@described(
    tag="Models",
    body=UnloadAdapterRequest,
    answer=ModelUnloaded,
    errors=ADMIN_PROBLEMS,
    example={"lora_name": "support"},
)
async def unload_adapter(request: Request) -> Response:
    """Take an adapter out of service; requests that use it go on."""
    state = state_of(request)
    body = UnloadAdapterRequest.model_validate_json(await _body_of_admin(request))
    adapted = state.model(body.lora_name)
    if not isinstance(adapted, AdaptedModel):
        raise ApiError(404, f"{adapted.name!r} is a model, no adapter.", param="lora_name", code="adapter_not_found")
    await state.loader.unload_adapter(adapted)
    return _json(ModelUnloaded(adapted.name))


async def _body_of_admin(request: Request) -> bytes:
    """The body of a request that its sender may make.

    It must be declared as JSON: browsers send that to another site only after asking, so no page that somebody visits
    can load models into a server without keys on their machine.
    """
    require_admin(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "Send 'Content-Type: application/json'.", code="unsupported_media_type")
    return await read_body(request, MAX_BODY_BYTES)


async def _progress(model: ServedModel) -> AsyncGenerator[bytes, None]:
    """The model whenever something has changed, until it does not load any more."""
    last = b""
    while True:
        over = model.status != "starting"
        card = encode(_card(model, model.name))
        if card != last:
            last = card
            yield card
        if over:
            return
        await asyncio.sleep(PROGRESS_INTERVAL)


def _card(model: ServedModel, name: str) -> ModelCard:
    info = model.info
    status = "loading" if model.status == "starting" else model.status
    return ModelCard(
        name,
        model.created,
        Path(model.folder).name if isinstance(model, AdaptedModel) else model.real_name,
        info.max_context if info is not None else None,
        parent=model.base.name if isinstance(model, AdaptedModel) else None,
        status=status,
        progress=model.progress,
        error=None if status == "ready" else model.failure,
    )


def _json(body: msgspec.Struct) -> Response:
    return Response(encode(body), media_type="application/json")
