"""Conversations and texts -> token ids, and which of them are answers.

A model learns to continue a prompt as the server will send it: so the tokens before an answer must be those that the
chat template gives for the messages before it. The whole conversation is rendered once, and once more up to each
answer; the shorter rendering must be the beginning of the longer one. Where it is not, the template rewrites history
(some remove the thoughts of earlier turns), no one sequence of all turns is what the server will send, and the row is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

from deepseek.errors import ChatTemplateError, DataError, InvalidRequestError
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_tune.data.problems import EMPTY_ANSWER, ENCODING, TEMPLATE, TOO_LONG, RowError
from deepseek_tune.data.shapes import Chat, Text

OVER_LONG = ("truncate", "drop", "error")
SHORTENED = "prompts shortened to max_tokens"
CUT_IN_PIECES = "texts cut into pieces of max_tokens"
DROPPED = "rows left out, longer than max_tokens"


@dataclass(frozen=True, slots=True)
class Example:
    """A sequence to train on.

    Attributes:
        ids: token ids.
        answers: [start, end) of the tokens that the model must learn to say, in order, none from 0.
    """

    ids: list[int]
    answers: list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Encoded:
    """What became of one row: its examples, and a notice where it was not taken as it is."""

    examples: list[Example]
    notice: str = ""


class Encoder:
    """Makes examples.

    Args:
        tokenizer: the model's. Without a chat template, a prompt and its answer are joined as plain text.
        max_tokens: of one example.
        over_long: what becomes of longer ones. ``truncate`` cuts off the beginning of the prompt (and earlier turns);
            what does not fit without cutting the last answer is left out; a plain text is cut into pieces. ``drop``
            leaves all of them out, ``error`` makes them bad rows.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, over_long: str = "truncate") -> None:
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._over_long = over_long
        self._ends = tokenizer.eos_token_ids
        if not self._ends:
            raise DataError("the base model's tokenizer names no token that ends an answer: it cannot learn to stop.")

    def encode(self, sample: Chat | Text) -> Encoded:
        """The examples of a row. Raises RowError if there can be none."""
        try:
            if isinstance(sample, Text):
                example = self._text(sample.text)
            elif self._tokenizer.has_chat_template:
                example = self._chat(sample)
            else:
                example = self._pair(sample.messages)
        except InvalidRequestError as error:
            if error.code == "invalid_unicode":
                raise RowError(ENCODING, "its text is not Unicode: is the file saved as UTF-8?") from error
            raise RowError(TEMPLATE, str(error)) from error
        except ChatTemplateError as error:
            raise RowError(TEMPLATE, str(error)) from error
        return self._fit(example, cut=isinstance(sample, Text))

    def _text(self, text: str) -> Example:
        ids = [*self._tokenizer.encode(text), min(self._ends)]
        return Example(ids, [(1, len(ids))])

    def _pair(self, messages: Sequence[Mapping[str, Any]]) -> Example:
        """Prompt and answer of a model without a chat template; what was a system message stands before the prompt."""
        if any(message["role"] == "assistant" for message in messages[:-1]):
            raise RowError(TEMPLATE, "the base model has no chat template and cannot show several turns")
        texts = [message["content"] for message in messages]
        if not all(isinstance(text, str) for text in texts):
            raise RowError(TEMPLATE, "the base model has no chat template and can show text only")
        prompt = self._tokenizer.encode("\n\n".join(texts[:-1]))
        answer_ids = self._tokenizer.encode_continuation(texts[-1])
        ids = [*prompt, *answer_ids, min(self._ends)]
        if not prompt:
            raise RowError(EMPTY_ANSWER, "the prompt is empty")
        return Example(ids, [(len(prompt), len(ids))])

    def _chat(self, chat: Chat) -> Example:
        messages, tools = chat.messages, chat.tools
        whole = self._tokenizer.encode_chat(messages, add_generation_prompt=False, tools=tools)
        turns = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        starts = [self._start(whole, messages, turn, tools) for turn in turns]
        answers = []
        for turn, start, limit in zip(turns, starts, [*starts[1:], len(whole)], strict=True):
            end = next((at + 1 for at in range(start, limit) if whole[at] in self._ends), None)
            if end is None and limit == len(whole):  # the template leaves the end to the model
                whole = [*whole, min(self._ends)]
                end = len(whole)
            elif end is None:
                end = len(self._prefix(whole, messages[: turn + 1], tools, generation=False))
            if end <= start:
                raise RowError(EMPTY_ANSWER, f"message {turn + 1} (assistant) has no tokens")
            answers.append((start, end))
        return Example(whole[: answers[-1][1]], answers)

    def _start(
        self, whole: list[int], messages: Sequence[Mapping[str, Any]], turn: int, tools: list[Any] | None
    ) -> int:
        """Where the answer ``messages[turn]`` begins in ``whole``."""
        if not turn:
            raise RowError(TEMPLATE, "the conversation begins with an answer")
        return len(self._prefix(whole, messages[:turn], tools, generation=True))

    def _prefix(
        self, whole: list[int], messages: Sequence[Mapping[str, Any]], tools: list[Any] | None, *, generation: bool
    ) -> list[int]:
        """The beginning of ``whole`` that shows ``messages``. Raises RowError if it shows them otherwise."""
        ids = self._tokenizer.encode_chat(messages, add_generation_prompt=generation, tools=tools)
        if whole[: len(ids)] == ids:
            return ids
        common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(ids, whole, strict=False)))
        # The last token of a prompt may have grown together with the beginning of the answer.
        if common and common == len(ids) - 1 and self._grown(ids, whole):
            return ids[:common]
        raise RowError(
            TEMPLATE,
            f"the chat template shows the first {len(messages)} message(s) otherwise once more follow, so no sequence "
            "holds all turns as the model will see them. Make one row of each answer, with the messages before it",
        )

    def _grown(self, ids: list[int], whole: list[int]) -> bool:
        last = self._tokenizer.token_bytes(ids[-1])
        return self._tokenizer.token_bytes(whole[len(ids) - 1]).startswith(last)

    # Over-long examples

    def _fit(self, example: Example, *, cut: bool) -> Encoded:
        length, most = len(example.ids), self._max_tokens
        if length <= most:
            return Encoded([example])
        if self._over_long == "error":
            raise RowError(TOO_LONG, f"{length} tokens, and max_tokens is {most}")
        if self._over_long == "drop":
            return Encoded([], DROPPED)
        if cut:
            pieces = [example.ids[at : at + most] for at in range(0, length, most)]
            return Encoded([Example(ids, [(1, len(ids))]) for ids in pieces if len(ids) > 1], CUT_IN_PIECES)
        begin = length - most
        answers = [(start - begin, end - begin) for start, end in example.answers if start > begin]
        if not answers:
            return Encoded([], DROPPED)
        return Encoded([Example(example.ids[begin:], answers)], SHORTENED)
