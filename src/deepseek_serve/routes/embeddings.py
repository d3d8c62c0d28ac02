"""``POST /v1/embeddings``."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from contextlib import ExitStack

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepseek.embedding import check_dimensions, floats
from deepseek.engine.events import EngineInfo
from deepseek.errors import ContextLengthError, InvalidRequestError
from deepseek_serve.embedding import EmbeddingJob
from deepseek_serve.entry import BatchEntry, Entry
from deepseek_serve.generation import off_loop
from deepseek_serve.limits import read_body
from deepseek_serve.protocol.embeddings import Embedding, EmbeddingList, EmbeddingRequest, EmbeddingUsage, check_total
from deepseek_serve.reference.described import PROBLEMS, described
from deepseek_serve.state import ServerState, state_of
from deepseek_serve.streaming import whole_answer

router = APIRouter()


@router.post("/v1/embeddings")
@router.post("/embeddings")
@described(
    tag="Embeddings",
    body=EmbeddingRequest,
    answer=EmbeddingList,
    items=Embedding,
    errors=(*PROBLEMS, 404),
    example={"model": "deepseek-v2.1", "input": ["A man is eating food.", "Someone has a meal."]},
)
async def create_embeddings(request: Request) -> Response:
    """A vector for each of one or several texts."""
    state = state_of(request)
    body = EmbeddingRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    with ExitStack() as resources:
        entry = Entry(state, request, resources, user_id=body.user_id, service_tier=body.service_tier)
        job = await _admit(state, body, entry)
        return await whole_answer(request, _whole(state, body, job), resources, state.config.padding)


async def complete(state: ServerState, tenant: str, body: EmbeddingRequest) -> EmbeddingList:
    """The answer to a line of a batch, which takes no room from live requests."""
    with ExitStack() as resources:
        entry = BatchEntry(state, tenant, resources, user_id=body.user_id)
        return await _whole(state, body, await _admit(state, body, entry))


async def _admit(state: ServerState, body: EmbeddingRequest, entry: Entry) -> EmbeddingJob:
    """Check everything that can be checked, and take room: a request is one answer, however many texts it has."""
    model = state.model(body.model)
    info, tokenizer = model.running()
    made = info.embedding
    if made is None:
        raise InvalidRequestError(
            f"The model {model.name!r} makes no embeddings.", param="model", code="model_not_supported"
        )
    check_dimensions(made, body.dimensions)
    given = body.inputs()
    entry.take(1)
    texts = await off_loop(state, lambda: [tokenizer.encode(t) if isinstance(t, str) else t for t in given])
    _check_texts(texts, info)
    await entry.take_tokens(texts, answers=0, max_tokens=None, max_context=info.max_context)
    return EmbeddingJob(state, model, made, texts, body.dimensions, entry=entry)


def _check_texts(texts: Sequence[list[int]], info: EngineInfo) -> None:
    """Refuse what the engine would refuse, and more than a request may have."""
    check_total(sum(map(len, texts)))
    for index, text in enumerate(texts):
        if not text:
            raise InvalidRequestError(f"Invalid 'input[{index}]': it has no tokens.", param="input")
        if min(text) < 0 or max(text) >= info.vocab_size:
            raise InvalidRequestError(
                f"Invalid 'input[{index}]': it has token ids outside of 0 to {info.vocab_size - 1}.",
                param="input",
                code="invalid_value",
            )
        if len(text) > info.max_context:
            raise ContextLengthError(
                f"This model's maximum context length is {info.max_context} tokens, however you requested "
                f"{len(text)} tokens in 'input[{index}]'. Please reduce the length of the input.",
                param="input",
            )


async def _whole(state: ServerState, body: EmbeddingRequest, job: EmbeddingJob) -> EmbeddingList:
    vectors = await job.vectors()
    data = await off_loop(state, lambda: _encoded(vectors, as_base64=body.encoding_format == "base64"))
    return EmbeddingList(data, body.model, EmbeddingUsage(job.prompt_tokens, job.prompt_tokens))


def _encoded(vectors: Sequence[bytes], *, as_base64: bool) -> msgspec.Raw:
    """Thousands of vectors take the encoder long enough to be noticed by others."""
    if as_base64:
        shown: list[Embedding] = [Embedding(base64.b64encode(v).decode(), index) for index, v in enumerate(vectors)]
    else:
        shown = [Embedding(floats(v).tolist(), index) for index, v in enumerate(vectors)]
    return msgspec.Raw(msgspec.json.encode(shown))
