"""Real text: passages with questions, from a folder of data, or sentences made up from a seed where there is none."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

from deepseek.benchmark.recall.words import ADJECTIVES, NOUNS
from deepseek.errors import BenchmarkError, ConfigurationError

DATA_VARIABLE = "DEEPSEEK_BENCH_DATA"
FILES = {
    "en": ("xquad/xquad.en.json.gz",),
    "zh": ("xquad/xquad.zh.json.gz", "cmrc2018/cmrc2018_dev.json.gz"),
}
"""XQuAD (Artetxe et al. 2020, arXiv:1910.11856) and CMRC 2018 (Cui et al. 2019, arXiv:1810.07366), where the folder has
them."""


@dataclass(frozen=True)
class Passage:
    """A paragraph of an encyclopaedia.

    Attributes:
        text: on one line.
        questions: each with the answers that count as right, which are spans of the text.
    """

    text: str
    questions: tuple[tuple[str, tuple[str, ...]], ...]


def find_data(folder: Path | None) -> Path | None:
    """The folder of real text: the given one, or the environment's, or None.

    Raises ConfigurationError if it is named and not there.
    """
    named = folder or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if named is not None and not named.is_dir():
        raise ConfigurationError(f"the data folder {named} does not exist. Choose another, or none: text is made then.")
    return named


def read_passages(folder: Path | None, language: str) -> list[Passage]:
    """All passages of a language, in the order of their files; none where the folder has none.

    Raises BenchmarkError for a damaged file.
    """
    if folder is None:
        return []
    return [passage for name in FILES[language] if (folder / name).is_file() for passage in _read(folder / name)]


def why_no_passages(folder: Path | None, language: str) -> str:
    """What to say where :func:`read_passages` found nothing."""
    if folder is None:
        return f"there is no folder of real text: name one with --data or {DATA_VARIABLE}"
    return f"{folder} has none of {', '.join(FILES[language])}"


def _read(path: Path) -> Iterator[Passage]:
    """The paragraphs of a file in SQuAD's form."""
    try:
        articles = json.loads(gzip.decompress(path.read_bytes()))["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                questions = tuple(
                    (str(asked["question"]), tuple(dict.fromkeys(str(answer["text"]) for answer in asked["answers"])))
                    for asked in paragraph["qas"]
                    if asked["answers"]
                )
                yield Passage(" ".join(str(paragraph["context"]).split()), questions)
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{path} is not a file of passages and questions: {error!r}.") from error


def sentences(language: str, seed: str) -> Iterator[str]:
    """Lines of made-up text without a number in them, without an end. Equal seeds, equal lines."""
    random = Random(f"sentences/{language}/{seed}")
    while True:
        yield _paragraph(language, random)


def _paragraph(language: str, random: Random) -> str:
    space = " " if language == "en" else ""
    return space.join(_sentence(language, random) for _ in range(random.randint(2, 4)))


def _sentence(language: str, random: Random) -> str:
    nouns = random.sample(NOUNS[language], 4)
    qualities = random.sample(ADJECTIVES[language], 3)
    template = random.choice(_TEMPLATES[language])
    return template.format(*nouns, *qualities)


_TEMPLATES = {
    "en": (
        "The {4} {0} stood behind the {1}, and nobody in the {5} {2} had noticed the {3} yet.",
        "When the {0} reached the {4} {1}, it was already too late for the {2} and the {5} {3}.",
        "People who live near the {4} {0} say that this {5} {1} is worth more than any {2} or {3}.",
        "She bought the {4} {0} for the {1}, but the {5} {2} never fitted next to the {6} {3}.",
        "There was hardly any talk about the {0} that year; the {4} {1} and the {5} {2} mattered more than the {3}.",
        "Before the {4} {0} was built, one could walk from the {1} to the {5} {2} without seeing one {3}.",
        "He wrote a letter about the {4} {0}, praised the {5} {1}, and forgot both the {2} and the {6} {3}.",
        "The {4} {0} does not need a {1}, as the old saying goes, but every {5} {2} needs its {3}.",
    ),
    "zh": (
        "{4}的{0}立在{1}后面，{5}的{2}里还没有人注意到{3}。",
        "等{0}来到{4}的{1}时，{2}和{5}的{3}早已错过了时机。",
        "住在{4}的{0}附近的人常说，{5}的{1}比任何{2}或{3}都珍贵。",
        "她为{1}买了一件{4}的{0}，可是{5}的{2}怎么也放不进{6}的{3}旁边。",
        "那一年很少有人谈起{0}，大家更在意{4}的{1}、{5}的{2}，而不是{3}。",
        "在{4}的{0}建成以前，从{1}走到{5}的{2}，一路上看不到一个{3}。",
        "他写信谈到{4}的{0}，称赞了{5}的{1}，却忘记了{2}和{6}的{3}。",
        "老话说，{4}的{0}用不着{1}，但每个{5}的{2}都离不开{3}。",
    ),
}
