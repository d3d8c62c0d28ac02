"""A tokenizer from the metadata of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any, TypeVar

from tokenizers import AddedToken, Tokenizer, models, normalizers

from deepseek.errors import TokenizerError
from deepseek.tokenizer.end_tokens import end_token_ids
from deepseek.tokenizer.fim import SPELLINGS, FimTokens, find_fim
from deepseek.tokenizer.pretokenizers import WHOLE_WORDS_FIRST, byte_level_pretokenizer
from deepseek.tokenizer.special import SpecialToken
from deepseek.tokenizer.tokenizer import TokenizerParts
from deepseek.tokenizer.vocabulary import SPACE_MARK, Vocabulary

_KEY = "tokenizer.ggml."
_T = TypeVar("_T")


class TokenType(IntEnum):
    """The numbers of ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class _Source:
    """Typed access to the metadata, and the token table by kind."""

    def __init__(self, metadata: Mapping[str, Any], name: str) -> None:
        self.metadata = metadata
        self.name = name
        self.tokens: list[str] = self.list_of("tokens", str)
        types = self.list_of("token_type", int, optional=True)
        if types and len(types) != len(self.tokens):
            raise self.error(f"it has {len(self.tokens)} tokens but {len(types)} token types")
        self.types = types or [TokenType.NORMAL] * len(self.tokens)
        self.fim = self._find_fim()
        for i in self.fim.ends if self.fim is not None else ():
            self.types[i] = TokenType.CONTROL  # whatever the file says: no user's text may become one
        self.special = {text: i for i, text in self.of_type(TokenType.CONTROL, TokenType.UNKNOWN)}
        self.user_defined = {text: i for i, text in self.of_type(TokenType.USER_DEFINED)}

    def _find_fim(self) -> FimTokens | None:
        ids = {text: i for i, text in enumerate(self.tokens) if text in SPELLINGS}
        named = {name: self.token_id(f"fim_{name}_token_id") for name in ("pre", "suf", "mid", "pad", "rep", "sep")}
        older = {"pre": "prefix_token_id", "suf": "suffix_token_id", "mid": "middle_token_id"}
        for name, key in older.items():  # the keys of CodeLlama's first files
            named[name] = self.token_id(key) if named[name] is None else named[name]
        return find_fim(ids, named)

    def error(self, what: str) -> TokenizerError:
        return TokenizerError(f"the tokenizer in {self.name} cannot be built: {what}.")

    def of_type(self, *types: int) -> list[tuple[int, str]]:
        return [(i, text) for i, text in enumerate(self.tokens) if self.types[i] in types]

    def get(self, key: str, kind: type[_T], default: _T) -> _T:
        value = self.metadata.get(_KEY + key, default)
        if not isinstance(value, kind):
            raise self.error(f"{_KEY + key} is {value!r}, not of type {kind.__name__}")
        return value

    def list_of(self, key: str, kind: type[_T], *, optional: bool = False) -> list[_T]:
        value = self.metadata.get(_KEY + key)
        if value is None and optional:
            return []
        if not isinstance(value, list) or not value or not isinstance(value[0], kind):
            raise self.error(f"{_KEY + key} is missing or not a list of {kind.__name__}")
        return value

    def token_id(self, key: str) -> int | None:
        """A token id of the metadata, None if it is not given."""
        value = self.metadata.get(_KEY + key)
        if value is None:
            return None
        if not isinstance(value, int) or not 0 <= value < len(self.tokens):
            raise self.error(f"{_KEY + key} is {value!r}, but there are {len(self.tokens)} tokens")
        return value


def tokenizer_from_gguf(metadata: Mapping[str, Any], name: str) -> TokenizerParts:
    """Build from ``tokenizer.*`` keys; ``name`` is for messages.

    Raises TokenizerError for missing or contradictory keys, and for kinds that are not implemented.
    """
    source = _Source(metadata, name)
    model = source.get("model", str, "")
    pre = source.get("pre", str, "default")
    if model == "gpt2":
        backend, byte_level, strips_space = _byte_level_bpe(source, pre), True, False
        add_bos_by_default = pre in WHOLE_WORDS_FIRST
    elif model == "llama":
        add_space = source.get("add_space_prefix", bool, True)
        backend, byte_level, strips_space = _sentencepiece_bpe(source, add_space), False, add_space
        add_bos_by_default = True
    else:
        raise source.error(f"its kind {model!r} ({_KEY}model) is not implemented, only 'gpt2' and 'llama' are")
    bos, eos = source.token_id("bos_token_id"), source.token_id("eos_token_id")
    add_bos = source.get("add_bos_token", bool, add_bos_by_default and bos is not None)
    add_eos = source.get("add_eos_token", bool, False)
    if (add_bos and bos is None) or (add_eos and eos is None):
        raise source.error("it asks for a BOS or EOS token around every text, but names none")
    named = (eos, source.token_id("eot_token_id"), source.token_id("eom_token_id"))
    return TokenizerParts(
        first=backend,
        later=backend,  # each piece of text gets its space, as in SentencePiece and llama.cpp
        vocabulary=Vocabulary(
            size=len(source.tokens),
            piece=source.tokens.__getitem__,
            byte_level=byte_level,
            special=frozenset(source.special.values()),
            literal=frozenset(source.user_defined.values()),
            silent=frozenset(i for i, _ in source.of_type(TokenType.UNUSED)),
        ),
        special=[SpecialToken(text, i) for text, i in source.special.items()],
        prefix=(bos,) if add_bos and bos is not None else (),
        suffix=(eos,) if add_eos and eos is not None else (),
        bos_token_id=bos,
        eos_token_ids=end_token_ids(source.special, named),
        strips_space=strips_space,
        fim=source.fim,
        templates=_templates(source),
        variables=_variables(source),
    )


