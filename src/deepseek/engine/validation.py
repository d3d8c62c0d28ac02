"""What can be said against a request before anything is computed."""

from __future__ import annotations

from deepseek.engine.events import (
    MAX_PRIORITY,
    MAX_WEIGHT,
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


def check_request(
    request: EngineRequest, *, vocab_size: int, max_context: int, hidden_size: int, constraints: bool
) -> None:
    """Raises InvalidRequestError and ContextLengthError; ``constraints`` says whether the engine can keep to one."""
    if isinstance(request, ScoreRequest):
        check_tokens(request.tokens, vocab_size)
        _check_score(request, max_context)
        return
    if isinstance(request, EmbedRequest):
        check_embed(request, vocab_size=vocab_size, max_context=max_context, hidden_size=hidden_size)
    else:
        check_tokens(request.prompt, vocab_size)
        _check_generate(request, vocab_size, max_context, constraints)
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


def check_embed(request: EmbedRequest, *, vocab_size: int, max_context: int, hidden_size: int) -> None:
    """Raises InvalidRequestError and ContextLengthError."""
    check_tokens(request.tokens, vocab_size)
    if len(request.tokens) > max_context:
        raise ContextLengthError(
            f"the text to embed has {len(request.tokens)} tokens; this model takes {max_context}.", param="input"
        )
    if request.dimensions is not None and not 1 <= request.dimensions <= hidden_size:
        raise InvalidRequestError(
            f"dimensions must be 1 to {hidden_size}, not {request.dimensions}.", param="dimensions"
        )


def _check_score(request: ScoreRequest, max_context: int) -> None:
    count = len(request.tokens)
    if not 1 <= request.start < count:
        raise InvalidRequestError(
            f"start must be 1 to {count - 1} for {count} tokens, not {request.start}.", param="start"
        )
    if count > max_context:
        raise ContextLengthError(
            f"the text to score has {count} tokens; this engine takes {max_context}.", param="tokens"
        )


def _check_generate(request: GenerateRequest, vocab_size: int, max_context: int, constraints: bool) -> None:
    if len(request.prompt) >= max_context:
        raise ContextLengthError(
            f"the prompt has {len(request.prompt)} tokens, and the context holds {max_context} for prompt and answer. "
            "Shorten the prompt, or start the engine with a larger max_context or KV cache."
        )
    if request.params.constraint is not None and not constraints:
        raise InvalidRequestError("this engine has no tokenizer to keep to a constraint with.", param="constraint")
    bias = request.params.logit_bias
    if bias and max(bias) >= vocab_size:
        raise InvalidRequestError(
            f"logit_bias names token {max(bias)}; ids end at {vocab_size - 1}.", param="logit_bias"
        )
