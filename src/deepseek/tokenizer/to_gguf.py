"""A tokenizer as the metadata of a GGUF file, made from the files of a Hugging Face folder.

What a GGUF file cannot say in words, it says by a name (``tokenizer.ggml.pre``: how text is cut into words). The name
is found by trying: the one whose words are this tokenizer's on text of many kinds.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer as Backend

from deepseek.errors import TokenizerError
from deepseek.tokenizer.from_folder import tokenizer_from_folder
from deepseek.tokenizer.from_gguf import TokenType, tokenizer_from_gguf
from deepseek.tokenizer.library import library_errors
from deepseek.tokenizer.pretokenizers import PRETOKENIZERS, WHOLE_WORDS_FIRST, byte_level_pretokenizer
from deepseek.tokenizer.tokenizer import Tokenizer, TokenizerParts
from deepseek.tokenizer.vocabulary import BYTE_TOKEN

_KEY = "tokenizer.ggml."
_NORMALIZERS = ("NFC", "Sequence")
_PROBES = (
    "Hello world! It's 12345678 o'clock, isn't it?  We'LL see (maybe)...\n\n\tfoo_bar = x[3] + 4.5e-6; // done\r\n",
    "我想退款，订单号是 20250117。谢谢！　全角：ＡＢＣ１２３",
    "注文をキャンセルしたいです。カタカナとひらがな、漢字。",
    "환불은 언제 되나요? 3일 걸립니다.",
    "Ünïcode café naïve Straße Ελλάδα Привет мир שלום नमस्ते ไทย 🙂👍🏽 — “quotes” €5.00 ½ ²",
    "    four spaces   three\n  two  \n\n\n trailing   ",
    "def f(a, b):\n    return a**2 != b // 3  # !?'s 're 'VE\n",
)


def tokenizer_metadata(folder: Path, rows: int) -> dict[str, Any]:
    """The ``tokenizer.*`` keys for the tokenizer in ``folder``; the vocabulary is filled up to ``rows`` tokens, as many
    as the embedding has.

    Raises TokenizerError for a tokenizer that GGUF cannot hold: another kind than BPE, or one that would cut text
    otherwise when it is read back.
    """
    parts = tokenizer_from_folder(folder)
    file = folder / "tokenizer.json"
    with library_errors(f"reading {file}"):
        data: dict[str, Any] = msgspec.json.decode(file.read_bytes())
        backend = Backend.from_buffer(file.read_bytes())
    model = data["model"]
    if model.get("type", "BPE") != "BPE":
        raise TokenizerError(f"{file} is of kind {model['type']!r}: GGUF files are written for BPE only.")
    tokens, types = _tokens(data, parts, rows, file)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    keys: dict[str, Any] = {"tokens": tokens, "token_type": types, **_named(parts, tokens)}
    if parts.vocabulary.byte_level:
        keys |= {"model": "gpt2", "pre": _pretokenizer(data, backend, file), "merges": merges}
    else:
        pairs = [tuple(pair.split(" ", 1)) if isinstance(pair, str) else tuple(pair) for pair in model["merges"]]
        keys |= {"model": "llama", "scores": _scores(tokens, pairs), "add_space_prefix": parts.strips_space}
    metadata = {f"{_KEY}{name}": value for name, value in keys.items()}
    for name, template in parts.templates.items():
        metadata["tokenizer.chat_template" + ("" if name == "default" else f".{name}")] = template
    _verify(metadata, parts, file)
    return metadata


def _tokens(data: Mapping[str, Any], parts: TokenizerParts, rows: int, file: Path) -> tuple[list[str], list[int]]:
    """(spelling, type) of each id."""
    spelled = {int(token_id): str(text) for text, token_id in data["model"]["vocab"].items()}
    added = {int(token["id"]): token for token in data.get("added_tokens", ())}
    size = max((*spelled, *added)) + 1
    if size > rows:
        raise TokenizerError(f"{file} has {size} tokens and the model's embedding {rows} rows: they do not match.")
    special = {token.id for token in parts.special}
    tokens, types = [], []
    for token_id in range(rows):
        if token_id in added:
            tokens.append(str(added[token_id]["content"]))
            types.append(TokenType.CONTROL if token_id in special else TokenType.USER_DEFINED)
        elif token_id in spelled:
            tokens.append(spelled[token_id])
            byte = not parts.vocabulary.byte_level and BYTE_TOKEN.fullmatch(spelled[token_id])
            types.append(TokenType.BYTE if byte else TokenType.NORMAL)
        else:
            tokens.append(f"[PAD{token_id}]")
            types.append(TokenType.UNUSED)
    return tokens, [int(kind) for kind in types]


def _named(parts: TokenizerParts, tokens: list[str]) -> dict[str, Any]:
    """Ids that have a meaning, and what goes around a text."""
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    ids = {text: token_id for token_id, text in enumerate(tokens)}
    named = {
        key: ids[parts.variables[name]]
        for name, key in (names | {"unk_token": "unknown_token_id"}).items()
        if parts.variables.get(name) in ids
    }
    ends = sorted(parts.eos_token_ids - {named.get("eos_token_id", -1)})
    if "eos_token_id" not in named and ends:
        named["eos_token_id"] = ends.pop(0)
    keys: dict[str, Any] = dict(named)
    if ends:
        keys["eot_token_id"] = ends[0]
    return keys | {"add_bos_token": bool(parts.prefix), "add_eos_token": bool(parts.suffix)}


def _pretokenizer(data: Mapping[str, Any], backend: Backend, file: Path) -> str:
    normalizer = data.get("normalizer")
    if normalizer is not None and normalizer.get("type") not in _NORMALIZERS:
        raise TokenizerError(f"{file} normalizes text ({normalizer.get('type')}), which GGUF files cannot say.")
    if backend.pre_tokenizer is None:
        raise TokenizerError(f"{file} does not cut text into words, which GGUF files of its kind always do.")
    words = [backend.pre_tokenizer.pre_tokenize_str(text) for text in _PROBES]
    whole_first = bool(data["model"].get("ignore_merges"))
    for name in PRETOKENIZERS:
        candidate = byte_level_pretokenizer(name)
        if whole_first == (name in WHOLE_WORDS_FIRST) and words == list(map(candidate.pre_tokenize_str, _PROBES)):
            return name
    raise TokenizerError(
        f"{file} cuts text into words in a way that has no name in GGUF files (tokenizer.ggml.pre) that we know: write "
        "the model as safetensors."
    )


def _scores(tokens: list[str], merges: list[tuple[str, ...]]) -> list[float]:
    """Scores in whose order the merges are made: that of the first merge to each token."""
    first: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        first.setdefault("".join(pair), rank)
    return [-float(first.get(token, len(merges))) for token in tokens]


def _verify(metadata: Mapping[str, Any], parts: TokenizerParts, file: Path) -> None:
    """Raises TokenizerError if what is read back is another tokenizer."""
    back = tokenizer_from_gguf(metadata, "the GGUF file to be written")
    ours, theirs = Tokenizer(parts), Tokenizer(back)
    for text in (*_PROBES, *re.findall(r"\S+", " ".join(_PROBES))):
        if ours.encode(text) != theirs.encode(text):
            raise TokenizerError(
                f"{file} cannot be written as GGUF: {text!r} would become other tokens. Write the model as safetensors."
            )
    if lost := parts.eos_token_ids - back.eos_token_ids:
        raise TokenizerError(f"{file}: the tokens {sorted(lost)} end an answer, and GGUF cannot name that many.")
