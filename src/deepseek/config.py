"""Frozen settings of one engine. Complete after construction: who uses them never fills anything in."""

from __future__ import annotations

import msgspec

from deepseek.attention.policy import ATTENTION_MODES, DEFAULT_ERROR, MAX_ERROR, QUESTION_TOKENS
from deepseek.errors import ConfigurationError

DTYPES = ("auto", "fp32", "bf16", "fp16", "int8", "int4")
KV_DTYPES = ("auto", "fp16", "int8")
DEFAULT_MODEL = "qwen2.5-coder-1.5b-instruct"
ROPE_SCALING = ("auto", "none", "yarn")
SPECULATION = ("off", "auto", "lookup", "draft")
PUBLIC_NAME = "deepseek-v2.1"
PAGE_SIZE = 64
MAX_ADAPTERS = 64


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one engine.

    Attributes:
        model: a local folder or ``.gguf`` file, a built-in name, or a Hugging Face repository id.
        dtype: precision of the matrices. ``auto`` keeps a quantized checkpoint's own integers, and otherwise takes the
            floating dtype that the device multiplies best; ``int8`` and ``int4`` quantize floats when they are loaded.
        kv_dtype: precision of cached keys and values: ``fp16``, or ``int8`` for half the memory; ``auto`` is ``fp16``
            with native kernels and the model's dtype with others.
        device: ``cpu`` or ``cuda``.
        backend: kernels to use: ``auto``, or a backend's name for all ops.
        tensor_parallel_size: processes that the model is divided over, each with a GPU of this node; on a CPU they
            share its cores, which is for tests.
        max_context: tokens per request, prompt and answer; None takes the model's own, as far as the cache holds it.
        rope_scaling: what a ``max_context`` beyond the model's own does. ``auto`` stretches the rotations of families
            whose publishers document that (:mod:`deepseek.models.stretch`) as far as they do and refuses the rest;
            ``none`` refuses all; ``yarn`` stretches any model, without a promise of quality.
        max_running: sequences in one step.
        max_batch_tokens: rows in one step; a long prompt is cut into chunks of at most this.
        kv_cache_bytes: memory for keys and values; None takes a share of what is free after loading.
        kv_spill_bytes: room for keys and values in a file below ``kv_spill_dir``, beside those in memory; None spills
            nothing. Needs native kernels (:mod:`deepseek.engine.spill`).
        kv_spill_dir: a folder on a local disk.
        page_size: tokens per cache page.
        prefix_cache: reuse the pages of equal prompt beginnings.
        speculation: guess tokens and verify the guesses together, which changes no answer. ``lookup`` guesses from the
            prompt and the answer so far, ``draft`` asks ``draft_model``; ``auto`` is ``draft`` if there is one, else
            ``lookup``.
        draft_model: a smaller model with the same vocabulary, named as ``model`` is.
        attention: ``dense`` reads every token of the context; ``sparse`` reads those that matter to the query; ``auto``
            is dense while a context is short and sparse from where that is faster. Requests may say otherwise.
        attention_error: the relative error of an attention output that sparse attention aims at; 0 is exactly dense.
        question_tokens: the last so many tokens of a prompt are dense; 0 reads a question as sparsely as the rest.
        adapters: folders of adapters (as peft writes them), by the names that requests ask for.
        max_adapters: adapters that may be loaded at a time, these included.
        threads: CPU threads; None takes one per core.
        seed: seeds requests that bring none; None draws one.
        offline: never touch the network.
    """

    model: str = DEFAULT_MODEL
    dtype: str = "auto"
    kv_dtype: str = "auto"
    device: str = "cpu"
    backend: str = "auto"
    tensor_parallel_size: int = 1
    max_context: int | None = None
    rope_scaling: str = "auto"
    max_running: int = 64
    max_batch_tokens: int = 512
    kv_cache_bytes: int | None = None
    kv_spill_bytes: int | None = None
    kv_spill_dir: str | None = None
    page_size: int = PAGE_SIZE
    prefix_cache: bool = True
    speculation: str = "auto"
    draft_model: str | None = None
    attention: str = "auto"
    attention_error: float = DEFAULT_ERROR
    question_tokens: int = QUESTION_TOKENS
    adapters: dict[str, str] = {}
    max_adapters: int = MAX_ADAPTERS
    threads: int | None = None
    seed: int | None = None
    offline: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ConfigurationError(f"dtype must be one of {', '.join(DTYPES)}, not {self.dtype!r}.")
        if self.kv_dtype not in KV_DTYPES:
            raise ConfigurationError(f"kv_dtype must be one of {', '.join(KV_DTYPES)}, not {self.kv_dtype!r}.")
        if self.speculation not in SPECULATION:
            raise ConfigurationError(f"speculation must be one of {', '.join(SPECULATION)}, not {self.speculation!r}.")
        if self.attention not in ATTENTION_MODES:
            raise ConfigurationError(f"attention must be one of {', '.join(ATTENTION_MODES)}, not {self.attention!r}.")
        if not 0.0 <= self.attention_error <= MAX_ERROR:
            raise ConfigurationError(f"attention_error must be 0 to {MAX_ERROR}, not {self.attention_error!r}.")
        if self.rope_scaling not in ROPE_SCALING:
            raise ConfigurationError(
                f"rope_scaling must be one of {', '.join(ROPE_SCALING)}, not {self.rope_scaling!r}."
            )
        if self.question_tokens < 0:
            raise ConfigurationError(f"question_tokens must be at least 0, not {self.question_tokens}.")
        if self.speculation == "draft" and self.draft_model is None:
            raise ConfigurationError("speculation 'draft' needs a draft_model.")
        if self.speculation in ("off", "lookup") and self.draft_model is not None:
            raise ConfigurationError(
                f"a draft_model is not used with speculation {self.speculation!r}; choose 'draft', or leave it out."
            )
        if (self.kv_spill_bytes is None) != (self.kv_spill_dir is None):
            raise ConfigurationError("kv_spill_bytes and kv_spill_dir go together: give both, or neither.")
        sizes = ("kv_cache_bytes", "kv_spill_bytes", "page_size")
        counts = ("max_context", "max_running", "max_batch_tokens", "max_adapters", "threads", "tensor_parallel_size")
        for name in (*counts, *sizes):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigurationError(f"{name} must be at least 1, not {value}.")
        if len(self.adapters) > self.max_adapters:
            raise ConfigurationError(
                f"there are {len(self.adapters)} adapters, and max_adapters is {self.max_adapters}; raise it."
            )
        if self.max_batch_tokens < self.max_running:
            raise ConfigurationError(
                f"max_batch_tokens ({self.max_batch_tokens}) must be at least max_running ({self.max_running}): "
                "every running sequence adds one row to a step."
            )
