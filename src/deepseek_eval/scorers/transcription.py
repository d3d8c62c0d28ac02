"""Texts that should repeat another word by word: transcripts, readings of images, copies."""

from __future__ import annotations

import unicodedata

from deepseek_eval.metrics import mean
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.task import Item, Metric, Output, Score, Scorer

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
        found = {"cer": jiwer.process_characters(theirs.replace(" ", ""), ours.replace(" ", ""))}
        if words:
            found["wer"] = jiwer.process_words(theirs, ours)
        errors = {name: made.substitutions + made.deletions + made.insertions for name, made in found.items()}
        lengths = {name: made.hits + made.substitutions + made.deletions for name, made in found.items()}
        return Score(
            statistics={name: (float(errors[name]), float(lengths[name])) for name in found},
            answer=text,
            explanation=", ".join(f"{errors[name]} errors to {lengths[name]} ({name})" for name in reversed(found)),
            refused=is_refusal(text),
            expected=item.target,
        )

    return score
