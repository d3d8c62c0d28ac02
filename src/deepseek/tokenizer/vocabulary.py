"""What each id stands for."""

from __future__ import annotations

import re
from collections.abc import Callable

SPACE_MARK = "\u2581"
"""How SentencePiece vocabularies write a space."""

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece vocabularies write a single byte."""


def _byte_alphabet() -> dict[str, int]:
    """The printable alphabet of byte-level BPE (Radford et al. 2019, GPT-2): character -> byte.

    Printable Latin-1 bytes stand for themselves, the other 68 are the characters from U+0100 on, in order.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_ALPHABET = _byte_alphabet()


class Vocabulary:
    """Ids and the bytes they stand for, computed when first asked for.

    Args:
        size: number of ids.
        piece: id -> the vocabulary's own spelling, or None where an id has none.
        byte_level: spellings are in the byte-level alphabet; otherwise SentencePiece's (U+2581, ``<0x0A>``).
        special: ids of special tokens.
        literal: ids whose spelling is their text as it stands (special tokens are among them).
        silent: ids that stand for nothing (padding of the vocabulary).
        continuing: how WordPiece vocabularies mark a piece that goes on a word; other pieces begin one, behind a space.
    """

    def __init__(
        self,
        *,
        size: int,
        piece: Callable[[int], str | None],
        byte_level: bool,
        special: frozenset[int],
        literal: frozenset[int] = frozenset(),
        silent: frozenset[int] = frozenset(),
        continuing: str | None = None,
    ) -> None:
        self.size = size
        self.byte_level = byte_level
        self.special = special
        self._piece = piece
        self._literal = literal | special
        self._silent = silent
        self._continuing = continuing
        self._cache: dict[int, bytes] = {}

    def token_bytes(self, token_id: int) -> bytes:
        """Raw bytes of a token; empty for ids that stand for nothing, among them those past the vocabulary's end
        (models pad their output layer, and may in theory choose such an id)."""
        data = self._cache.get(token_id)
        if data is None:
            data = self._cache[token_id] = self._compute(token_id)
        return data

    def text_bytes(self, token_id: int) -> bytes:
        """The same, but nothing for special tokens."""
        return b"" if token_id in self.special else self.token_bytes(token_id)

    def _compute(self, token_id: int) -> bytes:
        if not 0 <= token_id < self.size or token_id in self._silent:
            return b""
        piece = self._piece(token_id)
        if piece is None:
            return b""
        if token_id in self._literal:
            return piece.encode()
        if self.byte_level:
            try:
                return bytes([BYTE_ALPHABET[char] for char in piece])
            except KeyError:  # a token added as plain text
                return piece.encode()
        if self._continuing:
            rest = piece.removeprefix(self._continuing)
            return (rest if rest != piece else f" {piece}").encode()
        byte = BYTE_TOKEN.fullmatch(piece)
        if byte:
            return bytes([int(byte[1], 16)])
        return piece.replace(SPACE_MARK, " ").encode()
