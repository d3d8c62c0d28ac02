"""``/v1/completions``: the request."""

from __future__ import annotations

from typing import Any

from deepseek.errors import InvalidRequestError
from deepseek_serve.protocol.common import GenerationRequest, InvalidFieldError

DEFAULT_MAX_TOKENS = 16


class CompletionRequest(GenerationRequest):
    """Body of ``POST /v1/completions``."""

    prompt: str | list[Any]
    logprobs: int | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None  # empty asks for nothing

    def prompts(self) -> list[str | list[int]]:
        """One or several texts or token lists. Raises :class:`InvalidRequestError` for anything else."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise InvalidFieldError("prompt", "it is empty")
        if all(_is_token(item) for item in prompt):
            return [prompt]
        for index, item in enumerate(prompt):
            if isinstance(item, list) and item and all(_is_token(token) for token in item):
                continue
            if not isinstance(item, str):
                raise InvalidFieldError(
                    f"prompt[{index}]", "a prompt is a string or a non-empty list of token ids, and all are alike"
                )
        if len({type(item) for item in prompt}) > 1:
            raise InvalidFieldError("prompt", "it mixes texts and token lists")
        return prompt

    def check(self) -> None:
        """What depends on several fields. Raises :class:`InvalidRequestError`."""
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise InvalidRequestError(
                "'best_of' is not supported: leave it out, or let it equal 'n'.",
                param="best_of",
                code="unsupported_parameter",
            )
        if self.echo and self.logprobs is not None:
            raise InvalidRequestError(
                "'logprobs' together with 'echo' is not supported yet by this server.",
                param="logprobs",
                code="unsupported_parameter",
            )

    def token_limit(self) -> int:
        return DEFAULT_MAX_TOKENS if self.max_tokens is None else self.max_tokens


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
