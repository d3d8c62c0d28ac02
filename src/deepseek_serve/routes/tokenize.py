"""``POST /tokenize`` and ``POST /detokenize``: what the model reads, without asking the model."""

from __future__ import annotations

from contextlib import ExitStack

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from deepseek.errors import InvalidRequestError
from deepseek_serve.entry import Entry
from deepseek_serve.generation import off_loop
from deepseek_serve.limits import read_body
from deepseek_serve.protocol.tokenize import DetokenizeRequest, Text, TokenizeRequest, Tokens
from deepseek_serve.reference.described import PROBLEMS, described
from deepseek_serve.state import state_of

router = APIRouter()


@router.post("/tokenize")
@described(
    tag="Tokens", body=TokenizeRequest, answer=Tokens, errors=(*PROBLEMS, 404), example={"prompt": "The capital"}
)
async def tokenize(request: Request) -> Response:
    """The tokens of a text (special tokens may be spelled, as in completions) or of a conversation."""
    state = state_of(request)
    body = TokenizeRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    info, tokenizer = state.model(body.model).running()

    def encode() -> Tokens:
        if body.prompt is not None:
            special = body.add_special_tokens is not False
            ids = tokenizer.encode(body.prompt, add_special_tokens=special, parse_special=True)
        else:
            messages, add_prompt, continues = body.conversation()
            ids = tokenizer.encode_chat(messages, add_generation_prompt=add_prompt, continue_final_message=continues)
        names = [tokenizer.token_bytes(i).decode("utf-8", "replace") for i in ids] if body.return_token_strs else None
        return Tokens(len(ids), info.max_context, ids, names)

    with ExitStack() as resources:
        Entry(state, request, resources).take(1)  # chats wait for the same threads
        tokens = await off_loop(state, encode)
    return Response(msgspec.json.encode(tokens), media_type="application/json")


@router.post("/detokenize")
@described(tag="Tokens", body=DetokenizeRequest, answer=Text, errors=(*PROBLEMS, 404), example={"tokens": [504, 3575]})
async def detokenize(request: Request) -> Response:
    """The text of tokens, special ones included."""
    state = state_of(request)
    body = DetokenizeRequest.model_validate_json(await read_body(request, state.config.max_body_bytes))
    info, tokenizer = state.model(body.model).running()
    if any(not 0 <= token < info.vocab_size for token in body.tokens):
        raise InvalidRequestError(
            f"tokens has ids outside of 0 to {info.vocab_size - 1}.", param="tokens", code="invalid_value"
        )
    with ExitStack() as resources:
        Entry(state, request, resources).take(1)
        text = await off_loop(state, lambda: tokenizer.decode(body.tokens, skip_special_tokens=False))
    return Response(msgspec.json.encode(Text(text)), media_type="application/json")
