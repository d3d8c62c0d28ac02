"""The fuzz targets hold on their seeds and on a fixed set of damaged ones; `make fuzz` goes on from here."""

from __future__ import annotations

import random

import pytest

from tests.fuzz.targets import TARGETS

INTERESTING = (b"\x00", b"\xff", b"\xff" * 7 + b"\x7f", b"-1", b"1e999", b"null", b"[[[[", b'"', b"\xf0\x9f")


def damaged(seed: bytes, source: random.Random) -> bytes:
    """The seed with one to four wounds."""
    data = bytearray(seed)
    for _ in range(source.randint(1, 4)):
        place = source.randrange(len(data) + 1)
        match source.randrange(5):
            case 0:
                data[place : place + 1] = bytes([source.randrange(256)])
            case 1:
                data[place:place] = source.choice(INTERESTING)
            case 2:
                data[place : place + source.randint(1, 16)] = b""
            case 3:
                data[place:place] = data[place : place + source.randint(1, 64)]
            case 4:
                del data[place:]
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_damaged_seeds(name: str) -> None:
    target = TARGETS[name]
    source = random.Random(f"fuzz/{name}")
    seeds = target.seeds()
    for seed in seeds:
        target.run(seed)
    for _ in range(20 if target.slow else 300):
        target.run(damaged(source.choice(seeds), source))
