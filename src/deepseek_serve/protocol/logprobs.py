"""Log-probabilities in the two shapes of the API."""

from __future__ import annotations

from collections.abc import Iterable

from deepseek.runtime.output import LogprobEntry, TextDelta, TopLogprob
from deepseek_serve.protocol.responses import ContentLogprob, TextLogprobs
from deepseek_serve.protocol.responses import TopLogprob as TopLogprobBody


def chat_logprobs(entries: Iterable[LogprobEntry]) -> list[ContentLogprob]:
    """One entry per token; ``bytes`` is exact where ``token`` had to replace incomplete characters."""
    return [
        ContentLogprob(
            entry.token,
            entry.logprob,
            list(entry.bytes),
            [TopLogprobBody(top.token, top.logprob, list(top.bytes)) for top in entry.top],
        )
        for entry in entries
    ]


class TextLogprobsBuilder:
    """Collects the parallel lists of ``/v1/completions`` for one choice.

    ``text_offset`` counts characters of the answer. A token that holds only a part of a character is placed where
    the delta that completed the character begins.
    """

    def __init__(self) -> None:
        self._offset = 0
        self.total = TextLogprobs([], [], [], [])

    def add(self, delta: TextDelta) -> TextLogprobs | None:
        """Append ``delta``'s tokens; returns them alone, or None if it has none."""
        part = TextLogprobs([], [], [], [])
        end = self._offset + len(delta.text)
        for entry in delta.logprobs:
            part.tokens.append(_name(entry))
            part.token_logprobs.append(entry.logprob)
            part.top_logprobs.append({_name(top): top.logprob for top in entry.top})
            part.text_offset.append(min(self._offset, end))
            self._offset += len(entry.token)
        self._offset = end
        for field in part.__struct_fields__:
            getattr(self.total, field).extend(getattr(part, field))
        return part if part.tokens else None


def _name(entry: LogprobEntry | TopLogprob) -> str:
    """The token's text; the escaped bytes where it is no text of its own, so that names stay distinct."""
    try:
        return entry.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in entry.bytes)
