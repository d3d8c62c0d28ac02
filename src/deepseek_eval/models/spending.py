"""What an endpoint costs, and when to stop."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from deepseek.errors import ConfigurationError, SpendingCapError
from deepseek_eval.task import Prompt

_MILLION = 1_000_000


class Account:
    """One request's part of the budget."""

    def __init__(self, spending: Spending, prompt_tokens: int, completion_tokens: int) -> None:
        self._spending = spending
        self._most = (prompt_tokens, completion_tokens)
        self.reserved = spending.price(prompt_tokens, completion_tokens) or 0.0

    def settle(self, prompt_tokens: int | None, completion_tokens: int | None) -> float | None:
        """Pay for what was used; what is not known costs the most it can. Returns dollars, None without prices."""
        known = (prompt_tokens, completion_tokens)
        used = [most if own is None else own for own, most in zip(known, self._most, strict=True)]
        cost = self._spending.price(*used)
        self._spending.spent += cost or 0.0
        return cost


class Spending:
    """The budget of one model.

    Args:
        price_in, price_out: dollars per million tokens of prompts and answers; None if they are not known.
        most: dollars that may be spent; None for any number.

    Attributes:
        spent: dollars so far.

    Raises ConfigurationError for a limit without prices.
    """

    def __init__(self, price_in: float | None, price_out: float | None, most: float | None) -> None:
        if (price_in is None) != (price_out is None):
            raise ConfigurationError("give both prices, of prompt tokens and of answer tokens, or none.")
        if most is not None and price_in is None:
            raise ConfigurationError("a spending cap needs prices: dollars per million tokens of prompts and answers.")
        if any(value is not None and value < 0 for value in (price_in, price_out, most)):
            raise ConfigurationError("prices and spending cap must be at least 0.")
        self._prices = None if price_in is None or price_out is None else (price_in, price_out)
        self._most = most
        self._reserved = 0.0
        self.spent = 0.0

    def price(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """Dollars; None without prices."""
        if self._prices is None:
            return None
        return (prompt_tokens * self._prices[0] + completion_tokens * self._prices[1]) / _MILLION

    @contextmanager
    def reserve(self, prompt: Prompt, max_tokens: int) -> Iterator[Account]:
        """Put aside what a request may cost: a token per character, which Chinese, Japanese and Korean come near and
        other texts stay below. Raises SpendingCapError if that is more than is left."""
        texts = [prompt] if isinstance(prompt, str) else [turn.content for turn in prompt]
        account = Account(self, sum(map(len, texts)), max_tokens)
        if self._most is not None and self.spent + self._reserved + account.reserved > self._most:
            raise SpendingCapError(
                f"${self.spent:.4f} of ${self._most:.4f} are spent, and the next answer may cost "
                f"${account.reserved:.4f}. Run again with a higher --max-cost to go on."
            )
        self._reserved += account.reserved
        try:
            yield account
        finally:
            self._reserved -= account.reserved
