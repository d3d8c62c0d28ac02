"""Instructions that a program can check, after the idea of IFEval (Zhou et al. 2023, arXiv:2311.07911).

The instructions, their wording and the checks are our own; scores do not compare with IFEval's.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from deepseek_eval.metrics import mean, one
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.scorers.structured import read_json
from deepseek_eval.scorers.text import tokens
from deepseek_eval.task import Item, Metric, Output, Score, Scorer

INSTRUCTION_METRICS: tuple[Metric, ...] = (
    mean("prompt_accuracy"),
    mean("instruction_accuracy"),
    mean("prompt_accuracy_loose"),
)
_BULLET = re.compile(r"^\s*[-*•・]\s+\S", re.MULTILINE)
_NUMBERED = re.compile(r"^\s*\d+\s*[.)．）、]\s*\S", re.MULTILINE)
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)|[。！？]")
_TITLE = re.compile(r"<<[^<>\n]+>>")

Check = Callable[[str, Any], bool]


def _words(text: str) -> int:
    return len(tokens(text))


def _sentences(text: str) -> int:
    return len(_SENTENCE_END.findall(text.strip()))


def _paragraphs(text: str) -> int:
    return sum(bool(part.strip()) for part in re.split(r"\n\s*\n", text))


def _times(text: str, word: str) -> int:
    """How often a word is there; not inside of a longer one where a script parts words with spaces."""
    edge = r"\b" if word.isascii() else ""
    return len(re.findall(edge + re.escape(word) + edge, text, re.IGNORECASE))


CHECKS: dict[str, Check] = {
    "words_at_most": lambda text, count: 0 < _words(text) <= count,
    "words_at_least": lambda text, count: _words(text) >= count,
    "characters_at_most": lambda text, count: 0 < len(re.sub(r"\s", "", text)) <= count,
    "sentences": lambda text, count: _sentences(text) == count,
    "paragraphs": lambda text, count: _paragraphs(text) == count,
    "bullets": lambda text, count: len(_BULLET.findall(text)) == count,
    "numbered": lambda text, count: len(_NUMBERED.findall(text)) == count,
    "contains": lambda text, word: _times(text, word) > 0,
    "contains_times": lambda text, pair: _times(text, pair[0]) == pair[1],
    "avoids": lambda text, word: bool(text.strip()) and not _times(text, word),
    "starts": lambda text, words: text.strip().casefold().startswith(words.casefold()),
    "ends": lambda text, words: text.strip().casefold().endswith(words.casefold()),
    "lowercase": lambda text, _: bool(text.strip()) and text == text.lower(),
    "uppercase": lambda text, _: bool(text.strip()) and text == text.upper(),
    "no_comma": lambda text, _: bool(text.strip()) and not set(",，、").intersection(text),
    "title": lambda text, _: _TITLE.search(text) is not None,
    "quoted": lambda text, _: re.fullmatch(r'["“「『].+["”」』]', text.strip(), re.DOTALL) is not None,
    "json_keys": lambda text, keys: (
        (found := read_json(text)) is not None and isinstance(found[0], dict) and set(found[0]) == set(keys)
    ),
    "one_of": lambda text, choices: text.strip().rstrip(".。") in choices,
    "script": lambda text, name: _in_script(text, name),
}
"""Name of an instruction -> (answer, argument) -> followed. Words are characters in Chinese and Japanese."""

_SCRIPTS = {
    "en": re.compile(r"[A-Za-z]"),
    "zh": re.compile(r"[\u4e00-\u9fff]"),
    "ja": re.compile(r"[\u3041-\u30ff]"),
    "ko": re.compile(r"[\uac00-\ud7a3]"),
}


def _in_script(text: str, language: str) -> bool:
    """At least half of the letters are of the language's script, for Japanese a quarter kana; Chinese has no kana."""
    letters = sum(char.isalpha() for char in text)
    own = len(_SCRIPTS[language].findall(text))
    if not letters or (language == "zh" and _SCRIPTS["ja"].search(text)):
        return False
    return own >= letters * (0.25 if language == "ja" else 0.5)


def loosened(text: str) -> list[str]:
    """The answer as it is, without emphasis, and without its first or last line: a greeting does not count then."""
    plain = text.replace("*", "")
    variants = []
    for one_of in (text, plain):
        lines = one_of.strip().split("\n")
        variants += [one_of, "\n".join(lines[1:]), "\n".join(lines[:-1])]
    return variants


def instructions() -> Scorer:
    """Whether all instructions are followed. ``target``: [[name of one of :data:`CHECKS`, its argument], ...].

    Metrics: ``prompt_accuracy``: all of them. ``instruction_accuracy``: share of all instructions.
    ``prompt_accuracy_loose``: all of them in one of the :func:`loosened` answers.
    """

    def score(item: Item, output: Output) -> Score:
        text = output.samples[0].text
        held = [CHECKS[name](text, argument) for name, argument in item.target]
        loose = any(
            all(CHECKS[name](variant, argument) for name, argument in item.target) for variant in loosened(text)
        )
        broken = [f"{name} {argument}" for (name, argument), fine in zip(item.target, held, strict=True) if not fine]
        return Score(
            statistics={
                "prompt_accuracy": one(all(held)),
                "instruction_accuracy": (float(sum(held)), float(len(held))),
                "prompt_accuracy_loose": one(loose),
            },
            answer=text,
            explanation="follows all" if not broken else "does not follow: " + "; ".join(broken),
            refused=is_refusal(text),
            expected="; ".join(f"{name} {argument}" for name, argument in item.target),
        )

    return score
