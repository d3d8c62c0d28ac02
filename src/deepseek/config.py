"""Frozen settings of one engine. Complete after construction: who uses them never fills anything in."""

from __future__ import annotations

import msgspec

from deepseek.errors import ConfigurationError

DTYPES = ("auto", "fp32", "bf16", "fp16")
DEFAULT_MODEL = "qwen2.5-coder-1.5b-instruct"
PUBLIC_NAME = "deepseek-v2.1"
PAGE_SIZE = 64


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine.

    Attributes:
        model: a local folder or ``.gguf`` file, a built-in name, or a Hugging Face repository id.
        dtype: floating dtype of weights, activations and cache; ``auto`` lets the device decide.
        device: ``cpu`` (``cuda`` comes with its kernels).
        backend: kernels to use: ``auto``, or a backend's name for all ops.
        max_context: tokens per request, prompt and answer; None takes the model's own, as far as the cache holds it.
        max_running: sequences in one step.
        max_batch_tokens: rows in one step; a long prompt is cut into chunks of at most this.
        kv_cache_bytes: memory for keys and values; None takes a share of what is free after loading.
        page_size: tokens per cache page.
        prefix_cache: reuse the pages of equal prompt beginnings.
        threads: CPU threads; None takes one per core.
        seed: seeds requests that bring none; None draws one.
        offline: never touch the network.
    """

    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    device: str = "cpu"
    backend: str = "auto"
    max_context: int | None = None
    max_running: int = 64
    max_batch_tokens: int = 512
    kv_cache_bytes: int | None = None
    page_size: int = PAGE_SIZE
    prefix_cache: bool = True
    threads: int | None = None
    seed: int | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}.")
        positive = ("max_context", "max_running", "max_batch_tokens", "kv_cache_bytes", "page_size", "threads")
        for name in positive:
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {value}.")
        if self.max_batch_tokens < self.max_running:
            raise ConfigurationError(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_running ({self.max_running}): "
                "every running sequence adds one row to a step."
            )
