"""The tokenizer of a model: text to ids, ids to text, messages to a prompt. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import tokenizers

from deepseek.errors import ChatTemplateError, InvalidRequestError
from deepseek.tokenizer.chat import prepare_chat
from deepseek.tokenizer.chat_template import ChatTemplate, TemplateLimits
from deepseek.tokenizer.detokenizer import IncrementalDetokenizer
from deepseek.tokenizer.fim import FimTokens
from deepseek.tokenizer.library import library_errors
from deepseek.tokenizer.special import SpecialToken, SpecialTokens
from deepseek.tokenizer.vocabulary import Vocabulary

# In front of a text it takes the space that SentencePiece puts before every text, as in CodeLlama's generation.py. No
# vocabulary merges it with what follows.
_ANCHOR = "☺"


@dataclass(frozen=True, kw_only=True)
class TokenizerParts:
    """What a loader found.

    Attributes:
        first: encodes text at the beginning; it must never yield a special token.
        later: the same for text behind a special token (differs where only the beginning gets a space).
        vocabulary: ids to bytes.
        special: special tokens and the ids they get.
        prefix: ids in front of every text that is encoded with ``add_special_tokens`` (BOS).
        suffix: ids behind it.
        bos_token_id: beginning-of-text token, None where the model has none.
        eos_token_ids: tokens that end an answer.
        strips_space: the encoder puts a space in front of every text, so decoding takes one away.
        fim: the tokens around a hole, None where the model fills none.
        templates: chat templates by name; "default" is the usual one, "tool_use" is used when there are tools.
        variables: template variables such as ``bos_token``.
    """

    first: tokenizers.Tokenizer
    later: tokenizers.Tokenizer
    vocabulary: Vocabulary
    special: Sequence[SpecialToken]
    prefix: tuple[int, ...] = ()
    suffix: tuple[int, ...] = ()
    bos_token_id: int | None = None
    eos_token_ids: frozenset[int] = frozenset()
    strips_space: bool = False
    fim: FimTokens | None = None
    templates: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)


class Tokenizer:
    """Encodes, decodes and renders chats; safe to use from several threads.

    Attributes:
        vocab_size: number of token ids.
        bos_token_id: beginning-of-text token, or None.
        eos_token_ids: all tokens that end an answer.
    """

    def __init__(self, parts: TokenizerParts, limits: TemplateLimits | None = None) -> None:
        self._parts = parts
        self._special = SpecialTokens(parts.special)
        self._templates = {name: ChatTemplate(source, limits) for name, source in parts.templates.items()}
        self.vocab_size = parts.vocabulary.size
        self.bos_token_id = parts.bos_token_id
        self.eos_token_ids = parts.eos_token_ids

    def fingerprint(self) -> str:
        """A digest of all that ids depend on, chat templates included: the key of stored token ids."""
        parts = self._parts
        digest = hashlib.sha256(parts.first.to_str().encode())
        digest.update(parts.later.to_str().encode())
        special = sorted((token.text, token.id, token.lstrip, token.rstrip) for token in parts.special)
        around = parts.prefix, parts.suffix, sorted(parts.eos_token_ids)
        chats = sorted(parts.templates.items()), sorted(parts.variables.items())
        digest.update(repr((special, around, chats)).encode("utf-8", "backslashreplace"))
        return digest.hexdigest()

    # Text to ids

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of ``text``.

        Args:
            add_special_tokens: put the model's BOS (and EOS, where it wants one) around the text.
            parse_special: take spellings such as ``<|im_end|>`` for the special tokens. Only for text of our own:
                in a user's text they stay plain text.

        Raises InvalidRequestError for text that is not Unicode (a lone surrogate), TokenizerError if the model's
        tokenizer breaks on it.
        """
        pieces = self._special.split(text) if parse_special else ([text] if text else [])
        ids = self._encode_pieces(pieces)
        return [*self._parts.prefix, *ids, *self._parts.suffix] if add_special_tokens else ids

    def _encode_pieces(self, pieces: Iterable[str | int]) -> list[int]:
        ids: list[int] = []
        encoder = self._parts.first
        for piece in pieces:
            if isinstance(piece, int):
                ids.append(piece)
            else:
                check_unicode(piece)
                with library_errors("encoding a text"):
                    ids += encoder.encode(piece, add_special_tokens=False).ids
            encoder = self._parts.later
        return ids

    def encode_continuation(self, text: str) -> list[int]:
        """Token ids of text behind other text: nothing is put in front of it, not even the space that some
        vocabularies put before every text."""
        check_unicode(text)
        encode = self._parts.later.encode
        with library_errors("encoding a text"):
            if not self._parts.strips_space:
                return list(encode(text, add_special_tokens=False).ids)
            anchor = encode(_ANCHOR, add_special_tokens=False).ids
            return list(encode(_ANCHOR + text, add_special_tokens=False).ids[len(anchor) :])

    # Fill in the middle

    @property
    def fim_end_ids(self) -> frozenset[int]:
        """Tokens that end what fills a hole, besides ``eos_token_ids``."""
        return self._parts.fim.ends if self._parts.fim is not None else frozenset()

    def encode_fim(self, before: str | Sequence[int], behind: str) -> list[int]:
        """Token ids of a prompt whose answer is what stands between two texts.

        Spellings of special tokens in the texts stay text. ``before`` may be token ids, which are taken as they are.

        Raises InvalidRequestError if the model was not trained for it, and as :meth:`encode`.
        """
        fim = self._parts.fim
        if fim is None:
            raise InvalidRequestError(
                "this model does not fill in the middle: its vocabulary has no tokens for that. Leave 'suffix' out, or "
                "use a model such as Qwen2.5-Coder, DeepSeek-Coder or StarCoder.",
                param="suffix",
                code="unsupported_parameter",
            )
        start = self.encode(before, add_special_tokens=False) if isinstance(before, str) else before
        return [*self._parts.prefix, fim.before, *start, fim.behind, *self.encode_continuation(behind), fim.middle]

    # Ids to text

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of these ids. Bytes that are no UTF-8 become U+FFFD; ids past the vocabulary stand for nothing.

        Raises InvalidRequestError for a negative id.
        """
        if any(token_id < 0 for token_id in ids):
            raise InvalidRequestError("token ids must be >= 0.", param="tokens")
        show = self._shown_bytes(skip_special_tokens)
        data = b"".join(map(show, ids))
        if self._parts.strips_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes a token stands for: perhaps a part of a character, for a special token its spelling."""
        return self._parts.vocabulary.token_bytes(token_id)

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids of the special tokens, which are no text."""
        return self._parts.vocabulary.special

    def stream(
        self,
        *,
        skip_special_tokens: bool = True,
        continues_text: bool = False,
        shown: Collection[str] = (),
    ) -> IncrementalDetokenizer:
        """Decodes an answer as it grows; the result equals ``decode`` of all its ids.

        Args:
            continues_text: the answer goes on a text (a completion, not a turn of a chat), so a space at its beginning
                is kept. Matters only for vocabularies that put a space in front of every text.
            shown: spellings of special tokens that are shown all the same, for those who read an answer's structure.
        """
        strip = self._parts.strips_space and not continues_text
        show = self._shown_bytes(skip_special_tokens)
        if shown and skip_special_tokens:
            show = self._with_special(frozenset(text.encode() for text in shown))
        return IncrementalDetokenizer(show, strip_space=strip)

    def _with_special(self, shown: frozenset[bytes]) -> Callable[[int], bytes]:
        vocabulary = self._parts.vocabulary

        def show(token_id: int) -> bytes:
            data = vocabulary.token_bytes(token_id)
            return data if token_id not in vocabulary.special or data in shown else b""

        return show

    def _shown_bytes(self, skip_special_tokens: bool) -> Callable[[int], bytes]:
        vocabulary = self._parts.vocabulary
        return vocabulary.text_bytes if skip_special_tokens else vocabulary.token_bytes

    # Chats

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    @property
    def chat_templates(self) -> tuple[str, ...]:
        """The sources of the model's chat templates."""
        return tuple(template.source for template in self._templates.values())

    def render_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt as text, to look at. To encode a chat use :meth:`encode_chat`: this text no longer tells special
        tokens from the same letters typed by a user.

        Args:
            messages: objects with ``role`` and ``content`` (a string, or a list of parts of type "text").
            add_generation_prompt: end with the beginning of an assistant's turn.
            continue_final_message: end with the final message's last word, for the model to go on with it (chat prefix
                completion); no generation prompt then.
            tools: tool descriptions, for templates that know tools.
            template_kwargs: further template variables (``enable_thinking``).

        Raises InvalidRequestError for malformed messages, ChatTemplateError where the template fails or is missing.
        """
        text, marker = self._render(
            messages, add_generation_prompt, continue_final_message, tools, template_kwargs or {}
        )
        return text.replace(marker, "")

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a chat. Special tokens come from the template alone, never from the words of a message.

        No BOS is added: a template that wants one writes it. Arguments and errors as in :meth:`render_chat`.
        """
        text, marker = self._render(
            messages, add_generation_prompt, continue_final_message, tools, template_kwargs or {}
        )
        pieces = (piece if isinstance(piece, int) else piece.replace(marker, "") for piece in self._special.split(text))
        return self._encode_pieces(piece for piece in pieces if piece != "")

    def _render(
        self,
        messages: Sequence[Mapping[str, Any]],
        add_generation_prompt: bool,
        continue_final_message: bool,
        tools: Sequence[Mapping[str, Any]] | None,
        template_kwargs: Mapping[str, Any],
    ) -> tuple[str, str]:
        """The rendered text with markers in users' spellings of special tokens, and the marker (see chat.py)."""
        template = self._template(bool(tools))
        chat = prepare_chat(
            messages,
            tools,
            self._special,
            continue_final_message=continue_final_message,
            template=template.source,
            variables=template_kwargs,
        )
        check_unicode([chat.messages, chat.tools, chat.variables])
        text = template.render(
            {
                **self._parts.variables,
                **chat.variables,
                "messages": chat.messages,
                "tools": chat.tools,
                "add_generation_prompt": add_generation_prompt and not continue_final_message,
            }
        )
        if continue_final_message:
            text, found, _ = text.rpartition(chat.end)
            if not found:
                raise ChatTemplateError("the model's chat template does not show the final message: it cannot go on.")
        return text, chat.marker

    def _template(self, with_tools: bool) -> ChatTemplate:
        name = "tool_use" if with_tools and "tool_use" in self._templates else "default"
        if name not in self._templates:
            raise ChatTemplateError(
                "this model has no chat template: send a prompt of your own to /v1/completions instead."
            )
        return self._templates[name]


def check_unicode(value: Any, place: str = "text") -> None:
    """Raises InvalidRequestError if a string in ``value`` (a string, or lists and mappings of them) holds a lone
    surrogate, which no UTF-8 can carry."""
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequestError(
                f"the {place} holds a lone surrogate (U+{ord(value[error.start]):04X} at character {error.start}), "
                "which is not valid Unicode; send valid UTF-8.",
                code="invalid_unicode",
            ) from None
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_unicode(key, place)
            check_unicode(item, place)
    elif isinstance(value, (list, tuple)):
        for item in value:
            check_unicode(item, place)
