"""What is hidden in a text to be found again: RULER's needles, keys, values and chains of variables, and passages.

One text holds them all, so that each kind is a distraction for the others, as the keys of "multi-key" are for each
other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from random import Random

from deepseek.benchmark.recall.documents import Document, Frame, Hidden, Question, fill
from deepseek.benchmark.recall.passages import Passage, sentences
from deepseek.benchmark.recall.words import ADJECTIVES, NOUNS

TASKS = ("needle", "multi-needle", "multi-key", "tracking", "passage")
VALUES = 4
"""Values of one key in "multi-needle", as in RULER's niah_multivalue."""
HOPS = 4
"""Assignments that follow the first one in a chain, as in RULER's variable tracking."""
DISTRACTORS = 2
"""Keys that nobody asks for, for each one that is asked for."""
_ANSWER_TOKENS = {"needle": 24, "multi-needle": 64, "multi-key": 24, "tracking": 48, "passage": 48}
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def retrieval_document(
    name: str,
    language: str,
    length: int,
    seed: str,
    frame: Frame,
    *,
    tasks: Sequence[str] = TASKS,
    limit: int,
    passages: Sequence[Passage] = (),
) -> Document:
    """A text for ``limit`` questions of each of ``tasks``; "passage" needs ``passages``, which also fill the text.

    Raises BenchmarkError if ``length`` has no room for them.
    """
    random = Random(f"retrieval/{language}/{length}/{seed}")
    drawn = random.sample(passages, len(passages))
    maker = _Maker(language, random, "\n".join(passage.text for passage in passages))
    asked = _unambiguous(drawn)[:limit] if "passage" in tasks else []
    makers = {
        "needle": maker.needles,
        "multi-needle": maker.values,
        "multi-key": maker.keys,
        "tracking": maker.chains,
    }
    for task, make in makers.items():
        if task in tasks:
            make(limit)
    maker.passages(asked)
    questioned = {passage.text for passage, _, _ in asked}
    others = (passage.text for passage in drawn if passage.text not in questioned)
    filler: Iterator[str] = chain(others, sentences(language, f"{length}/{seed}"))
    tokens = fill(maker.hidden, filler, frame.room(maker.questions, length), frame, random)
    return Document(name, language, length, tokens, tuple(maker.questions))


