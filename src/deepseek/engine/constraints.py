"""Keeping answers to their constraints: which tokens may come next, from llguidance's masks.

Compiling runs in a thread of its own, so that a large grammar does not stop the step loop. A mask is computed for a
constrained sequence's rows only; the others pay nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Seq
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from deepseek.constraints import Constraint
from deepseek.engine.grammar import compile_matcher, to_grammar, with_room
from deepseek.engine.json_limits import EmbeddedJsonPosition, JsonPosition, Wish, fulfils

if TYPE_CHECKING:
    from llguidance import LLMatcher

    from deepseek.tokenizer.tokenizer import Tokenizer

Bits = npt.NDArray[np.uint8]
"""A set of token ids: bit i % 8 of byte i // 8 is id i."""

Position = JsonPosition | EmbeddedJsonPosition

_CACHED = 32
_SHARES = 64  # sequences that share the lexer states of one compiled grammar; they only grow


class ConstraintError(Exception):
    """A constraint that cannot be kept to any further; the message is for the client."""


class TokenSet:
    """A vocabulary as llguidance wants it, and the sets of tokens that :class:`JsonPosition` wishes for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        from llguidance import LLTokenizer

        self._bytes = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        self.special = frozenset(self._bytes[token_id].decode("utf-8", "replace") for token_id in tokenizer.special_ids)
        ends = sorted(token_id for token_id in tokenizer.eos_token_ids if token_id < tokenizer.vocab_size)
        wrapper = _Vocabulary(tokenizer, self._bytes, ends[0] if ends else None)
        self.llguidance: Any = LLTokenizer(wrapper, eos_token=ends or None)  # type: ignore[arg-type]
        self._wishes: dict[Wish, Bits] = {}

    def token_bytes(self, token_id: int) -> bytes:
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def wished(self, wish: Wish) -> Bits:
        """The tokens that begin as ``wish`` says, computed when first asked for."""
        bits = self._wishes.get(wish)
        if bits is None:
            flags = np.fromiter((fulfils(token, wish) for token in self._bytes), np.bool_, len(self._bytes))
            bits = np.zeros(-(-self.llguidance.vocab_size // 32) * 4, np.uint8)
            packed = np.packbits(flags, bitorder="little")
            bits[: len(packed)] = packed
            self._wishes[wish] = bits
        return bits


class _Vocabulary:
    """What ``LLTokenizer`` asks a tokenizer for."""

    is_tokenizer_wrapper = True

    def __init__(self, tokenizer: Tokenizer, tokens: list[bytes], end: int | None) -> None:
        self.tokens = tokens
        self.eos_token_id = end
        self.bos_token_id = tokenizer.bos_token_id
        self.special_token_ids = sorted(tokenizer.special_ids)
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> list[int]:
        """Text that a grammar forces is encoded as the model would go on with it."""
        return self._tokenizer.encode_continuation(text)


class Matcher:
    """How far a sequence's answer has come in its grammar."""

    def __init__(self, tokens: TokenSet, matcher: LLMatcher, position: Position | None) -> None:
        self._tokens = tokens
        self._matcher = matcher
        self._position = position

    @property
    def finished(self) -> bool:
        """Nothing but an end token may follow."""
        return self._matcher.is_stopped()

    def check(self) -> None:
        """Raise :class:`ConstraintError` if a step went over its limits."""
        if self._matcher.is_error():
            raise ConstraintError(
                "the response format is too complex to be followed here; simplify it "
                f"({self._matcher.get_error().splitlines()[0][:200]})."
            )

    def accept(self, token_id: int) -> None:
        """Go on behind a token that was chosen among the allowed ones. Raises :class:`ConstraintError` for another one:
        nothing was allowed."""
        if not self._matcher.consume_token(token_id):
            self.check()
        if self._position is not None:
            self._position.push(self._tokens.token_bytes(token_id))

    def acceptable(self, draft: Seq[int]) -> int:
        """How many of the draft's tokens, from the first on, the grammar allows."""
        return self._matcher.validate_tokens(list(draft))

    def allowed(self, ahead: Seq[int]) -> Bits | None:
        """The tokens that may follow the answer with ``ahead`` behind it; None if ``ahead`` itself is not allowed."""
        taken = self._matcher.try_consume_tokens(list(ahead)) if ahead else 0
        try:
            if taken < len(ahead):
                return None
            bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        finally:
            if taken:
                self._matcher.rollback(taken)
        return self._within_limits(bits, ahead)

    def _within_limits(self, bits: Bits, ahead: Seq[int]) -> Bits:
        position = self._position
        if position is None:
            return bits
        if ahead:
            position = position.copy()
            position.push(b"".join(map(self._tokens.token_bytes, ahead)))
        for wish in position.wishes():
            wanted = self._tokens.wished(wish)
            wished = bits[: len(wanted)] & wanted  # llguidance's mask has a word more where 32 divides the vocabulary
            if wished.any():
                return wished
        return bits


@dataclass
class _Compiled:
    """A compiled grammar at its beginning, and how many sequences copied it."""

    matcher: LLMatcher
    position: Position | None
    copies: int = 0


class Constraints:
    """Compiles constraints for one vocabulary.

    Args:
        tokenizer: of the model. Its vocabulary is read in the background.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="constraints")
        self._tokens: Future[TokenSet] = self._executor.submit(TokenSet, tokenizer)
        self._compiled: OrderedDict[Constraint, _Compiled] = OrderedDict()

    def matcher(self, constraint: Constraint) -> Future[Matcher]:
        """A matcher for a new sequence. The future fails with InvalidRequestError for a constraint that is malformed or
        too large."""
        return self._executor.submit(self._matcher, constraint)

    def close(self) -> None:
        """Drop what waits to be compiled."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _matcher(self, constraint: Constraint) -> Matcher:
        tokens = self._tokens.result()
        compiled = self._compiled.pop(constraint, None)
        if compiled is None or compiled.copies >= _SHARES:
            compiled = with_room(lambda: _compile(tokens, constraint))
        self._compiled[constraint] = compiled
        if len(self._compiled) > _CACHED:
            self._compiled.popitem(last=False)
        compiled.copies += 1
        position = compiled.position.copy() if compiled.position is not None else None
        return Matcher(tokens, compiled.matcher.deep_copy(), position)


def _compile(tokens: TokenSet, constraint: Constraint) -> _Compiled:
    grammar = to_grammar(constraint, tokens.special)
    matcher = compile_matcher(tokens.llguidance, grammar.text)
    return _Compiled(matcher, grammar.start)
