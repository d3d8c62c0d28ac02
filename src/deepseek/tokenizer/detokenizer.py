"""Ids back to text, one at a time: nothing is shown before its characters are complete."""

from __future__ import annotations

import codecs
from collections.abc import Callable


class IncrementalDetokenizer:
    """Text of a growing answer. The pushed texts and ``finish()`` together equal ``Tokenizer.decode`` of all ids.

    Bytes of an unfinished UTF-8 character wait for the rest (at most three), so a push costs as much as its token.

    Args:
        token_bytes: id -> the bytes to show for it (empty for a token that is not shown).
        strip_space: drop one space at the very beginning (the SentencePiece rule: it was added by the encoder).
    """

    def __init__(self, token_bytes: Callable[[int], bytes], *, strip_space: bool = False) -> None:
        self._token_bytes = token_bytes
        self._strip_space = strip_space
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    @property
    def pending(self) -> bool:
        """Whether the last character is incomplete."""
        return bool(self._decoder.getstate()[0])

    def push(self, token_id: int) -> str:
        """The text that became complete with this token; often empty inside a character of several tokens."""
        data = self._token_bytes(token_id)
        if not data:
            return ""
        if self._strip_space:
            self._strip_space = False
            data = data.removeprefix(b" ")
        return self._decoder.decode(data)

    def finish(self) -> str:
        """What remains: U+FFFD for a character that was cut off, else nothing. Ready for a new text afterwards."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text
