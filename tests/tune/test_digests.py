"""A set of digests is a set, and small."""

from __future__ import annotations

import tracemalloc

import pytest

from deepseek_tune.data import digests
from deepseek_tune.data.digests import Digests


@pytest.mark.parametrize("few", [1, 7, 8, 9, 1 << 14])
def test_texts_are_new_once(monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    monkeypatch.setattr(digests, "_FEW", few)
    seen, wanted = Digests(), set()
    for number in [*range(40), *range(30, 60), *range(3)]:
        text = str(number % 50).encode()
        assert seen.add(text) == (text not in wanted)
        wanted.add(text)
        assert len(seen) == len(wanted)


def test_a_text_takes_a_few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_FEW", 256)

    def held(count: int) -> int:
        tracemalloc.start()
        seen = Digests()
        for number in range(count):
            seen.add(b"%d" % number)
        current, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(seen) == count
        return current

    fewer = held(5_000)
    assert (held(35_000) - fewer) / 30_000 < 24
