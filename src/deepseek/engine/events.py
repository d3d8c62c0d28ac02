"""What the engine is asked and what it answers. The same structs travel between processes, as msgpack."""

from __future__ import annotations

from typing import Literal

import msgspec

from deepseek.attention.stats import AttentionStats
from deepseek.sampling import SamplingParams

MAX_PRIORITY = 100
MAX_WEIGHT = 1000.0  # and at least its inverse

FinishReason = Literal["stop", "length", "cancelled", "error"]
Pooling = Literal["mean", "last", "cls"]
"""How the vectors of a text's tokens become one: their mean, or the last or the first token's."""
ContextLimit = Literal["model", "max_context", "kv_cache"]
INVALID_CONSTRAINT = "invalid_constraint"
"""The error code of a request whose constraint cannot be compiled or followed."""
INVALID_ADAPTER = "invalid_adapter"
"""The error code of an adapter that cannot be served."""


class GenerateRequest(msgspec.Struct, frozen=True, tag="generate"):
    """One sequence to continue (``params.n`` is 1 here: the caller fans out).

    Attributes:
        request_id: unique among live requests.
        prompt: token ids, at least one.
        params: sampling options; ``stop`` strings are the caller's business, ids the engine's.
        cache_salt: requests share cached prefixes only with the same salt.
        priority: higher runs first, and takes the place of lower; -:data:`MAX_PRIORITY` to :data:`MAX_PRIORITY`.
        tenant: on whose account it goes: ``key`` or ``key/user``. Keys share the engine by weight, the users of one key
            share its part equally.
        weight: of the key, against other keys of the same priority; a positive number.
        attention, attention_error, question_tokens: as in :class:`deepseek.config.EngineConfig`; None takes what is
            said there.
        adapter: name of the loaded adapter that answers; None for the model alone.
    """

    request_id: str
    prompt: list[int]
    params: SamplingParams
    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0
    attention: str | None = None
    attention_error: float | None = None
    question_tokens: int | None = None
    adapter: str | None = None


class ScoreRequest(msgspec.Struct, frozen=True, tag="score"):
    """Log-likelihood of ``tokens[start:]`` given what stands before each of them; ``start`` >= 1.

    ``attention``, ``attention_error`` and ``adapter`` are as in :class:`GenerateRequest`; a text to score has no
    question in it.
    With ``reproducible`` and native kernels its numbers do not depend on what shares the batch, to the last bit.
    ``alternatives`` are other tokens for the last place, answered by the same forward.
    """

    request_id: str
    tokens: list[int]
    start: int
    cache_salt: str = ""
    attention: str | None = None
    attention_error: float | None = None
    adapter: str | None = None
    reproducible: bool = False
    alternatives: list[int] = []


