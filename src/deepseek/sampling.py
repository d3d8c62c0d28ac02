"""How tokens are chosen: validated, frozen options of one request."""

from __future__ import annotations

import math

import msgspec

from deepseek.constraints import Constraint
from deepseek.errors import InvalidRequestError

MAX_CHOICES = 128
MAX_TOP_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_LOGIT_BIAS = 1024


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of one generation request. Invalid values raise :class:`InvalidRequestError` with the field.

    Attributes:
        max_tokens: tokens to generate at most; None means until the context is full.
        temperature: 0 is greedy; otherwise logits are divided by it. Range [0, 2].
        top_k: keep the k most likely tokens; 0 keeps all.
        top_p: keep the smallest set of tokens whose probability reaches this. Range (0, 1].
        min_p: keep tokens at least this fraction as likely as the most likely one. Range [0, 1].
        repetition_penalty: divides positive and multiplies negative logits of tokens already in prompt or
            answer (Keskar et al. 2019, CTRL). Range (0, 10].
        presence_penalty: subtracted once from tokens already in the answer. Range [-2, 2].
        frequency_penalty: subtracted per occurrence in the answer. Range [-2, 2].
        logit_bias: token id -> value added to its logit. Values in [-100, 100].
        seed: same seed, same tokens on the same machine; None draws one.
        stop: strings that end the answer; they are not part of it.
        stop_token_ids: token ids that end the answer, besides the model's own end tokens.
        logprobs: None for none; k returns the log-probability of each token and of its k best rivals.
        n: number of answers.
        ignore_eos: go on after the model's end token, up to max_tokens.
        constraint: the form that the answer must have; None leaves it free.
    """

    max_tokens: int | None = None
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    n: int = 1
    ignore_eos: bool = False
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        if self.max_tokens is not None:
            _check_range("max_tokens", self.max_tokens, 1, 2**31 - 1)
        _check_range("temperature", self.temperature, 0.0, 2.0)
        _check_range("top_k", self.top_k, 0, 2**31 - 1)
        _check_range("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _check_range("min_p", self.min_p, 0.0, 1.0)
        _check_range("repetition_penalty", self.repetition_penalty, 0.0, 10.0, open_low=True)
        _check_range("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check_range("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _check_range("n", self.n, 1, MAX_CHOICES)
        if self.seed is not None:
            _check_range("seed", self.seed, -(2**63), 2**63 - 1)
        if self.logprobs is not None:
            _check_range("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if len(self.stop) > MAX_STOP_STRINGS:
            raise InvalidRequestError(f"stop has {len(self.stop)} strings; at most {MAX_STOP_STRINGS}.", param="stop")
        if any(not s or len(s) > MAX_STOP_LENGTH for s in self.stop):
            raise InvalidRequestError(f"each stop string must have 1 to {MAX_STOP_LENGTH} characters.", param="stop")
        if len(self.logit_bias) > MAX_LOGIT_BIAS:
            raise InvalidRequestError(f"logit_bias names more than {MAX_LOGIT_BIAS} tokens.", param="logit_bias")
        for token_id, value in self.logit_bias.items():
            if token_id < 0:
                raise InvalidRequestError(f"logit_bias names token {token_id}; ids are >= 0.", param="logit_bias")
            _check_range("logit_bias", value, -100.0, 100.0)
        if any(token_id < 0 for token_id in self.stop_token_ids):
            raise InvalidRequestError("stop_token_ids must be >= 0.", param="stop_token_ids")

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0

    @property
    def shifts_logits(self) -> bool:
        """True if there is a penalty or a bias."""
        return bool(self.penalizes or self.logit_bias)

    @property
    def penalizes(self) -> bool:
        """True if there is a penalty: logits depend on the tokens so far."""
        return bool(self.repetition_penalty != 1.0 or self.presence_penalty or self.frequency_penalty)


def _check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    if not math.isfinite(value) or value > high or value < low or (open_low and value == low):
        bracket = "(" if open_low else "["
        raise InvalidRequestError(f"{name} must be in {bracket}{low:g}, {high:g}], not {value!r}.", param=name)
