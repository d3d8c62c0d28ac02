"""What was wrong with training data: counted by kind, the first few of each kind kept to be shown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import msgspec

from deepseek.errors import DataError

SHOWN = 3
"""Problems of a kind that are kept."""
TEXT_SHOWN = 100
"""Characters of a row that are shown."""
EARLY = 1000
"""Rows after which data that is mostly bad is given up."""

MALFORMED = "malformed row"
ENCODING = "wrong encoding"
COLUMNS = "missing or wrong column"
EMPTY_ANSWER = "empty answer"
DUPLICATE_ID = "duplicate id"
TEMPLATE = "the chat template cannot show it"
TOO_LONG = "too long"


class Problem(msgspec.Struct, frozen=True):
    """One row that cannot be trained on.

    Attributes:
        row: its line number (Parquet: its row number), from 1.
        kind: one of this module's kinds.
        detail: what is wrong.
        text: the row's beginning.
    """

    row: int
    kind: str
    detail: str
    text: str = ""

    def __str__(self) -> str:
        shown = f": {self.text}" if self.text else ""
        return f"line {self.row}: {self.detail}{shown}"


class RowError(Exception):
    """A row cannot be used; who reads rows makes a :class:`Problem` of it."""

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail


class Problems:
    """Counts rows and what was wrong with them.

    Attributes:
        rows: rows seen, good and bad.
        counts: bad rows by kind.
        notices: rows that were used or left out as the settings ask, by what was done.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.counts: Counter[str] = Counter()
        self.notices: Counter[str] = Counter()
        self._first: dict[str, list[Problem]] = {}

    @property
    def bad(self) -> int:
        """Rows that cannot be trained on."""
        return self.counts.total()

    def add(self, problem: Problem) -> None:
        """Count a bad row."""
        self.counts[problem.kind] += 1
        first = self._first.setdefault(problem.kind, [])
        if len(first) < SHOWN:
            first.append(problem)

    def hopeless(self, max_bad_rows: float) -> bool:
        """Whether so many of the first rows are bad that reading on is a waste."""
        return self.rows >= EARLY and self.bad / self.rows > max(0.5, max_bad_rows)

    def check(self, path: Path, max_bad_rows: float) -> None:
        """Raises DataError if more than the share ``max_bad_rows`` of the rows is bad."""
        if self.bad and self.bad > max_bad_rows * self.rows:
            raise DataError(
                f"{path}: {self.bad} of {self.rows} rows cannot be trained on, more than the share "
                f"{max_bad_rows:g} that max_bad_rows allows. Mend them, or allow more.\n" + "\n".join(self.report())
            )

    def report(self) -> Iterator[str]:
        """Lines for a reader: each kind with its count, and its first rows."""
        for kind, count in self.counts.most_common():
            yield f"  {kind}: {count}"
            for problem in self._first[kind]:
                yield f"    {problem}"
        for notice, count in self.notices.most_common():
            yield f"  {notice}: {count}"

    def to_json(self) -> dict[str, object]:
        """What :meth:`from_json` reads."""
        return {
            "rows": self.rows,
            "counts": dict(self.counts),
            "notices": dict(self.notices),
            "first": {kind: msgspec.to_builtins(found) for kind, found in self._first.items()},
        }

    @classmethod
    def from_json(cls, stored: dict[str, object]) -> Problems:
        """What :meth:`to_json` wrote."""
        problems = cls()
        problems.rows = msgspec.convert(stored["rows"], int)
        problems.counts.update(msgspec.convert(stored["counts"], dict[str, int]))
        problems.notices.update(msgspec.convert(stored["notices"], dict[str, int]))
        problems._first = msgspec.convert(stored["first"], dict[str, list[Problem]])
        return problems


def beginning(value: object) -> str:
    """The beginning of a row as one line of text that any terminal shows."""
    text = value if isinstance(value, str) else repr(value)
    text = " ".join(text[: 2 * TEXT_SHOWN].split())
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= TEXT_SHOWN else text[:TEXT_SHOWN] + "..."
