"""A text of exactly so many tokens, with things hidden in it, and questions about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from random import Random

from deepseek.errors import BenchmarkError
from deepseek.tokenizer.tokenizer import Tokenizer

Encode = Callable[[str], list[int]]
_CONTENT = "@@document@@"


@dataclass(frozen=True)
class Question:
    """One question about a text.

    Attributes:
        task: the kind.
        text: what is asked, and how to answer.
        answers: what a right answer names.
        every: an answer must name all of them, and is as right as the part of them that it names; else any one of them
            is right, and so is, in part, an answer that shares words with one.
        chance: expected score of an answer that names things of the right kind from the text, blindly.
        max_tokens: of the answer.
    """

    task: str
    text: str
    answers: tuple[str, ...]
    every: bool
    chance: float
    max_tokens: int


@dataclass(frozen=True)
class Document:
    """A text and its questions.

    Attributes:
        name: unique in a run.
        language: ``en`` or ``zh``.
        length: tokens of context that the longest prompt and its answer take.
        tokens: the text.
        questions: about it.
    """

    name: str
    language: str
    length: int
    tokens: tuple[int, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True)
class Hidden:
    """Something to be put into a text. Those of one ``chain`` keep their order."""

    text: str
    chain: int | None = None


@dataclass(frozen=True)
class Frame:
    """The model's chat template around a user's message, as token ids."""

    head: tuple[int, ...]
    tail: tuple[int, ...]
    encode: Encode

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Frame:
        """The template's tokens; a model without a template gets the bare text."""
        encode = tokenizer.encode_continuation
        if not tokenizer.has_chat_template:
            return cls(tuple(tokenizer.encode("")), (), encode)
        text = tokenizer.render_chat([{"role": "user", "content": _CONTENT}])
        head, found, tail = text.partition(_CONTENT)
        if not found:
            raise BenchmarkError("the model's chat template does not show a user's message as it is.")
        ids = [tokenizer.encode(part, add_special_tokens=False, parse_special=True) for part in (head, tail)]
        return cls(tuple(ids[0]), tuple(ids[1]), encode)

    def question(self, question: Question) -> list[int]:
        """What stands behind the text."""
        return [*self.encode("\n\n" + question.text), *self.tail]

    def prompt(self, document: Document, question: Question) -> list[int]:
        """The whole prompt; those of one document are alike up to its end."""
        return [*self.head, *document.tokens, *self.question(question)]

    def room(self, questions: Sequence[Question], length: int) -> int:
        """Tokens that a text may have so that every question and its answer fit into ``length``."""
        return length - len(self.head) - max(len(self.question(one)) + one.max_tokens for one in questions)


def fill(hidden: Sequence[Hidden], filler: Iterator[str], tokens: int, frame: Frame, random: Random) -> tuple[int, ...]:
    """A text of exactly ``tokens`` tokens: ``filler``, with what is ``hidden`` spread over all depths.

    The text is cut into as many equal stretches as there are things to hide. Each stretch gets one, at a place drawn
    uniformly among the gaps of its filler; who gets which is drawn too. The text begins inside of a piece, cut to fit.

    Raises BenchmarkError when what is hidden does not leave room for a tenth of filler.
    """
    inside = [frame.encode(one.text + "\n") for one in _mixed(hidden, random)]
    room = tokens - sum(map(len, inside))
    if room < max(1, tokens // 10):
        raise BenchmarkError(
            f"a text of {tokens} tokens is too short for {len(inside)} things to be found in it, which take "
            f"{tokens - room} tokens: choose a greater length or a smaller limit."
        )
    pieces: list[list[int]] = []
    missing = room
    while missing > 0:
        pieces.append(frame.encode(next(filler) + "\n")[-missing:])
        missing -= len(pieces[-1])
    pieces.insert(0, pieces.pop())
    places = [int((index + random.random()) * (len(pieces) + 1) / len(inside)) for index in range(len(inside))]
    ids: list[int] = []
    waiting = 0
    for index in range(len(pieces) + 1):
        while waiting < len(inside) and places[waiting] <= index:
            ids += inside[waiting]
            waiting += 1
        if index < len(pieces):
            ids += pieces[index]
    assert len(ids) == tokens and waiting == len(inside)
    return tuple(ids)


def _mixed(hidden: Sequence[Hidden], random: Random) -> list[Hidden]:
    """In random order, but for chains: their parts share out the places they got in order."""
    mixed = random.sample(hidden, len(hidden))
    for chain in sorted({one.chain for one in mixed if one.chain is not None}):
        places = [index for index, one in enumerate(mixed) if one.chain == chain]
        for index, one in zip(places, (one for one in hidden if one.chain == chain), strict=True):
            mixed[index] = one
    return mixed
