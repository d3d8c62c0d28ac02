"""Loading and unloading of models and adapters: requests."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from deepseek.config import EngineConfig
from deepseek.errors import ConfigurationError, InvalidRequestError
from deepseek_serve.config import MAX_REPLICAS, NAME
from deepseek_serve.protocol.common import SEED_RANGE, Strict

MAX_THREADS = 4096
Count = Annotated[int, Field(ge=1, le=2**31)]
OPTIONS = (
    *("dtype", "kv_dtype", "backend", "max_context", "max_running", "max_batch_tokens", "kv_cache_bytes"),
    *("prefix_cache", "speculation", "threads", "seed", "rope_scaling"),
    *("attention", "attention_error", "question_tokens"),
)


class LoadRequest(Strict):
    """Body of ``POST /v1/models/load``: which model, its name for clients, and settings of its engine."""

    model: str = Field(min_length=1, max_length=1000)
    name: str | None = Field(default=None, pattern=f"^{NAME.pattern}$")
    replicas: int = Field(default=1, ge=1, le=MAX_REPLICAS)
    stream: bool = False

    dtype: str | None = None
    kv_dtype: str | None = None
    backend: str | None = None
    max_context: Count | None = None
    rope_scaling: str | None = None
    max_running: Count | None = None
    max_batch_tokens: Count | None = None
    kv_cache_bytes: int | None = Field(default=None, ge=1, le=2**60)
    prefix_cache: bool | None = None
    speculation: str | None = None
    attention: str | None = None
    attention_error: float | None = None
    question_tokens: int | None = Field(default=None, ge=0, le=2**31)
    threads: int | None = Field(default=None, ge=1, le=MAX_THREADS)
    seed: int | None = Field(default=None, ge=-SEED_RANGE, lt=SEED_RANGE)

    def engine(self, like: EngineConfig) -> EngineConfig:
        """Settings for its engine; device and network are those of ``like``. Raises :class:`InvalidRequestError`."""
        given = {name: value for name in OPTIONS if (value := getattr(self, name)) is not None}
        try:
            return EngineConfig(model=self.model, device=like.device, offline=like.offline, **given)
        except ConfigurationError as error:
            raise InvalidRequestError(str(error), param=str(error).split()[0], code="invalid_value") from error


class UnloadRequest(Strict):
    """Body of ``POST /v1/models/unload``."""

    model: str


class LoadAdapterRequest(Strict):
    """Body of ``POST /v1/load_lora_adapter``: an adapter's name for clients, its folder below the model folder, and the
    model that it belongs to; without one, the first. ``load_inplace`` replaces an adapter of that name."""

    lora_name: str = Field(pattern=f"^{NAME.pattern}$")
    lora_path: str = Field(min_length=1, max_length=1000)
    base_model: str | None = None
    load_inplace: bool = False


class UnloadAdapterRequest(Strict):
    """Body of ``POST /v1/unload_lora_adapter``."""

    lora_name: str = Field(min_length=1, max_length=200)
