"""Whether characters that come one by one are JSON so far."""

from __future__ import annotations

from typing import Literal

WHITESPACE = " \t\r\n"

Expect = Literal["value", "value_or_end", "key", "key_or_end", "colon", "comma_or_end", "nothing"]

# A number's state after its last character -> the characters that may follow, and the state after them.
_DIGITS, _EXPONENT = "0123456789", "eE"
_NUMBER: dict[str, tuple[tuple[str, str], ...]] = {
    "minus": (("0", "zero"), ("123456789", "integer")),
    "zero": ((".", "point"), (_EXPONENT, "e")),
    "integer": ((_DIGITS, "integer"), (".", "point"), (_EXPONENT, "e")),
    "point": ((_DIGITS, "fraction"),),
    "fraction": ((_DIGITS, "fraction"), (_EXPONENT, "e")),
    "e": (("+-", "sign"), (_DIGITS, "exponent")),
    "sign": ((_DIGITS, "exponent"),),
    "exponent": ((_DIGITS, "exponent"),),
}
_WHOLE_NUMBER = frozenset({"zero", "integer", "fraction", "exponent"})
_LITERALS = {"t": "rue", "f": "alse", "n": "ull"}


class JsonScanner:
    """A position in a JSON text whose outermost value is an object (RFC 8259, without any leniency).

    Attributes:
        expect: what comes next, outside of strings, numbers and literals.
    """

    def __init__(self) -> None:
        self.expect: Expect = "value"
        self._open: list[str] = []
        self._in_string = self._escaped = False
        self._hex_digits = 0
        self._number = ""
        self._literal = ""

    @property
    def depth(self) -> int:
        """Objects and arrays that are open."""
        return len(self._open)

    @property
    def between(self) -> bool:
        """Outside of strings, numbers and literals."""
        return not (self._in_string or self._number or self._literal)

    @property
    def complete(self) -> bool:
        return self.expect == "nothing"

    def push(self, char: str) -> bool:
        """Go on behind ``char``; False if it cannot stand here."""
        if self._in_string:
            return self._push_in_string(char)
        if self._literal:
            fits = char == self._literal[0]
            self._literal = self._literal[1:]
            return fits
        if self._number:
            state = next((after for chars, after in _NUMBER[self._number] if char in chars), None)
            if state is not None:
                self._number = state
                return True
            if self._number not in _WHOLE_NUMBER:
                return False
            self._number = ""
        return char in WHITESPACE or self._push_structure(char)

    def _push_in_string(self, char: str) -> bool:
        if self._hex_digits:
            self._hex_digits -= 1
            return char in "0123456789abcdefABCDEF"
        if self._escaped:
            self._escaped = False
            self._hex_digits = 4 if char == "u" else 0
            return char in '"\\/bfnrtu'
        if char == '"':
            self._in_string = False
        self._escaped = char == "\\"
        return char >= " "

    def _push_structure(self, char: str) -> bool:
        expect = self.expect
        if expect == "colon" and char == ":":
            self.expect = "value"
        elif expect in ("key", "key_or_end") and char == '"':
            self._in_string, self.expect = True, "colon"
        elif expect == "comma_or_end" and char == ",":
            self.expect = "key" if self._open[-1] == "{" else "value"
        elif char in "}]":
            return self._close(char)
        elif expect in ("value", "value_or_end"):
            return self._begin_value(char)
        else:
            return False
        return True

    def _close(self, char: str) -> bool:
        ends = ("comma_or_end", "key_or_end") if char == "}" else ("comma_or_end", "value_or_end")
        if self.expect not in ends or not self._open or self._open.pop() + char not in ("{}", "[]"):
            return False
        self.expect = "comma_or_end" if self._open else "nothing"
        return True

    def _begin_value(self, char: str) -> bool:
        if not self._open and char != "{":
            return False
        if char in "{[":
            self._open.append(char)
            self.expect = "key_or_end" if char == "{" else "value_or_end"
            return True
        self.expect = "comma_or_end"
        if char == '"':
            self._in_string = True
        elif char in _LITERALS:
            self._literal = _LITERALS[char]
        elif char in "-0123456789":
            self._number = {"-": "minus", "0": "zero"}.get(char, "integer")
        else:
            return False
        return True
