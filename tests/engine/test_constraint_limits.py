"""Limits on what a constraint leaves open, on a real vocabulary whose size 32 divides."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from deepseek.constraints import Constraint
from deepseek.engine.constraints import Constraints
from deepseek.tokenizer.load import load_tokenizer


def test_a_number_beyond_its_limit_ends(test_model: Path) -> None:
    tokenizer = load_tokenizer(test_model)
    assert tokenizer.vocab_size % 32 == 0
    constraints = Constraints(tokenizer)
    try:
        schema = {"type": "object", "properties": {"km": {"type": "integer"}}, "required": ["km"]}
        matcher = constraints.matcher(Constraint.json_schema(schema)).result(60)
        (digit,) = tokenizer.encode_continuation("7")
        for token in tokenizer.encode_continuation('{"km":7'):
            matcher.accept(token)
        for _ in range(400):
            allowed = matcher.allowed(())
            assert allowed is not None
            bits = np.unpackbits(allowed, bitorder="little")
            assert bits.any() and len(bits) >= tokenizer.vocab_size
            if not bits[digit]:
                return
            matcher.accept(digit)
        raise AssertionError("a number without end")
    finally:
        constraints.close()
