"""The ids llama.cpp gave for lines of our own (the file names its version), on the same GGUF files.

``benchmarks/tokenizer_parity.py`` does the large comparison, against a live llama.cpp.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from deepseek.hub.gguf_file import GGUFFile
from deepseek.tokenizer.from_gguf import tokenizer_from_gguf
from deepseek.tokenizer.tokenizer import Tokenizer
from tests.tokenizer.conftest import MODELS

DATA = Path(__file__).parent / "data"
EXPECTED = json.loads((DATA / "llama_cpp_ids.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("parse_special", [False, True], ids=["plain", "special"])
@pytest.mark.parametrize("name", MODELS)
def test_same_ids(name: str, parse_special: bool, cached_tokenizer: Callable[[str], Tokenizer]) -> None:
    tokenizer = cached_tokenizer(name)
    expected = EXPECTED["special" if parse_special else "plain"][name]
    assert len(expected) == len(EXPECTED["lines"]) > 150
    for line, ids in zip(EXPECTED["lines"], expected, strict=True):
        assert tokenizer.encode(line, add_special_tokens=False, parse_special=parse_special) == ids, repr(line)


@pytest.mark.parametrize("name", MODELS)
def test_decode_gives_the_lines_back(name: str, cached_tokenizer: Callable[[str], Tokenizer]) -> None:
    tokenizer = cached_tokenizer(name)
    for line in EXPECTED["lines"]:
        assert tokenizer.decode(tokenizer.encode(line)) == line.replace("\u2581", " " if "gemma" in name else "\u2581")


PRETOKENIZERS = json.loads(
    (Path(__file__).parent / "data" / "llama_cpp_pretokenizers.json").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", PRETOKENIZERS["plain"])
def test_same_words(name: str, test_model: Path) -> None:
    """SmolLM2's vocabulary with ``tokenizer.ggml.pre`` changed: the ids show where llama.cpp cuts words.

    But not how it groups digits, which never merge in this vocabulary; see ``test_digits``.
    """
    file = GGUFFile(test_model)
    tokenizer = Tokenizer(tokenizer_from_gguf(file.metadata | {"tokenizer.ggml.pre": name}, name))
    file.close()
    for line, ids in zip(PRETOKENIZERS["lines"], PRETOKENIZERS["plain"][name], strict=True):
        assert tokenizer.encode(line, add_special_tokens=False) == ids, repr(line)
