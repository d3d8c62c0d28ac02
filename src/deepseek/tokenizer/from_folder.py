"""A tokenizer from a Hugging Face folder: tokenizer.json and the small files beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from tokenizers import Tokenizer

from deepseek.errors import TokenizerError
from deepseek.tokenizer.end_tokens import end_token_ids
from deepseek.tokenizer.fim import SPELLINGS, find_fim
from deepseek.tokenizer.library import library_errors
from deepseek.tokenizer.special import SpecialToken
from deepseek.tokenizer.tokenizer import TokenizerParts
from deepseek.tokenizer.vocabulary import Vocabulary


class _AddedToken(msgspec.Struct):
    id: int
    content: str
    special: bool = False
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False


class _Model(msgspec.Struct):
    type: str = "BPE"
    continuing_subword_prefix: str | None = None


class _TokenizerJson(msgspec.Struct):
    """The parts of tokenizer.json that are looked at here; the library reads it all."""

    model: _Model
    added_tokens: list[_AddedToken] = []
    pre_tokenizer: dict[str, Any] | None = None
    decoder: dict[str, Any] | None = None


def tokenizer_from_folder(folder: Path) -> TokenizerParts:
    """Build from ``tokenizer.json``, ``tokenizer_config.json``, ``generation_config.json`` and chat template files.

    Raises TokenizerError for a missing or malformed file and for kinds that are not implemented, naming the file.
    """
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise TokenizerError(
            f"{folder} has no tokenizer.json. Slow tokenizers (tokenizer.model, vocab.txt) are not read: save the "
            "model with a fast tokenizer, or use a GGUF file of it."
        )
    data = file.read_bytes()
    with library_errors(f"reading {file}"):
        parsed = msgspec.json.decode(data, type=_TokenizerJson)
        data = _fim_made_special(data, parsed)
        first = _plain(Tokenizer.from_buffer(data))
    config = _optional_json(folder / "special_tokens_map.json") | _optional_json(folder / "tokenizer_config.json")
    byte_level, strips_space = _decoding(parsed, file)
    special = _special_tokens(parsed, file)
    ids = {token.text: token.id for token in special}
    variables = _variables(config)
    bos = _token_id(first, variables.get("bos_token"))
    eos = _token_id(first, variables.get("eos_token"))
    prefix, suffix = _around_text(first, config, bos, eos)
    return TokenizerParts(
        first=first,
        later=_without_first_space(data, parsed) or first,
        vocabulary=Vocabulary(
            size=max(first.get_vocab_size(), *(token.id + 1 for token in parsed.added_tokens), 0),
            piece=first.id_to_token,
            byte_level=byte_level,
            special=frozenset(ids.values()),
            continuing=parsed.model.continuing_subword_prefix if parsed.model.type == "WordPiece" else None,
            literal=frozenset(token.id for token in parsed.added_tokens) if byte_level else frozenset(),
        ),
        special=special,
        prefix=prefix,
        suffix=suffix,
        bos_token_id=bos,
        eos_token_ids=end_token_ids(ids, [eos, *_configured_ends(folder)]),
        strips_space=strips_space,
        fim=find_fim({token.content: token.id for token in parsed.added_tokens}),
        templates=_templates(folder, config),
        variables=variables,
    )


def _optional_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        return msgspec.json.decode(file.read_bytes(), type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise TokenizerError(f"{file} is not a JSON object: {error}.") from error


def _fim_made_special(data: bytes, parsed: _TokenizerJson) -> bytes:
    """tokenizer.json with the tokens around holes marked special (in ``parsed`` too): DeepSeek's files leave that out,
    and then a user's text could become one."""
    plain = [token for token in parsed.added_tokens if token.content in SPELLINGS and not token.special]
    if not plain:
        return data
    for token in plain:
        token.special = True
    spellings = {token.content for token in plain}
    everything = msgspec.json.decode(data)
    for token in everything["added_tokens"]:
        token["special"] = token.get("special", False) or token["content"] in spellings
    return msgspec.json.encode(everything)


def _flat(component: Mapping[str, Any] | None, members: str) -> Iterator[Mapping[str, Any]]:
    """A component of tokenizer.json and, of a sequence, its members."""
    if component is None:
        return
    yield component
    for member in component.get(members) or ():
        yield from _flat(member, members)


