"""From the engine's tokens to what a client is shown: text, stop strings, log-probabilities."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import TYPE_CHECKING

import msgspec

from deepseek.engine.events import FinishReason, TokenEvent, TokenLogprobs
from deepseek.sampling import SamplingParams

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer


class TopLogprob(msgspec.Struct, frozen=True):
    """A token that could have stood here. ``token`` shows incomplete UTF-8 as U+FFFD; ``bytes`` is exact."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float


class LogprobEntry(msgspec.Struct, frozen=True):
    """The chosen token, and the likeliest ones, best first."""

    token_id: int
    token: str
    bytes: bytes
    logprob: float
    top: tuple[TopLogprob, ...]


class TextDelta(msgspec.Struct, frozen=True):
    """What to show after an event.

    Attributes:
        text: characters that are safe to show: complete, and no beginning of a stop string.
        token_ids: tokens whose text ends in what has been shown by now, and that were not in earlier deltas. The last
            delta has the end token too, if one ended the answer.
        logprobs: one entry per id in ``token_ids``, the end token excepted, if the request asked for them (the engine
            then sends them).
        token_ends: for each of ``token_ids`` the length of the answer's text up to its end; one more inside of a
            character.
        cached_tokens: prompt tokens found in the prefix cache; set in the first delta.
        finish_reason: set once, in the last delta. "stop" for a stop string, an end token or a stop id.
        stop_string: the stop string that ended the answer, None if something else did.
        error: a readable reason, with ``finish_reason`` "error".
    """

    text: str = ""
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[LogprobEntry, ...] = ()
    token_ends: tuple[int, ...] = ()
    cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_string: str | None = None
    error: str | None = None


class _StopString:
    """How much of a stop string the text ends with (Knuth, Morris, Pratt 1977); O(1) amortised per character."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.matched = 0
        self._borders = [0] * len(text)
        border = 0
        for i in range(1, len(text)):
            while border and text[i] != text[border]:
                border = self._borders[border - 1]
            border += text[i] == text[border]
            self._borders[i] = border

    def push(self, char: str) -> bool:
        """True if the text, with this character, ends with the whole stop string."""
        while self.matched and char != self.text[self.matched]:
            self.matched = self._borders[self.matched - 1]
        self.matched += char == self.text[self.matched]
        return self.matched == len(self.text)


class _Waiting(msgspec.Struct):
    """A token not yet handed out; its text is the characters [start, end) of the answer."""

    token_id: int
    start: int
    end: int
    logprobs: TokenLogprobs | None


class OutputAssembler:
    """Turns the events of one request into deltas.

    The answer ends where a stop string is first complete; of several that end with the same character the longest
    counts. The text is cut at the stop string's beginning, wherever the tokens' borders are. So the result does not
    depend on how text falls into tokens. Tokens that begin at or behind the cut are not handed out.

    Attributes:
        stopped: the answer has ended. If a stop string ended it the engine does not know: cancel the request there.
            Later events are ignored.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        params: SamplingParams,
        *,
        continues_text: bool = False,
        shown: Collection[str] = (),
    ) -> None:
        """``continues_text``: the answer goes on a prompt's text; ``shown``: special tokens that are part of the text.
        See ``Tokenizer.stream``."""
        self._tokenizer = tokenizer
        self._detokenizer = tokenizer.stream(continues_text=continues_text, shown=shown)
        self._stops = [_StopString(text) for text in params.stop]
        self._held = ""
        self._shown = 0  # characters handed out
        self._waiting: deque[_Waiting] = deque()
        self.stopped = False

    def push(self, event: TokenEvent) -> TextDelta:
        """The delta of one event; empty when all of its text has to wait."""
        if self.stopped:
            return TextDelta()
        text = self._text_of(event)
        if event.finish_reason is not None:
            text += self._detokenizer.finish()
        stop = self._extend(text)
        if stop is not None:
            delta = self._finish("stop", stop=stop)
        elif event.finish_reason is not None:
            delta = self._finish(event.finish_reason, error=event.error)
        else:
            hold = max((s.matched for s in self._stops), default=0)
            delta = self._release(len(self._held) - hold)
        return msgspec.structs.replace(delta, cached_tokens=event.cached_tokens) if event.cached_tokens else delta

    def _text_of(self, event: TokenEvent) -> str:
        """Characters that the event completes; notes which of the answer's characters are the token's."""
        if event.token_id is None:
            return ""
        start = self._shown + len(self._held)
        if event.stop_token:
            self._waiting.append(_Waiting(event.token_id, start, start, None))
            return ""
        text = self._detokenizer.push(event.token_id)
        end = start + len(text) + self._detokenizer.pending
        self._waiting.append(_Waiting(event.token_id, start, end, event.logprobs))
        return text

    def _extend(self, text: str) -> str | None:
        """Append to the held text. If that completes a stop string, cut before it and return it."""
        if not self._stops:
            self._held += text
            return None
        base = len(self._held)
        self._held += text
        for offset, char in enumerate(text, base + 1):
            complete = [stop.text for stop in self._stops if stop.push(char)]
            if complete:
                stop = max(complete, key=len)
                self._held = self._held[: offset - len(stop)]
                return stop
        return None

    def _finish(self, reason: FinishReason, *, stop: str | None = None, error: str | None = None) -> TextDelta:
        self.stopped = True
        if stop is not None:
            cut = self._shown + len(self._held)
            while self._waiting and self._waiting[-1].start >= cut:
                self._waiting.pop()
        delta = self._release(len(self._held), everything=True)
        return msgspec.structs.replace(delta, finish_reason=reason, stop_string=stop, error=error)

    def _release(self, count: int, *, everything: bool = False) -> TextDelta:
        """Hand out ``count`` characters of the held text and the tokens that end there."""
        text, self._held = self._held[:count], self._held[count:]
        self._shown += count
        tokens = []
        while self._waiting and (everything or self._waiting[0].end <= self._shown):
            tokens.append(self._waiting.popleft())
        return TextDelta(
            text=text,
            token_ids=tuple(token.token_id for token in tokens),
            logprobs=tuple(self._entry(token.token_id, token.logprobs) for token in tokens if token.logprobs),
            token_ends=tuple(token.end for token in tokens),
        )

    def _entry(self, token_id: int, given: TokenLogprobs) -> LogprobEntry:
        data = self._tokenizer.token_bytes(token_id)
        top = tuple(self._rival(rival, logprob) for rival, logprob in given.top)
        return LogprobEntry(token_id, data.decode("utf-8", "replace"), data, given.logprob, top)

    def _rival(self, token_id: int, logprob: float) -> TopLogprob:
        data = self._tokenizer.token_bytes(token_id)
        return TopLogprob(token_id, data.decode("utf-8", "replace"), data, logprob)
