"""What is measured: shapes of the work, its prompts, and the figures made from the clock's readings."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from deepseek.errors import BenchmarkError, ConfigurationError

PREFILL_TOKENS = 512
DECODE_TOKENS = 128
BATCH_SIZE = 32
BATCH_PROMPT = 128
BATCH_OUTPUT = 64
CONTEXT_TOKENS = 4096
CONTEXT_OUTPUT = 64
EDIT_OUTPUT = 192
WITHOUT = "edit_decode_without_tok_s"
"""Figure of the code editing scenario with speculation off, beside its main one."""


@dataclass(frozen=True)
class Scenario:
    """One shape of work.

    Attributes:
        name: as the command line knows it.
        title: as a table shows it.
        requests: sequences at once.
        prompt: tokens of each prompt; 0 where the prompts are texts.
        output: tokens of each answer.
        figures: names of what it yields, the main one first; all are tokens per second.
        natural_end: answers may end before ``output``, with an end token.
    """

    name: str
    title: str
    requests: int
    prompt: int
    output: int
    figures: tuple[str, ...]
    natural_end: bool = False

    def quick(self) -> Scenario:
        """An eighth of the work: to see that everything runs. Its figures say nothing."""
        return replace(
            self,
            requests=max(1, self.requests // 8),
            prompt=self.prompt // 8,
            output=max(1, self.output // 8),
        )

    @property
    def tokens(self) -> int:
        """Context that one request needs; texts are taken as at most 1024 tokens."""
        return (self.prompt or 1024) + self.output


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario("prefill", f"prefill, {PREFILL_TOKENS} tokens", 1, PREFILL_TOKENS, 1, ("prefill_tok_s",)),
        Scenario("decode", "decode, 1 stream", 1, BATCH_PROMPT, DECODE_TOKENS, ("decode_tok_s",)),
        Scenario(
            "batch",
            f"{BATCH_SIZE} requests of {BATCH_PROMPT} + {BATCH_OUTPUT}",
            BATCH_SIZE,
            BATCH_PROMPT,
            BATCH_OUTPUT,
            (f"batch{BATCH_SIZE}_output_tok_s", f"batch{BATCH_SIZE}_decode_tok_s"),
        ),
        Scenario(
            "context",
            f"decode behind {CONTEXT_TOKENS} tokens",
            1,
            CONTEXT_TOKENS,
            CONTEXT_OUTPUT + 1,
            ("context_decode_tok_s",),
        ),
        Scenario("speculation", "decode, code editing", 1, 0, EDIT_OUTPUT, ("edit_decode_tok_s",), natural_end=True),
    )
}

FIGURE_TITLES: Mapping[str, str] = {
    "prefill_tok_s": f"prefill, {PREFILL_TOKENS} tokens",
    "decode_tok_s": "decode, 1 stream",
    f"batch{BATCH_SIZE}_output_tok_s": f"{BATCH_SIZE} requests of {BATCH_PROMPT} + {BATCH_OUTPUT}, output of the whole",
    f"batch{BATCH_SIZE}_decode_tok_s": "  the same, decode phase",
    "context_decode_tok_s": f"decode behind {CONTEXT_TOKENS} tokens",
    "edit_decode_tok_s": "decode, code editing, with speculation",
    WITHOUT: "  the same, without",
    "edit_decode_tok_s/without": "  ours with, theirs without",
}


def choose(names: Sequence[str], *, quick: bool = False) -> list[Scenario]:
    """The scenarios of these names, all for none. Raises ConfigurationError for an unknown one."""
    for name in names:
        if name not in SCENARIOS:
            raise ConfigurationError(f"unknown scenario {name!r}. There are: {', '.join(SCENARIOS)}.")
    chosen = [scenario for name, scenario in SCENARIOS.items() if not names or name in names]
    return [scenario.quick() for scenario in chosen] if quick else chosen


def random_prompts(scenario: Scenario, vocab: int, seed: int) -> list[list[int]]:
    """Token ids for every request. Another seed shares no prefix worth caching."""
    source = random.Random(f"{scenario.name}/{seed}")
    return [[source.randrange(vocab) for _ in range(scenario.prompt)] for _ in range(scenario.requests)]


@dataclass(frozen=True)
class Timing:
    """What a clock saw of some requests that were sent together.

    Attributes:
        first: seconds until every request had its first token.
        total: seconds until the last token.
        tokens: tokens generated.
        after: those of them that came later than ``first``.
    """

    first: float
    total: float
    tokens: int
    after: int

    @classmethod
    def parse(cls, reply: Mapping[str, Any]) -> Timing:
        """A worker's answer. Raises BenchmarkError when it lacks a field."""
        try:
            return cls(float(reply["first"]), float(reply["total"]), int(reply["tokens"]), int(reply["after"]))
        except (KeyError, TypeError, ValueError) as error:
            raise BenchmarkError(f"a benchmark worker answered {dict(reply)!r} where times were expected.") from error

    def __add__(self, other: Timing) -> Timing:
        """Two measurements one after the other."""
        return Timing(
            self.first + other.first, self.total + other.total, self.tokens + other.tokens, self.after + other.after
        )

    @property
    def decode_rate(self) -> float:
        """Tokens per second once every request had its first; 0 if none came after."""
        return self.after / (self.total - self.first) if self.after else 0.0


def figures(scenario: Scenario, timing: Timing) -> dict[str, float]:
    """Tokens per second, under the scenario's names.

    Raises:
        BenchmarkError: the wrong number of tokens came, so that nothing was measured.
    """
    expected = scenario.requests * scenario.output
    if timing.tokens != expected and not scenario.natural_end:
        raise BenchmarkError(f"{scenario.name}: {timing.tokens} tokens came instead of {expected}.")
    if scenario.name == "prefill":
        rates = [scenario.requests * scenario.prompt / timing.total]
    elif scenario.name == "batch":
        rates = [timing.tokens / timing.total, timing.decode_rate]
    else:
        if not timing.after:
            raise BenchmarkError(f"{scenario.name}: the answers ended after one token; nothing was measured.")
        rates = [timing.decode_rate]
    return dict(zip(scenario.figures, rates, strict=True))


EDIT_PROMPTS: tuple[str, ...] = (
    """Rename the variable `n` to `count` everywhere in this function and return the whole function:

```python
def moving_average(values, n):
    if n < 1:
        raise ValueError("n must be positive")
    total = sum(values[:n])
    result = [total / n]
    for index in range(n, len(values)):
        total += values[index] - values[index - n]
        result.append(total / n)
    return result
```""",
    """Add type annotations to this class, change nothing else, and return the whole class:

```python
class Inventory:
    def __init__(self):
        self.items = {}

    def add(self, name, quantity):
        if quantity < 1:
            raise ValueError("quantity must be positive")
        self.items[name] = self.items.get(name, 0) + quantity

    def remove(self, name, quantity):
        if self.items.get(name, 0) < quantity:
            raise KeyError(name)
        self.items[name] -= quantity
        if self.items[name] == 0:
            del self.items[name]

    def total(self):
        return sum(self.items.values())
```""",
    """Fix the off-by-one error in the loop and return the corrected file in full:

```javascript
function chunk(list, size) {
  const result = [];
  for (let start = 0; start <= list.length; start += size) {
    result.push(list.slice(start, start + size));
  }
  return result;
}

function flatten(lists) {
  const result = [];
  for (const list of lists) {
    for (const item of list) {
      result.push(item);
    }
  }
  return result;
}

module.exports = { chunk, flatten };
```""",
)
"""Code to be given back with a small change: what prompt lookup is made for."""
