"""``/tokenize`` and ``/detokenize``: requests and responses, named as other servers name them."""

from __future__ import annotations

from typing import Any, Self

import msgspec
import pydantic
from pydantic import Field

from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.chat import MAX_MESSAGES, Message, conversation
from deepseek_serve.protocol.common import Strict


class TokenizeRequest(Strict):
    """Body of ``POST /tokenize``: a ``prompt`` as ``/v1/completions`` reads it, or ``messages`` as chat does."""

    model: str | None = None
    prompt: str | None = None
    messages: list[Message] | None = Field(default=None, min_length=1, max_length=MAX_MESSAGES)
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    return_token_strs: bool | None = None

    @pydantic.model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequestError(
                "Send either 'prompt' or 'messages'.", param="prompt", code="missing_required_parameter"
            )
        return self

    def conversation(self) -> tuple[list[dict[str, Any]], bool, bool]:
        """As :func:`deepseek_serve.protocol.chat.conversation`."""
        return conversation(self.messages or [], self.add_generation_prompt, self.continue_final_message)


class DetokenizeRequest(Strict):
    """Body of ``POST /detokenize``."""

    model: str | None = None
    tokens: list[int]


class Tokens(msgspec.Struct):
    """Answer of ``/tokenize``. ``token_strs`` shows incomplete UTF-8 as U+FFFD."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Text(msgspec.Struct):
    """Answer of ``/detokenize``."""

    prompt: str