class EmbedRequest(msgspec.Struct, frozen=True, tag="embed"):
    """One vector for a text: its tokens' hidden states behind the final norm, pooled. Attention is dense: vectors are
    kept, and compared with those of other settings.

    Attributes:
        request_id: unique among live requests.
        tokens: token ids, at least one.
        pooling: how many vectors become one.
        normalize: the vector gets length 1.
        dimensions: only so many of its first dimensions (Matryoshka, Kusupati et al. 2022, arXiv:2205.13147); None
            for all.
        cache_salt, priority, tenant, weight: as in :class:`GenerateRequest`.
    """

    request_id: str
    tokens: list[int]
    pooling: Pooling = "mean"
    normalize: bool = True
    dimensions: int | None = None
    cache_salt: str = ""
    priority: int = 0
    tenant: str = ""
    weight: float = 1.0


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Natural log-probabilities of the model's own distribution, before penalties and temperature.

    ``top`` holds the likeliest (token id, log-probability) pairs, best first.
    """

    logprob: float
    top: list[tuple[int, float]]


class TokenEvent(msgspec.Struct, frozen=True, tag="token", omit_defaults=True, gc=False):
    """One more token. The last event of a request has a ``finish_reason``.

    There is one per token of the node: what is not set is not sent, and the garbage collector does not look at it.

    Attributes:
        token_id: the token; None when the request ends without one (cancelled, failed).
        stop_token: True if ``token_id`` is an end token or a stop id, and so not part of the text.
        cached_tokens: prompt tokens whose keys were found in the prefix cache (set on the first event).
        error: a readable reason, with ``finish_reason`` "error".
        error_code: what kind of failure it is, when known: ``invalid_request`` (the request's fault),
            :data:`INVALID_CONSTRAINT`, ``engine_dead`` (sending it again may work), ``shutting_down``.
        scheduled_at: when the request first got a place in a step (set on the first event), 0 if not known. The clock
            is ``time.monotonic``, which all processes of a machine share.
    """

    request_id: str
    token_id: int | None = None
    stop_token: bool = False
    logprobs: TokenLogprobs | None = None
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
    error_code: str | None = None
    scheduled_at: float = 0.0


class ScoreEvent(msgspec.Struct, frozen=True, tag="scored"):
    """The answer to a :class:`ScoreRequest`: per scored token its log-probability and whether it was the likeliest; the
    same of each of the request's alternatives."""

    request_id: str
    logprobs: list[float]
    greedy: list[bool]
    alternatives: list[tuple[float, bool]] = []


class EmbedEvent(msgspec.Struct, frozen=True, tag="embedded", gc=False):
    """The answer to an :class:`EmbedRequest`.

    Attributes:
        vector: little-endian fp32, one after another: four bytes per dimension, which is also what the HTTP API sends.
        cached_tokens, scheduled_at: as in :class:`TokenEvent`.
    """

    request_id: str
    vector: bytes
    cached_tokens: int = 0
    scheduled_at: float = 0.0


EngineRequest = GenerateRequest | ScoreRequest | EmbedRequest


class EngineStats(msgspec.Struct, frozen=True):
    """A snapshot for health, metrics and admission. Counters grow from the engine's start.

    ``drafted_tokens`` were guessed by speculation, and ``accepted_tokens`` of them became part of answers.
    ``adapters`` are loaded, which with those still in use take ``adapter_bytes``.
    ``kv_spill_pages`` lie in the spill file; ``kv_spill_moved`` were moved there, ``kv_spill_checked`` compared with
    their checksums, and ``kv_spill_corrupt`` of these were not the same. ``attention`` says what sparse attention read.
    """

    waiting: int
    running: int
    pages_total: int
    pages_free: int
    steps: int
    prompt_tokens: int
    cached_prompt_tokens: int
    generated_tokens: int
    preemptions: int
    finished: int
    cancelled: int
    failed: int
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    kv_spill_pages: int = 0
    kv_spill_moved: int = 0
    kv_spill_checked: int = 0
    kv_spill_corrupt: int = 0
    attention: AttentionStats = AttentionStats()
    adapters: int = 0
    adapter_bytes: int = 0


class AdapterInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded adapter is.

    Attributes:
        name: what requests call it.
        kind: ``lora``, ``prompt`` or ``prefix`` (see :class:`deepseek.adapters.adapter.Adapter`).
        digest: of its files.
        base_model: what it was trained on, as its files say; may be empty.
        rank: the highest of a LoRA's.
        tokens: that it puts before every prompt.
        nbytes: memory that it takes.
        load_seconds: time from its files to ready.
    """

    name: str
    kind: Literal["lora", "prompt", "prefix"]
    digest: str
    base_model: str
    rank: int
    tokens: int
    nbytes: int
    load_seconds: float


class AdapterEvent(msgspec.Struct, frozen=True, tag="adapter"):
    """An adapter has been loaded, or with ``info`` None unloaded."""

    request_id: str
    info: AdapterInfo | None


EngineEvent = TokenEvent | ScoreEvent | EmbedEvent | AdapterEvent


class EmbeddingInfo(msgspec.Struct, frozen=True, kw_only=True):
    """How a model's vectors are meant to be made.

    Attributes:
        dimensions: of a vector.
        pooling: what its files say, or what serves such a model best.
        normalize: its vectors have length 1.
        shorter: numbers of first dimensions that it was trained to do with; None where any number of them does, empty
            where it was not trained for that.
    """

    dimensions: int
    pooling: Pooling
    normalize: bool = True
    shorter: tuple[int, ...] | None = ()


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a loaded engine is.

    Attributes:
        model: the real name of the model.
        architecture: its family (``Qwen2ForCausalLM``).
        vocab_size: number of token ids.
        max_context: tokens per request, prompt and answer.
        context_limit: why not more: the ``model``, the setting ``max_context``, or the room of the ``kv_cache``.
        dtype: floating dtype of weights and cache.
        kv_cache_bytes: memory for keys and values.
        kv_spill_bytes: room for them in the spill file.
        kv_cache_tokens: tokens that both hold.
        weights_bytes: memory of the weights.
        load_seconds: time from start to ready.
        backends: op -> backend that runs it.
        embedding: how its vectors are made; None where it makes none.
        generates: it can continue a text; False for an encoder.
        sparse: it can attend sparsely.
    """

    model: str
    architecture: str
    vocab_size: int
    max_context: int
    dtype: str
    kv_cache_bytes: int
    kv_cache_tokens: int
    weights_bytes: int
    load_seconds: float
    backends: dict[str, str]
    embedding: EmbeddingInfo | None = None
    generates: bool = True
    sparse: bool = False
    context_limit: ContextLimit = "model"
    kv_spill_bytes: int = 0
