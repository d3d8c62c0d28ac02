"""JSON in the midst of other text: what its limits count, and what not."""

from __future__ import annotations

import pytest

from deepseek.engine.bounded_schema import JsonLimits
from deepseek.engine.json_limits import EmbeddedJsonPosition

LIMITS = JsonLimits(string=8, key=8, number=4, items=3, depth=3)


def wishes(marker: str, text: str, *, first: bool = False) -> tuple[str, ...]:
    position = EmbeddedJsonPosition(LIMITS, marker.encode() or None, first=first or not marker)
    position.push(text[: len(text) // 2].encode())
    position = position.copy()
    position.push(text[len(text) // 2 :].encode())
    return position.wishes()


@pytest.mark.parametrize(
    ("marker", "text", "expected"),
    [
        ("<call>", 'words "without an end {[[[[ 12345678', ()),
        ("<call>", '<call>\n{"a": "123456789', ("quote",)),
        ("<call>", '<call>\n{"a": "1234567', ()),
        ("<call>", '<call>\nget {"a": 12345', ("no_digit",)),
        ("<call>", '<call>{"a": 1}\n</call> "and long words {', ()),
        ("<call>", '<call>{"a": 1}</call> <call>{"a": "123456789', ("quote",)),
        ("<call>", '<call>{"a": {"b": {', ("close", "no_open")),
        ("<call>", '<call>{"a": [1, 2, ', ("close",)),
        ("", '{"a": "123456789', ("quote",)),
        ("", '{"a": 1}; {"a": "123456789', ("quote",)),
        ("", 'words {"a": "123456789', ()),
        ("", '{"a": 1} words {"a": "123456789', ()),
    ],
)
def test_only_json_has_limits(marker: str, text: str, expected: tuple[str, ...]) -> None:
    assert wishes(marker, text) == expected


def test_json_at_once_or_behind_a_marker() -> None:
    assert wishes("<call>", '{"a": "123456789', first=True) == ("quote",)
    assert wishes("<call>", ' <call>{"a": "123456789', first=True) == ("quote",)
    assert wishes("<call>", '{"a": 1} <call>{"a": "123456789', first=True) == ("quote",)
    assert wishes("<call>", 'no {"a": "123456789', first=True) == ()


def test_limits_of_several_schemas_are_the_widest() -> None:
    assert JsonLimits(string=5, items=9).union(JsonLimits(string=7, items=2)) == JsonLimits(string=7, items=9)
