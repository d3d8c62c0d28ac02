"""Lists whose most frequent words are asked for: RULER's common words and frequent words.

RULER makes one list of a whole text. Here a text has several, each as long as RULER's shortest, so that one prefill
serves several questions, small models have a chance, and every depth of a long text is read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from deepseek.benchmark.recall.documents import Document, Frame, Hidden, Question, fill
from deepseek.benchmark.recall.passages import sentences
from deepseek.benchmark.recall.words import NOUNS, SYLLABLES

TASKS = ("common-words", "frequent-words")
LIST_TOKENS = 4096
"""A list takes about as many, or what there is."""
COMMON, COMMON_TIMES, OTHER_TIMES = 10, 30, 3
"""Common words, how often each is in a list, and each other word, as in RULER; short lists have less of each."""
FREQUENT = 3
"""Words that "frequent words" asks for."""
_FILLED = 0.85
"""Share of a text that lists may take; what is left is filled with sentences."""
_ANSWER_TOKENS = {"common-words": 96, "frequent-words": 48}


def aggregation_document(
    name: str, language: str, length: int, seed: str, frame: Frame, *, tasks: Sequence[str] = TASKS, limit: int
) -> Document:
    """A text with up to ``limit`` lists for each of ``tasks``, as many as are of a fair length.

    Raises BenchmarkError if ``length`` has no room for one.
    """
    random = Random(f"aggregation/{language}/{length}/{seed}")
    kinds = [task for task in TASKS if task in tasks]
    count = max(1, min(limit, int(length * _FILLED) // (LIST_TOKENS * len(kinds))))
    # The questions' length does not depend on what the lists hold, but for the names of the lists.
    titles = [_PHRASES[language]["title"].format(_LABELS[index]) for index in range(count * len(kinds))]
    order = random.sample(range(len(titles)), len(titles))
    asked = [(kinds[place % len(kinds)], titles[place]) for place in order]
    blank = [_question(language, task, title, ("",), 0.0) for task, title in asked]
    room = frame.room(blank, length)
    each = min(LIST_TOKENS, int(room * _FILLED) // len(asked))
    hidden, questions = [], []
    for task, title in asked:
        text, answers, chance = (_common if task == "common-words" else _frequent)(
            language, title, each, lambda text: len(frame.encode(text + "\n")), random
        )
        hidden.append(Hidden(text))
        questions.append(_question(language, task, title, answers, chance))
    tokens = fill(hidden, sentences(language, f"{length}/{seed}"), room, frame, random)
    return Document(name, language, length, tokens, tuple(questions))


def _question(language: str, task: str, title: str, answers: tuple[str, ...], chance: float) -> Question:
    count = COMMON if task == "common-words" else FREQUENT
    text = _PHRASES[language][task].format(title, count)
    return Question(task, text, answers, True, chance, _ANSWER_TOKENS[task])


Listed = tuple[str, tuple[str, ...], float]
"""A list, its most frequent words, and the expected score of words taken from it blindly."""


def _common(language: str, title: str, tokens: int, measure: Callable[[str], int], random: Random) -> Listed:
    """Some words many times and all others a few times, in random order."""
    words = random.sample(NOUNS[language], len(NOUNS[language]))
    common, others = words[:COMMON], words[COMMON:]
    times = max(3, min(COMMON_TIMES, tokens // 128))
    other_times = min(OTHER_TIMES, times // 3)

    def listed(distinct: int) -> str:
        drawn = common * times + [word for word in others[:distinct] for _ in range(other_times)]
        return _numbered(language, title, Random(distinct).sample(drawn, len(drawn)))

    distinct = _largest(listed, len(others), tokens, measure)
    return listed(distinct), tuple(common), COMMON / (COMMON + distinct)


def _frequent(language: str, title: str, tokens: int, measure: Callable[[str], int], random: Random) -> Listed:
    """Made-up words, the k-th of them as often as a zeta distribution with exponent 2 has it; RULER's commonest, which
    it hides behind dots, is left out."""
    syllables = SYLLABLES[language]
    words = list(dict.fromkeys("".join(random.choices(syllables, k=3)) for _ in range(256)))

    def listed(size: int) -> str:
        drawn = [word for rank, word in enumerate(words, 2) for _ in range(round(size / rank**2))]
        return _numbered(language, title, Random(size).sample(drawn, len(drawn)))

    size = _largest(listed, 8 * tokens, tokens, measure)
    distinct = sum(round(size / rank**2) > 0 for rank in range(2, 2 + len(words)))
    return listed(size), tuple(words[:FREQUENT]), FREQUENT / distinct


def _numbered(language: str, title: str, words: Sequence[str]) -> str:
    mark = _PHRASES[language]["mark"]
    return f"{title}{mark}" + " ".join(f"{index}. {word}" for index, word in enumerate(words, 1))


def _largest(make: Callable[[int], str], most: int, tokens: int, measure: Callable[[str], int]) -> int:
    """The greatest size whose text takes at most ``tokens``; 0 if none does, which :func:`fill` will refuse."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if measure(make(middle)) <= tokens:
            low = middle
        else:
            high = middle - 1
    return low


_LABELS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_PHRASES = {
    "en": {
        "title": "List {0}",
        "mark": ": ",
        "common-words": (
            "What are the {1} most common words in {0} of the text above? Answer with the {1} words only."
        ),
        "frequent-words": (
            "The words of {0} in the text above are made up. What are the {1} most frequent ones in that list? Answer "
            "with the {1} words only."
        ),
    },
    "zh": {
        "title": "列表{0}",
        "mark": "：",
        "common-words": "上文{0}中出现次数最多的{1}个词是哪些？只回答这{1}个词。",
        "frequent-words": "上文{0}中的词都是编造的。其中出现次数最多的{1}个词是哪些？只回答这{1}个词。",
    },
}
