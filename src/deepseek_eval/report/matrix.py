"""Every model against every other, with one correction over all that is compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from msgspec.structs import replace

from deepseek.errors import ConfigurationError
from deepseek_eval.compare import Compared, Comparison, compare_models, verdict
from deepseek_eval.registry import all_tasks
from deepseek_eval.report.sources import Entry
from deepseek_eval.statistics import holm
from deepseek_eval.task import Task


@dataclass(frozen=True)
class Pair:
    """The second model against the first.

    Attributes:
        comparison: None if they have nothing in common; ``reason`` says why.
    """

    first: Entry
    second: Entry
    comparison: Comparison | None
    reason: str = ""

    def count(self, wanted: str) -> int:
        """How many tasks have this verdict."""
        return sum(one.verdict == wanted for one in self.comparison.tasks) if self.comparison else 0


def all_pairs(entries: Sequence[Entry], tasks: Mapping[str, Task] | None = None) -> list[Pair]:
    """Each pair once. P-values are corrected for the number of all comparisons of the report (Holm 1979), not for those
    of a pair alone: who looks at ten pairs finds ten times as much by chance."""
    pairs = [_pair(first, second, tasks) for first, second in combinations(entries, 2)]
    every = [one for pair in pairs if pair.comparison for one in pair.comparison.tasks]
    corrected = iter(holm([one.difference.p_value for one in every]))
    known = {**all_tasks(), **(tasks or {})}
    found = []
    for pair in pairs:
        if pair.comparison is None:
            found.append(pair)
            continue
        made = tuple(_corrected(one, next(corrected), known) for one in pair.comparison.tasks)
        found.append(Pair(pair.first, pair.second, replace(pair.comparison, tasks=made)))
    return found


def _pair(first: Entry, second: Entry, tasks: Mapping[str, Task] | None) -> Pair:
    try:
        made = compare_models(first.run, second.run, tasks=tasks, names=(first.label, second.label))
    except ConfigurationError as error:
        return Pair(first, second, None, str(error))
    return Pair(first, second, made)


def _corrected(one: Compared, p_holm: float, known: Mapping[str, Task]) -> Compared:
    return replace(one, p_holm=p_holm, verdict=verdict(known[one.task].metrics[0], one.difference, p_holm))
