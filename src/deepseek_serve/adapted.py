"""A served model as it answers with one of its adapters."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from typing import Any

import msgspec

from deepseek.engine.events import AdapterInfo, EmbedEvent, EmbedRequest, EngineInfo, GenerateRequest, TokenEvent
from deepseek.errors import InvalidRequestError
from deepseek_serve.models import ServedModel


class AdaptedModel(ServedModel):
    """Everything but what is said here is its base's, now and later.

    Attributes:
        base: the model.
        folder: where the adapter's files are.
        adapter: what it is.
    """

    def __init__(self, base: ServedModel, name: str, folder: str, adapter: AdapterInfo) -> None:
        # Not the base class's: what is not set here is looked up in the base model.
        self.base = base
        self.names = (name,)
        self.folder = folder
        self.adapter = adapter
        self.created = int(time.time())
        self.fingerprint = f"{base.fingerprint}_{adapter.digest[:10]}"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    @property
    def info(self) -> EngineInfo | None:
        """As the base's, with the room that the adapter leaves in the context, and without embeddings."""
        info = self.base.info
        if info is None:
            return None
        return msgspec.structs.replace(info, max_context=info.max_context - self.adapter.tokens, embedding=None)

    def generate(self, request: GenerateRequest) -> AsyncGenerator[TokenEvent, None]:
        """As :meth:`ServedModel.generate`, with the adapter."""
        replica = self.router.choose(request.prompt, f"{self.adapter.digest} {request.cache_salt}")
        return replica.generate(msgspec.structs.replace(request, adapter=self.name))

    async def embed(self, request: EmbedRequest) -> EmbedEvent:
        """Raises InvalidRequestError: adapters are for models that generate."""
        raise InvalidRequestError(f"The adapter {self.name!r} makes no embeddings.", param="model")
