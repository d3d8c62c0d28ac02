"""Where in a JSON text an answer stands, and whether it should come to an end there.

A schema may leave strings, numbers, arrays and nesting without a bound, and a model in a loop uses that. Beyond a limit
the tokens that end the part are the only ones left, where the grammar allows any of them. So a limit never makes an
answer invalid, and what the grammar does not yet let end goes on.
"""

from __future__ import annotations

from typing import Literal

from deepseek.engine.bounded_schema import JsonLimits

Wish = Literal["quote", "no_digit", "close", "no_open"]
"""How the next token is to begin: with the end of a string, with no part of a number, with the end of an array or
object; or it opens neither."""

_QUOTE, _BACKSLASH, _COMMA, _COLON = b'"\\,:'
_NUMBER = frozenset(b"0123456789+-.eE")
_OPENERS = frozenset(b"{[")
_CLOSERS = frozenset(b"}]")


class JsonPosition:
    """A position in a valid JSON text.

    Args:
        limits: lengths beyond which :meth:`wishes` names something.
    """

    __slots__ = ("_container", "_escaped", "_in_string", "_is_key", "_items", "_length", "_limits")

    def __init__(self, limits: JsonLimits) -> None:
        self._limits = limits
        self._container = bytearray()
        self._items: list[int] = []
        self._in_string = self._escaped = self._is_key = False
        self._length = 0  # of the string or number at the end

    @property
    def depth(self) -> int:
        """Arrays and objects that are open."""
        return len(self._container)

    def copy(self) -> JsonPosition:
        other = JsonPosition(self._limits)
        other._container = bytearray(self._container)
        other._items = list(self._items)
        other._in_string, other._escaped, other._is_key = self._in_string, self._escaped, self._is_key
        other._length = self._length
        return other

    def push(self, data: bytes) -> None:
        """Go on behind ``data``."""
        for byte in data:
            if self._in_string:
                self._push_in_string(byte)
            elif byte in _NUMBER:
                self._length += 1
            else:
                self._push_structure(byte)

    def _push_in_string(self, byte: int) -> None:
        if self._escaped:
            self._escaped = False
        elif byte == _QUOTE:
            self._in_string = self._is_key = False
            self._length = 0
            return
        else:
            self._escaped = byte == _BACKSLASH
        self._length += 1

    def _push_structure(self, byte: int) -> None:
        self._length = 0
        if byte == _QUOTE:
            self._in_string = True
        elif byte in _OPENERS:
            self._container.append(byte)
            self._items.append(0)
            self._is_key = byte == b"{"[0]
        elif byte in _CLOSERS:
            if self._container:
                self._container.pop()
                self._items.pop()
            self._is_key = False
        elif byte == _COMMA and self._container:
            self._items[-1] += 1
            self._is_key = self._container[-1] == b"{"[0]
        elif byte == _COLON:
            self._is_key = False

    def wishes(self) -> tuple[Wish, ...]:
        """What the next token should do, the best first; empty within the limits."""
        limits = self._limits
        if self._in_string:
            over = self._length >= (limits.key if self._is_key else limits.string) and not self._escaped
            return ("quote",) if over else ()
        if self._length >= limits.number:
            return ("no_digit",)
        if len(self._container) >= limits.depth:
            return ("close", "no_open")
        if self._items and self._items[-1] + 1 >= limits.items:
            return ("close",)
        return ()


class EmbeddedJsonPosition:
    """A position in a text that has JSON objects in it.

    Args:
        limits: as of :class:`JsonPosition`.
        marker: behind it an object begins, perhaps after other text; None for no such marker.
        first: an object may begin where the text does, and without a marker behind another one.
    """

    __slots__ = ("_at_once", "_first", "_json", "_limits", "_marker", "_tail")

    def __init__(self, limits: JsonLimits, marker: bytes | None, *, first: bool) -> None:
        self._limits = limits
        self._marker = marker
        self._first = first
        self._tail = b""  # outside of objects
        self._json = JsonPosition(limits) if first else None
        self._at_once = first  # what comes next opens an object, or none begins here

    def copy(self) -> EmbeddedJsonPosition:
        other = EmbeddedJsonPosition(self._limits, self._marker, first=self._first)
        other._tail, other._at_once = self._tail, self._at_once
        other._json = self._json.copy() if self._json is not None else None
        return other

    def push(self, data: bytes) -> None:
        """Go on behind ``data``."""
        for byte in data:
            json = self._json
            if json is not None and (json.depth or byte in _OPENERS):
                json.push(bytes((byte,)))
                self._at_once = self._first
                if not json.depth:
                    self._json = JsonPosition(self._limits) if self._first else None
            elif self._at_once and byte not in b" \t\r\n;,":
                self._json, self._at_once = None, False
            if self._json is None and self._marker is not None:
                self._look_for(self._marker, byte)

    def _look_for(self, marker: bytes, byte: int) -> None:
        self._tail = (self._tail + bytes((byte,)))[-len(marker) :]
        if self._tail == marker:
            self._json, self._tail = JsonPosition(self._limits), b""

    def wishes(self) -> tuple[Wish, ...]:
        """As :meth:`JsonPosition.wishes`; nothing outside of objects."""
        return self._json.wishes() if self._json is not None and self._json.depth else ()


def fulfils(token: bytes, wish: Wish) -> bool:
    """Whether a token's bytes are what is wished for."""
    if wish == "quote":
        return token.startswith(b'"')
    if wish == "no_digit":
        return not token or token[0] not in _NUMBER
    if wish == "close":
        return token.lstrip(b" \t\r\n")[:1] in (b"}", b"]")
    return not _OPENERS.intersection(token)