def _decoding(parsed: _TokenizerJson, file: Path) -> tuple[bool, bool]:
    """Whether the vocabulary is byte-level, and whether decoding takes a leading space away."""
    if parsed.model.type == "WordPiece":
        return False, True
    if parsed.model.type not in ("BPE", "Unigram"):
        raise TokenizerError(f"{file} is of kind {parsed.model.type!r}; there are 'BPE', 'Unigram' and 'WordPiece'.")
    decoders = list(_flat(parsed.decoder, "decoders"))
    kinds = {str(decoder.get("type")) for decoder in decoders}
    if "ByteLevel" in kinds:
        return True, False
    if not kinds & {"Metaspace", "ByteFallback"}:
        raise TokenizerError(f"{file} has a decoder of kind {sorted(kinds)}, which is not implemented.")
    strips = any(
        (decoder.get("type") == "Strip" and decoder.get("content") == " " and decoder.get("start", 0) > 0)
        or (decoder.get("type") == "Metaspace" and decoder.get("prepend_scheme", "always") != "never")
        for decoder in decoders
    )
    return False, strips


def _special_tokens(parsed: _TokenizerJson, file: Path) -> list[SpecialToken]:
    special = [token for token in parsed.added_tokens if token.special]
    for token in special:
        if token.single_word:
            raise TokenizerError(f"{file}: special token {token.content!r} has single_word, which is not implemented.")
    return [SpecialToken(token.content, token.id, token.lstrip, token.rstrip) for token in special]


def _plain(tokenizer: Tokenizer) -> Tokenizer:
    """Set it to encode what it is given, whole, and to take spellings of special tokens for text."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _without_first_space(data: bytes, parsed: _TokenizerJson) -> Tokenizer | None:
    """The tokenizer for text behind a special token, if only the beginning of a text gets a space."""
    if not any(
        part.get("type") == "Metaspace" and part.get("prepend_scheme") == "first"
        for part in _flat(parsed.pre_tokenizer, "pretokenizers")
    ):
        return None
    everything = msgspec.json.decode(data)
    for part in _flat(everything["pre_tokenizer"], "pretokenizers"):
        if part.get("type") == "Metaspace":
            part["prepend_scheme"] = "never"  # type: ignore[index]
    with library_errors("building the tokenizer for text behind a special token"):
        return _plain(Tokenizer.from_buffer(msgspec.json.encode(everything)))


def _around_text(
    tokenizer: Tokenizer, config: Mapping[str, Any], bos: int | None, eos: int | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Ids that go before and behind a text: the post-processor's, unless the configuration says it in words."""
    with library_errors("encoding a letter"):
        bare, full = tokenizer.encode("a", add_special_tokens=False).ids, tokenizer.encode("a").ids
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    prefix, suffix = tuple(full[:start]), tuple(full[start + len(bare) :])
    if isinstance(config.get("add_bos_token"), bool):
        prefix = (bos,) if config["add_bos_token"] and bos is not None else ()
    if isinstance(config.get("add_eos_token"), bool):
        suffix = (eos,) if config["add_eos_token"] and eos is not None else ()
    return prefix, suffix


def _variables(config: Mapping[str, Any]) -> dict[str, str]:
    """``bos_token`` and its like, given as strings or as objects with ``content``."""
    variables = {}
    for name in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(name)
        value = value.get("content") if isinstance(value, Mapping) else value
        if isinstance(value, str):
            variables[name] = value
    return variables


def _token_id(tokenizer: Tokenizer, text: str | None) -> int | None:
    return None if text is None else tokenizer.token_to_id(text)


def _configured_ends(folder: Path) -> list[int]:
    """``eos_token_id`` of generation_config.json, or else of config.json: a number or a list of them."""
    for name in ("generation_config.json", "config.json"):
        value = _optional_json(folder / name).get("eos_token_id")
        if isinstance(value, int):
            return [value]
        if isinstance(value, list):
            return [token_id for token_id in value if isinstance(token_id, int)]
    return []


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Chat templates by name. Files go before the configuration, whose entry is a string or a list of named ones."""
    templates: dict[str, str] = {}
    entry = config.get("chat_template")
    if isinstance(entry, str):
        templates["default"] = entry
    elif isinstance(entry, list):
        for item in entry:
            if isinstance(item, Mapping) and isinstance(item.get("template"), str):
                templates[str(item.get("name", "default"))] = item["template"]
    files = {"default": folder / "chat_template.jinja"}
    files |= {file.stem: file for file in sorted((folder / "additional_chat_templates").glob("*.jinja"))}
    for name, file in files.items():
        if file.is_file():
            try:
                templates[name] = file.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise TokenizerError(f"{file} is not valid UTF-8: {error}.") from error
    return templates
