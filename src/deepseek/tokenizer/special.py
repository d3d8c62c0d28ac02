"""Finding special tokens in text, and keeping text typed by a user from being taken for them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SpecialToken:
    """A token that no text of a user may become. ``lstrip`` and ``rstrip`` eat the whitespace before and after it."""

    text: str
    id: int
    lstrip: bool = False
    rstrip: bool = False


class SpecialTokens:
    """The special tokens of one vocabulary; leftmost match, the longest one at each place.

    A special token of a single character takes no part: it could not be told from ordinary text.
    """

    def __init__(self, tokens: Iterable[SpecialToken]) -> None:
        self._tokens = {token.text: token for token in tokens if len(token.text) > 1}
        lengths: dict[str, set[int]] = {}
        for text in self._tokens:
            lengths.setdefault(text[0], set()).add(len(text))
        self._lengths = {first: sorted(found, reverse=True) for first, found in lengths.items()}
        # A character class of the few first characters, then dictionary look-ups: vocabularies have up to some
        # 6,000 special tokens, too many for an alternation.
        self._first = re.compile("[" + "".join(map(re.escape, sorted(lengths))) + "]") if lengths else None
        self._prefixes: frozenset[str] | None = None

    def __len__(self) -> int:
        return len(self._tokens)

    def _at(self, text: str, position: int) -> SpecialToken | None:
        for length in self._lengths[text[position]]:
            token = self._tokens.get(text[position : position + length])
            if token is not None:
                return token
        return None

    def find(self, text: str, start: int = 0) -> tuple[int, SpecialToken] | None:
        """The first special token at or after ``start`` and its place."""
        if self._first is None:
            return None
        for match in self._first.finditer(text, start):
            token = self._at(text, match.start())
            if token is not None:
                return match.start(), token
        return None

    def split(self, text: str) -> Iterator[str | int]:
        """The text as plain pieces (never empty) and ids of special tokens, in order."""
        start = 0
        while found := self.find(text, start):
            position, token = found
            plain = text[start:position]
            if token.lstrip:
                plain = plain.rstrip()
            if plain:
                yield plain
            yield token.id
            start = position + len(token.text)
            if token.rstrip:
                start = len(text) - len(text[start:].lstrip())
        if start < len(text):
            yield text[start:]

    def neutralise(self, text: str, marker: str) -> str:
        """Put ``marker`` (one character) behind the first character of every spelling of a special token.

        A beginning of a spelling at the very end of ``text`` is marked too, for whatever a template puts behind it
        could complete it. Removing all markers gives the text back.
        """
        if self._first is None or self._first.search(text) is None:
            return text
        pieces: list[str] = []
        start = 0
        for match in self._first.finditer(text):
            position = match.start()
            if self._at(text, position) is not None or text[position:] in self._beginnings():
                pieces += (text[start : position + 1], marker)
                start = position + 1
        pieces.append(text[start:])
        return "".join(pieces)

    def _beginnings(self) -> frozenset[str]:
        if self._prefixes is None:
            self._prefixes = frozenset(text[:end] for text in self._tokens for end in range(1, len(text)))
        return self._prefixes
