"""GGUF metadata to tokenizers: kinds, options, damaged metadata."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepseek.errors import DeepSeekError, TokenizerError
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.pretokenizers import byte_level_pretokenizer
from deepseek.tokenizer.tokenizer import Tokenizer
from tests.tokenizer import tiny


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "bert"}, "'bert'"),
        ({"model": None}, "kind ''"),
        ({"model": 3}, "tokenizer.ggml.model is 3"),
        ({"pre": "grok-2"}, "'grok-2'"),
        ({"tokens": None}, "tokenizer.ggml.tokens"),
        ({"tokens": "abc"}, "tokenizer.ggml.tokens"),
        ({"token_type": [1, 1]}, "2 token types"),
        ({"merges": None}, "tokenizer.ggml.merges"),
        ({"merges": ["a zz"]}, "merges do not fit"),
        ({"eos_token_id": 10_000}, "10000"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"add_bos_token": True}, "BOS"),
    ],
)
def test_bad_metadata_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tiny.build(tiny.byte_level(**change))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gpt-2", ["1234567"]),
        ("smollm", list("1234567")),
        ("qwen2", list("1234567")),
        ("qwen35", list("1234567")),
        ("llama-bpe", ["123", "456", "7"]),
        ("deepseek-v3", ["123", "456", "7"]),
        ("deepseek-llm", ["1234567"]),
        ("deepseek-coder", list("1234567")),
        ("default", ["123", "456", "7"]),
    ],
)
def test_digits(name: str, words: list[str]) -> None:
    assert [word for word, _ in byte_level_pretokenizer(name).pre_tokenize_str("1234567")] == words


def test_bad_sentencepiece_metadata() -> None:
    with pytest.raises(TokenizerError, match="2 scores"):
        tiny.build(tiny.sentencepiece(scores=[0.0, 1.0]))
    tokens = tiny.sentencepiece()["tokenizer.ggml.tokens"]
    tokens[3] = "\u2581zero"
    with pytest.raises(TokenizerError, match="byte tokens"):
        tiny.build(tiny.sentencepiece(tokens=tokens))


def test_scores_decide_which_pair_merges() -> None:
    words = tiny.sentencepiece()["tokenizer.ggml.tokens"]
    tokenizer = tiny.build(tiny.sentencepiece())
    pieces = [words[i] for i in tokenizer.encode("hello world abc", add_special_tokens=False)]
    assert pieces == ["\u2581hello", "\u2581world", "\u2581", "ab", "c"]
    scores = tiny.sentencepiece()["tokenizer.ggml.scores"]
    scores[words.index("bc")] = 1.0
    other = tiny.build(tiny.sentencepiece(scores=scores))
    assert [words[i] for i in other.encode("abc", add_special_tokens=False)] == ["\u2581", "a", "bc"]


def test_space_prefix() -> None:
    with_space, without = tiny.build(tiny.sentencepiece()), tiny.build(tiny.sentencepiece(add_space_prefix=False))
    assert with_space.encode("hello")[1:] == without.encode(" hello")[1:]
    assert without.decode(without.encode(" hello")) == " hello"
    # Text behind a special token gets its space too, as in SentencePiece.
    assert with_space.encode("hello</s>hello", parse_special=True)[1:] == [
        *with_space.encode("hello")[1:],
        2,
        *with_space.encode("hello")[1:],
    ]


def test_bos_and_eos_around_text() -> None:
    tokenizer = tiny.build(tiny.sentencepiece(add_eos_token=True))
    ids = tokenizer.encode("hello")
    assert (ids[0], ids[-1]) == (1, 2)
    assert tokenizer.encode("", add_special_tokens=True) == [1, 2]
    assert tokenizer.encode("", add_special_tokens=False) == []
    assert tiny.build(tiny.sentencepiece(add_bos_token=False)).encode("hello")[0] != 1
    assert tiny.build(tiny.sentencepiece(add_bos_token=None)).encode("hello")[0] == 1  # the kind's default


def test_user_defined_tokens_are_matched_in_plain_text_and_control_tokens_are_not() -> None:
    tokenizer = tiny.build(tiny.byte_level())
    assert tokenizer.encode("a<tool>b") == [97, 257, 98]
    assert tokenizer.encode("<|im_end|>") == list(b"<|im_end|>")
    assert tokenizer.encode("<|im_end|>", parse_special=True) == [259]
    assert tokenizer.decode([97, 257, 98]) == "a<tool>b"


def test_end_tokens_by_name() -> None:
    tokenizer = tiny.build(tiny.byte_level(eos_token_id=260))
    assert tokenizer.eos_token_ids == {259, 260}
    assert tokenizer.bos_token_id is None


def test_no_control_token_of_a_real_model_comes_from_plain_text(real_tokenizer: Tokenizer) -> None:
    special = {t.text: t.id for t in real_tokenizer._parts.special}
    for text, token_id in special.items():
        assert token_id not in real_tokenizer.encode(text, add_special_tokens=False)
        assert real_tokenizer.encode(text, add_special_tokens=False, parse_special=True) == [token_id]
        assert real_tokenizer.token_bytes(token_id) == text.encode()


def test_what_the_real_models_say_of_themselves(cached_tokenizer: Callable[[str], Tokenizer]) -> None:
    smollm2 = cached_tokenizer("smollm2-135m-instruct")
    assert (smollm2.vocab_size, smollm2.bos_token_id, smollm2.eos_token_ids) == (49152, 1, {0, 2})
    qwen = cached_tokenizer("qwen2.5-coder-1.5b-instruct")
    assert (qwen.vocab_size, qwen.eos_token_ids) == (151936, {151643, 151645})
    gemma = cached_tokenizer("gemma-3-270m")
    assert (gemma.vocab_size, gemma.bos_token_id, gemma.eos_token_ids) == (262144, 2, {1, 106})
    assert gemma.encode("a")[0] == 2
    assert not gemma.has_chat_template


def test_paths_that_hold_no_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="does not exist"):
        load_tokenizer(tmp_path / "absent.gguf")
    (tmp_path / "x.gguf").write_bytes(b"GGUF but not really")
    with pytest.raises(DeepSeekError):
        load_tokenizer(tmp_path / "x.gguf")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path)


def test_importing_and_loading_needs_no_torch() -> None:
    code = "import sys, deepseek.tokenizer.load, deepseek.tokenizer.from_folder, deepseek.tokenizer.from_gguf"
    heavy = "{'torch', 'transformers', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", f"{code}\nassert not {heavy}, {heavy}"], check=True)