def _backend(source: _Source, model: models.BPE) -> Tokenizer:
    """Only user-defined tokens are matched in text: control tokens are unknown to it, so that nothing a user types can
    become one."""
    backend = Tokenizer(model)
    backend.add_tokens([AddedToken(text, special=False, normalized=False) for text in source.user_defined])
    return backend


def _ordinary(source: _Source, *types: int) -> dict[str, int]:
    """Tokens of these types that text can become. Of a spelling that stands twice the first id counts."""
    vocabulary: dict[str, int] = {}
    for i, text in source.of_type(*types):
        vocabulary.setdefault(text, i)
    return vocabulary


def _byte_level_bpe(source: _Source, pre: str) -> Tokenizer:
    pretokenizer = byte_level_pretokenizer(pre)
    merges = []
    for merge in source.list_of("merges", str):
        left, _, right = merge.partition(" ")
        merges.append((left, right))
    vocabulary = _ordinary(source, TokenType.NORMAL, TokenType.USER_DEFINED)
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, ignore_merges=pre in WHOLE_WORDS_FIRST)
    except Exception as error:  # tokenizers raises plain Exception
        raise source.error(f"its merges do not fit its tokens ({error})") from error
    backend = _backend(source, model)
    backend.pre_tokenizer = pretokenizer
    return backend


def _sentencepiece_bpe(source: _Source, add_space: bool) -> Tokenizer:
    """SentencePiece BPE (Kudo & Richardson 2018): the pair whose union has the best score merges first."""
    scores = source.list_of("scores", float)
    if len(scores) != len(source.tokens):
        raise source.error(f"it has {len(source.tokens)} tokens but {len(scores)} scores")
    vocabulary = _ordinary(source, TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED, TokenType.BYTE)
    if not all(f"<0x{byte:02X}>" in vocabulary for byte in range(256)):
        raise source.error("it lacks some of the 256 byte tokens, <0x00> to <0xFF>")
    merges = _merges_by_score(source, scores)
    try:
        model = models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, fuse_unk=False)
    except Exception as error:  # tokenizers raises plain Exception
        raise source.error(f"its tokens cannot be used ({error})") from error
    backend = _backend(source, model)
    spaces: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE_MARK)]
    if add_space:
        spaces.insert(0, normalizers.Prepend(SPACE_MARK))
    backend.normalizer = normalizers.Sequence(spaces)
    return backend


def _merges_by_score(source: _Source, scores: Sequence[float]) -> list[tuple[str, str]]:
    """All ways to put a token together from two others, best score first.

    SentencePiece has no list of merges: any two neighbours merge if their union is a token. Ways to the same token
    share its score; there SentencePiece takes the leftmost pair, a list takes its first, which can differ only within
    runs of one repeated pattern. Control and byte tokens are no results and no parts.
    """
    mergeable = _ordinary(source, TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    merges: list[tuple[str, str]] = []
    for token in sorted(mergeable, key=lambda text: -scores[mergeable[text]]):
        for cut in range(1, len(token)):
            left = token[:cut]
            if left in mergeable:
                right = token[cut:]
                if right in mergeable:
                    merges.append((left, right))
    return merges


def _templates(source: _Source) -> dict[str, str]:
    prefix = "tokenizer.chat_template"
    templates = {
        key.removeprefix(prefix).lstrip(".") or "default": value
        for key, value in source.metadata.items()
        if (key == prefix or key.startswith(prefix + ".")) and isinstance(value, str)
    }
    return {name: text for name, text in templates.items() if text.strip()}


def _variables(source: _Source) -> dict[str, str]:
    names = {"bos_token": "bos_token_id", "eos_token": "eos_token_id", "pad_token": "padding_token_id"}
    ids = {name: source.token_id(key) for name, key in (names | {"unk_token": "unknown_token_id"}).items()}
    return {name: source.tokens[i] for name, i in ids.items() if i is not None}