class _Maker:
    """Collects what is hidden and what is asked. Values, keys and names are drawn without repetition, and values that
    occur in the ``surroundings`` are not taken."""

    def __init__(self, language: str, random: Random, surroundings: str) -> None:
        self.hidden: list[Hidden] = []
        self.questions: list[Question] = []
        self._language = language
        self._say = _PHRASES[language]
        self._random = random
        self._used: set[str] = set()
        self._surroundings = surroundings
        nouns, adjectives = NOUNS[language], ADJECTIVES[language]
        joint = "-" if language == "en" else "的"
        self._keys = iter(random.sample([f"{a}{joint}{n}" for a in adjectives for n in nouns], 512))
        self._chains = 0

    def needles(self, count: int) -> None:
        """Single needles, each the only one that tells of its place."""
        codes = [self._number() for _ in range(count)]
        for code in codes:
            place = next(self._keys)
            self._hide("code", place, code)
            self._ask("needle", "code", place, (code,), 1 / count)

    def keys(self, count: int) -> None:
        """One value per key, among the keys that nobody asks for."""
        pairs = [(next(self._keys), self._number()) for _ in range(count * (1 + DISTRACTORS))]
        for key, value in pairs:
            self._hide("number", key, value)
        for key, value in pairs[:count]:
            self._ask("multi-key", "number", key, (value,), 1 / len(pairs))

    def values(self, count: int) -> None:
        """Several values of one key, all of which are asked for."""
        for _ in range(count):
            key = next(self._keys)
            values = tuple(self._number() for _ in range(VALUES))
            for value in values:
                self._hide("weight", key, value)
            self._ask("multi-needle", "weight", key, values, 1 / count)

    def chains(self, count: int) -> None:
        """Variables that get a value, the first as a number and each other one from the one before."""
        for _ in range(count):
            names = tuple(self._variable() for _ in range(HOPS + 1))
            value = self._number()
            word = self._say["variable"]
            sources = (value, *(f"{word} {name}" for name in names))
            for variable, source in zip(names, sources, strict=False):
                self._hide("assignment", variable, source, chain=self._chains)
            self._chains += 1
            self._ask("tracking", "assignment", value, names, 1 / count)

    def passages(self, chosen: Sequence[tuple[Passage, str, tuple[str, ...]]]) -> None:
        """One question about each passage. Its chance is not known; that of a blind span is next to nothing."""
        for passage, question, answers in chosen:
            self.hidden.append(Hidden(passage.text))
            text = self._say["passage"].format(question)
            self.questions.append(Question("passage", text, answers, False, 0.0, _ANSWER_TOKENS["passage"]))

    def _hide(self, kind: str, *fields: str, chain: int | None = None) -> None:
        self.hidden.append(Hidden(self._say[f"{kind} hidden"].format(*fields), chain))

    def _ask(self, task: str, kind: str, about: str, answers: tuple[str, ...], chance: float) -> None:
        text = self._say[f"{kind} asked"].format(about, len(answers))
        self.questions.append(Question(task, text, answers, True, chance, _ANSWER_TOKENS[task]))

    def _number(self) -> str:
        return self._unused(lambda: str(self._random.randint(1_000_000, 9_999_999)))

    def _variable(self) -> str:
        return self._unused(lambda: "".join(self._random.choices(_LETTERS, k=5)))

    def _unused(self, draw: Callable[[], str]) -> str:
        while (drawn := draw()) in self._used or drawn in self._surroundings:
            pass
        self._used.add(drawn)
        return drawn


def _unambiguous(passages: Sequence[Passage]) -> list[tuple[Passage, str, tuple[str, ...]]]:
    """Each passage with its first question whose answer it has exactly once; without those that have none."""
    chosen = []
    for passage in passages:
        for question, answers in passage.questions:
            if passage.text.count(answers[0]) == 1:
                chosen.append((passage, question, answers))
                break
    return chosen


_PHRASES = {
    "en": {
        "code hidden": "The access code of the {0} is {1}.",
        "code asked": "What is the access code of the {0}, according to the text above? Answer with the code only.",
        "number hidden": "One of the special magic numbers for {0} is: {1}.",
        "number asked": (
            "What is the special magic number for {0} mentioned in the text above? Answer with the number only."
        ),
        "weight hidden": "One of the recorded weights of the {0} is: {1} grams.",
        "weight asked": (
            "What are all the recorded weights of the {0} mentioned in the text above? There are {1} of them. Answer "
            "with the {1} numbers only."
        ),
        "variable": "VAR",
        "assignment hidden": "VAR {0} = {1}",
        "assignment asked": (
            "Find all variables that are assigned the value {0} in the text above, directly or through other "
            "variables. There are {1} of them. Answer with the {1} names only."
        ),
        "passage": "Answer this question from the text above, with a few words of the text and nothing else: {0}",
    },
    "zh": {
        "code hidden": "{0}的门禁密码是{1}。",
        "code asked": "根据上文，{0}的门禁密码是什么？只回答密码。",
        "number hidden": "关于“{0}”的特殊数字之一是：{1}。",
        "number asked": "上文提到的关于“{0}”的特殊数字是什么？只回答数字。",
        "weight hidden": "“{0}”的称重记录之一是：{1}克。",
        "weight asked": "上文提到的“{0}”的所有称重记录是哪些？共有{1}个。只回答这{1}个数字。",
        "variable": "变量",
        "assignment hidden": "变量 {0} = {1}",
        "assignment asked": ("请找出上文中直接或通过其他变量被赋值为 {0} 的所有变量。共有{1}个。只回答这{1}个变量名。"),
        "passage": "请根据上文，用原文中的几个词回答下面的问题，不要写别的：{0}",
    },
}
