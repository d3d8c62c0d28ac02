"""``/v1/embeddings``: request and response."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from pydantic import Field

from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.common import MAX_USER_ID, InvalidFieldError, Strict

MAX_INPUTS = 2048
MAX_TOKENS = 300_000  # of all inputs of a request; OpenAI's limits, both


class EmbeddingRequest(Strict):
    """Body of ``POST /v1/embeddings``."""

    model: str
    input: str | list[Any]
    dimensions: int | None = Field(default=None, ge=1)
    encoding_format: Literal["float", "base64"] | None = None

    # on whose account, and how urgent
    user_id: str | None = Field(default=None, max_length=MAX_USER_ID)
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None

    user: str | None = None  # accepted without effect

    def inputs(self) -> list[str | list[int]]:
        """One or several texts or token lists, none of them empty. Raises :class:`InvalidRequestError`."""
        given = self.input
        if not given:
            raise InvalidFieldError("input", "it is empty")
        if isinstance(given, str) or (len(given) <= MAX_TOKENS and all(map(_is_token, given))):
            given = [given]
        if len(given) > MAX_INPUTS:
            raise InvalidRequestError(
                f"Invalid 'input': array too long. Expected an array with maximum length {MAX_INPUTS}, but got an "
                f"array with length {len(given)} instead.",
                param="input",
                code="array_above_max_length",
            )
        check_total(sum(len(item) for item in given if isinstance(item, list)))  # before anybody looks at each of them
        for index, item in enumerate(given):
            if not isinstance(item, str) and not (isinstance(item, list) and all(map(_is_token, item))):
                raise InvalidFieldError(f"input[{index}]", "an input is a string or a list of token ids")
            if not item:
                raise InvalidFieldError(f"input[{index}]", "an input cannot be empty")
        if len({type(item) for item in given}) > 1:
            raise InvalidFieldError("input", "it mixes texts and token lists")
        return given


class EmbeddingUsage(msgspec.Struct):
    prompt_tokens: int
    total_tokens: int


class Embedding(msgspec.Struct):
    """``embedding``: numbers, or base64 of them as little-endian fp32."""

    embedding: list[float] | str
    index: int
    object: str = "embedding"


class EmbeddingList(msgspec.Struct):
    """Answer of ``POST /v1/embeddings``; ``data`` is a list of :class:`Embedding`, encoded where it stops nobody."""

    data: msgspec.Raw
    model: str
    usage: EmbeddingUsage
    object: str = "list"


def check_total(tokens: int) -> None:
    """Raises :class:`InvalidRequestError` for more tokens than a request may have."""
    if tokens > MAX_TOKENS:
        raise InvalidRequestError(
            f"Requested {tokens} tokens, max {MAX_TOKENS} tokens per request. Send the inputs in several requests.",
            param="input",
            code="max_tokens_per_request",
        )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
