"""What can be said against a request before anything is computed."""

from __future__ import annotations

from deepseek.attention.policy import ATTENTION_MODES, MAX_ERROR
from deepseek.engine.events import (
    MAX_PRIORITY,
    MAX_WEIGHT,
    ContextLimit,
    EmbedRequest,
    EngineRequest,
    GenerateRequest,
    ScoreRequest,
)
from deepseek.errors import ContextLengthError, InvalidRequestError


def check_tokens(tokens: list[int], vocab_size: int) -> None:
    """Raises InvalidRequestError for an empty prompt and for ids outside of the vocabulary."""
    if not tokens:
        raise InvalidRequestError("the prompt is empty; it needs at least one token.", param="prompt")
    if min(tokens) < 0 or max(tokens) >= vocab_size:
        raise InvalidRequestError(f"the prompt has token ids outside of 0 to {vocab_size - 1}.", param="prompt")


def context_reason(limit: ContextLimit) -> str:
    """Why a context holds no more tokens than it does, and what would change that."""
    match limit:
        case "model":
            return "The limit is what the model was made for; a larger max_context may stretch it (see rope_scaling)."
        case "max_context":
            return "The limit is the engine's max_context; start it with a larger one."
        case "kv_cache":
            return (
                "The limit is the memory for keys and values; a larger kv_cache_bytes holds more tokens, kv_dtype "
                "int8 twice as many as fp16, and kv_spill_bytes adds those that fit into a file."
            )


def check_attention(
    attention: str | None, error: float | None, question_tokens: int | None = None, *, sparse: bool
) -> None:
    """What a request says of its attention; ``sparse`` is whether the engine can attend sparsely.

    Raises InvalidRequestError.
    """
    if attention is not None and attention not in ATTENTION_MODES:
        raise InvalidRequestError(
            f"attention must be one of {', '.join(ATTENTION_MODES)}, not {attention!r}.", param="attention"
        )
    if error is not None and not 0.0 <= error <= MAX_ERROR:
        raise InvalidRequestError(f"attention_error must be 0 to {MAX_ERROR}, not {error!r}.", param="attention_error")
    if question_tokens is not None and question_tokens < 0:
        raise InvalidRequestError(
            f"question_tokens must be at least 0, not {question_tokens}.", param="question_tokens"
        )
    if attention == "sparse" and error != 0.0 and not sparse:
        raise InvalidRequestError(
            "this engine attends densely: it was started with attention dense, or has no kernel for sparse attention. "
            "Leave attention out, or choose auto or dense.",
            param="attention",
        )


def check_request(
    request: EngineRequest,
    *,
    vocab_size: int,
    max_context: int,
    context_limit: ContextLimit,
    hidden_size: int,
    constraints: bool,
    sparse: bool,
    before: int = 0,
) -> None:
    """Raises InvalidRequestError and ContextLengthError; ``constraints`` and ``sparse`` say what the engine can do, and
    ``before`` how many tokens of the context an adapter takes."""
    reason = context_reason(context_limit)
    if before:
        max_context -= before
        reason = f"The request's adapter takes {before} tokens of it. {reason}"
    if isinstance(request, ScoreRequest):
        check_tokens([*request.tokens, *request.alternatives], vocab_size)
        _check_score(request, max_context, reason)
        check_attention(request.attention, request.attention_error, sparse=sparse)
        return
    if isinstance(request, EmbedRequest):
        check_embed(request, vocab_size=vocab_size, max_context=max_context, hidden_size=hidden_size, reason=reason)
    else:
        check_tokens(request.prompt, vocab_size)
        _check_generate(request, vocab_size, max_context, constraints, reason)
        check_attention(request.attention, request.attention_error, request.question_tokens, sparse=sparse)
    check_urgency(request.priority, request.weight)


def check_urgency(priority: int, weight: float) -> None:
    """Raises InvalidRequestError."""
    if not -MAX_PRIORITY <= priority <= MAX_PRIORITY:
        raise InvalidRequestError(
            f"priority must be {-MAX_PRIORITY} to {MAX_PRIORITY}, not {priority}.", param="priority"
        )
    if not 1 / MAX_WEIGHT <= weight <= MAX_WEIGHT:
        raise InvalidRequestError(
            f"weight must be {1 / MAX_WEIGHT:g} to {MAX_WEIGHT:g}, not {weight!r}.", param="weight"
        )


def check_embed(request: EmbedRequest, *, vocab_size: int, max_context: int, hidden_size: int, reason: str) -> None:
    """Raises InvalidRequestError and ContextLengthError."""
    check_tokens(request.tokens, vocab_size)
    if len(request.tokens) > max_context:
        raise ContextLengthError(
            f"the text to embed has {len(request.tokens)} tokens, and the context holds {max_context}. {reason}",
            param="input",
        )
    if request.dimensions is not None and not 1 <= request.dimensions <= hidden_size:
        raise InvalidRequestError(
            f"dimensions must be 1 to {hidden_size}, not {request.dimensions}.", param="dimensions"
        )


def _check_score(request: ScoreRequest, max_context: int, reason: str) -> None:
    count = len(request.tokens)
    if not 1 <= request.start < count:
        raise InvalidRequestError(
            f"start must be 1 to {count - 1} for {count} tokens, not {request.start}.", param="start"
        )
    if count > max_context:
        raise ContextLengthError(
            f"the text to score has {count} tokens, and the context holds {max_context}. {reason}", param="tokens"
        )


def _check_generate(
    request: GenerateRequest, vocab_size: int, max_context: int, constraints: bool, reason: str
) -> None:
    if len(request.prompt) >= max_context:
        raise ContextLengthError(
            f"the prompt has {len(request.prompt)} tokens, and the context holds {max_context} for prompt and answer. "
            f"{reason}"
        )
    if request.params.constraint is not None and not constraints:
        raise InvalidRequestError("this engine has no tokenizer to keep to a constraint with.", param="constraint")
    bias = request.params.logit_bias
    if bias and max(bias) >= vocab_size:
        raise InvalidRequestError(
            f"logit_bias names token {max(bias)}; ids end at {vocab_size - 1}.", param="logit_bias"
        )
