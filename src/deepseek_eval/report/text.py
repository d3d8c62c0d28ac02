"""Text and numbers as a report shows them. What a model wrote is hostile until it went through :func:`visible`."""

from __future__ import annotations

import re

_HIDDEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u206f\ufeff]"
)
_SURROGATES = re.compile(r"[\ud800-\udfff]")


def visible(text: str) -> str:
    """Text in which control characters, among them those that turn the direction of writing, stand as signs.

    A page cannot hold U+0000 at all, and U+202E would mirror what follows it. Line feeds and tabs stay.
    """
    text = _SURROGATES.sub("\ufffd", text.replace("\r\n", "\n"))
    return _HIDDEN.sub(_sign, text)


def _sign(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"\u27e8U+{code:04X}\u27e9"


def shortened(text: str, limit: int) -> str:
    """At most about ``limit`` characters: the beginning and the end, and how many are left out between."""
    if len(text) <= limit:
        return text
    head = limit * 2 // 3
    tail = limit - head
    return f"{text[:head]}\n[… {len(text) - limit:,} characters are left out …]\n{text[-tail:]}"


def shown(value: float | None, unit: str) -> str:
    """A metric's value as people read it."""
    if value is None:
        return "undefined"
    if unit == "share":
        return f"{value:.1%}"
    return f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def signed(value: float, unit: str) -> str:
    """A difference of values; shares in percentage points."""
    return f"{value * 100:+.1f} pp" if unit == "share" else f"{value:+.2f}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"


def money(dollars: float) -> str:
    """US dollars, with more digits the smaller they are."""
    return f"${dollars:,.2f}" if dollars >= 1 or dollars == 0 else f"${dollars:.4f}"
