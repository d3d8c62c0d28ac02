"""Fields that chat and text completions share, and how they become :class:`SamplingParams`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import pydantic
import pydantic_core
from pydantic import Field

from deepseek.attention.policy import MAX_ERROR
from deepseek.constraints import Constraint
from deepseek.errors import InvalidRequestError
from deepseek.sampling import SamplingParams
from deepseek_serve.protocol.strict import Strict as Strict
from deepseek_serve.protocol.structured import StructuredOutputs

SEED_RANGE = 2**63
MAX_USER_ID = 512  # characters


AttentionField = Annotated[
    Literal["auto", "dense", "sparse"] | None,
    Field(
        description="How much of a long context is read: all of it (`dense`), what matters to each query (`sparse`), "
        "or all of a short and what matters of a long one (`auto`). By default what the server was started with."
    ),
]
AttentionErrorField = Annotated[
    float | None,
    Field(
        ge=0,
        le=MAX_ERROR,
        description="The relative error of attention's output that sparse attention aims at; 0 is exactly dense.",
    ),
]


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None  # pads chunks against traffic analysis; accepted, not done


class GenerationRequest(Strict):
    """Everything but the prompt."""

    model: str
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    max_tokens: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    # extensions
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    ignore_eos: bool | None = None
    stop_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputs | None = None
    attention: AttentionField = None
    attention_error: AttentionErrorField = None

    # on whose account, and how urgent
    user_id: str | None = Field(default=None, max_length=MAX_USER_ID)
    service_tier: Literal["auto", "default", "flex", "scale", "priority"] | None = None

    # accepted without effect
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: Any = None
    store: Any = None
    metadata: Any = None

    # field -> values that ask for nothing; any other value is refused until the feature exists
    LATER: ClassVar[dict[str, tuple[Any, ...]]] = {}

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: pydantic_core.CoreSchema, handler: pydantic.GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The reference says of fields that come later what they may be until then."""
        schema = handler(core_schema)
        properties = handler.resolve_ref_schema(schema)["properties"]
        for name, harmless in cls.LATER.items():
            properties[name] = {"enum": [None, *harmless], "description": "Not supported yet."}
        return schema

    @pydantic.model_validator(mode="after")
    def _refuse_what_comes_later(self) -> Self:
        for name, harmless in self.LATER.items():
            value = getattr(self, name)
            if value is not None and value not in harmless:
                raise NotYetError(name)
        return self

    @pydantic.model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise InvalidFieldError("stream_options", "only allowed when 'stream' is true")
        return self

    def constraint(self) -> Constraint | None:
        """The form that the answer must have. Raises :class:`InvalidRequestError` for one that is none."""
        return self.structured_outputs.constraint() if self.structured_outputs is not None else None

    def sampling(self, *, max_tokens: int | None, logprobs: int | None, vocab_size: int) -> SamplingParams:
        """Validated options; absent ones take the API's defaults. Raises :class:`InvalidRequestError`."""
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "n": self.n,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "top_k": 0 if self.top_k == -1 else self.top_k,  # -1 is how other servers spell "all"
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "ignore_eos": self.ignore_eos,
        }
        return SamplingParams(
            max_tokens=max_tokens,
            logprobs=logprobs,
            seed=self.seed,
            stop=stop,
            stop_token_ids=self._stop_ids(vocab_size),
            logit_bias=self._bias(vocab_size),
            constraint=self.constraint(),
            **{name: value for name, value in given.items() if value is not None},  # type: ignore[arg-type]
        )

    def _stop_ids(self, vocab_size: int) -> tuple[int, ...]:
        ids = self.stop_token_ids or []
        if any(not 0 <= token < vocab_size for token in ids):
            raise InvalidRequestError(
                f"stop_token_ids has ids outside of 0 to {vocab_size - 1}.", param="stop_token_ids"
            )
        return tuple(dict.fromkeys(ids))

    def _bias(self, vocab_size: int) -> dict[int, float]:
        bias: dict[int, float] = {}
        for key, value in (self.logit_bias or {}).items():
            if not (key.isascii() and key.isdigit() and len(key) < 12 and int(key) < vocab_size):
                raise InvalidRequestError(
                    f"logit_bias has the key {key[:40]!r}; keys are token ids from 0 to {vocab_size - 1}.",
                    param="logit_bias",
                )
            bias[int(key)] = value
        return bias


class InvalidFieldError(InvalidRequestError):
    """A field whose value does not fit the others."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"Invalid value for '{name}': {problem}.", param=name, code="invalid_value")


class NotYetError(InvalidRequestError):
    """A field of the OpenAI API that this server knows and cannot honour yet."""

    def __init__(self, name: str) -> None:
        super().__init__(f"'{name}' is not supported yet by this server.", param=name, code="unsupported_parameter")


def seed_of_choice(params: SamplingParams, choice: int) -> int | None:
    """Choice i of a seeded request draws with seed + i, so that choices differ and repeat."""
    if params.seed is None:
        return None
    return (params.seed + choice + SEED_RANGE) % (2 * SEED_RANGE) - SEED_RANGE
