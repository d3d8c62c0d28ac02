"""Texts that should repeat another word by word: transcripts, readings of images, copies."""

from __future__ import annotations

import unicodedata
from typing import TYPE_CHECKING

from deepseek_eval.metrics import mean
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.task import Item, Metric, Output, Score, Scorer

if TYPE_CHECKING:
    from jiwer import CharacterOutput, WordOutput

UNSPACED = ("zh", "ja", "th")
"""Languages that part no words, which have an error rate of characters alone."""
_APOSTROPHES = "'’ʼ"


def transcription_metrics(language: str) -> tuple[Metric, ...]:
    """Of :func:`transcription`, the main one first."""
    rates = ("cer",) if language in UNSPACED else ("wer", "cer")
    return tuple(mean(name, higher_is_better=False) for name in rates)


def plain(text: str) -> str:
    """Without case, width, punctuation and superfluous spaces, as error rates are counted."""
    text = unicodedata.normalize("NFKC", text).casefold()
    kept = ("" if char in _APOSTROPHES else " " if unicodedata.category(char)[0] == "P" else char for char in text)
    return " ".join("".join(kept).split())


def _counts(found: WordOutput | CharacterOutput) -> tuple[float, float]:
    """(errors, length of the reference)."""
    errors = found.substitutions + found.deletions + found.insertions
    return float(errors), float(found.hits + found.substitutions + found.deletions)


def transcription(language: str) -> Scorer:
    """A transcript in ``language``. ``target``: the reference.

    Metrics: ``wer`` and ``cer``: words, and characters without spaces, that were replaced, left out or put in, by those
    of the reference (jiwer), over all items; above 1 where an answer is long and wrong.
    """
    words = "wer" in {metric.name for metric in transcription_metrics(language)}

    def score(item: Item, output: Output) -> Score:
        import jiwer

        text = output.samples[0].text.strip()
        ours, theirs = plain(text), plain(item.target)
        statistics = {"cer": _counts(jiwer.process_characters(theirs.replace(" ", ""), ours.replace(" ", "")))}
        if words:
            statistics = {"wer": _counts(jiwer.process_words(theirs, ours)), **statistics}
        told = (f"{name}: {errors:.0f} errors to {length:.0f}" for name, (errors, length) in statistics.items())
        return Score(
            statistics=dict(statistics),
            answer=text,
            explanation="; ".join(told),
            refused=is_refusal(text),
            expected=item.target,
        )

    return score
