"""Generated text against references: reading, translation, summaries."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from deepseek_eval.metrics import bleu, chrf, chrf_counts, mean, one
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.scorers.text import best, first_line, tokens
from deepseek_eval.task import Item, Metric, Output, Score, Scorer

if TYPE_CHECKING:
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

TOKENIZERS = {"en": "13a", "zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
"""sacrebleu's tokenizer for a language of references. Scores with another one do not compare."""
_ROUGE = ("rouge1", "rouge2", "rougeL")

READING_METRICS: tuple[Metric, ...] = (mean("f1"), mean("exact_match"))
ROUGE_METRICS: tuple[Metric, ...] = tuple(mean(name) for name in ("rougeL", "rouge1", "rouge2"))
TRANSLATION_METRICS: tuple[Metric, ...] = (chrf(), bleu())


def reading() -> Scorer:
    """A short answer, of which the first line counts. ``target``: all right answers.

    Metrics: ``f1``: overlap of words, or of characters in Chinese and Japanese, with the nearest right answer
    (Rajpurkar et al. 2016; Cui et al. 2019). ``exact_match``: when normalized.
    """

    def score(item: Item, output: Output) -> Score:
        answer = first_line(output.samples[0].text)
        overlap, same = best(answer, item.target)
        return Score(
            statistics={"f1": one(overlap), "exact_match": one(same)},
            answer=answer,
            explanation=f"F1 {overlap:.2f} with {' / '.join(dict.fromkeys(item.target))!r}",
            refused=overlap == 0 and is_refusal(answer),
            expected=" / ".join(dict.fromkeys(item.target)),
        )

    return score


def translation(language: str) -> Scorer:
    """A translation into ``language``. ``target``: the reference. Metrics: corpus ``chrf`` and ``bleu`` (sacrebleu)."""

    def score(item: Item, output: Output) -> Score:
        answer = first_line(output.samples[0].text)
        return Score(
            statistics={
                "bleu": bleu_counts(answer, item.target, language),
                "chrf": chrf_counts(answer, item.target),
            },
            answer=answer,
            explanation=f"sentence chrF {_one_chrf(answer, item.target):.1f} with {item.target!r}",
            refused=is_refusal(answer),
            expected=item.target,
        )

    return score


def _one_chrf(answer: str, reference: str) -> float:
    import numpy as np

    return float(chrf().of_sums(np.array(chrf_counts(answer, reference))))


def bleu_counts(answer: str, reference: str, language: str) -> tuple[float, ...]:
    """What an answer adds to :func:`deepseek_eval.metrics.bleu`."""
    answer = answer.encode("utf-8", "replace").decode()  # MeCab takes no lone surrogates
    found = _bleu(TOKENIZERS[language]).corpus_score([answer], [[reference]])
    return (float(found.sys_len), float(found.ref_len), *map(float, found.counts), *map(float, found.totals))


@cache
def _bleu(tokenizer: str) -> BLEU:
    from sacrebleu.metrics.bleu import BLEU

    return BLEU(tokenize=tokenizer)


def summary() -> Scorer:
    """A short text against one reference. ``target``: it. Metrics: F1 of ROUGE-1, -2 and -L (Lin 2004), without
    stemming, over words or over Chinese and Japanese characters."""

    def score(item: Item, output: Output) -> Score:
        answer = first_line(output.samples[0].text)
        found = _rouge().score(item.target, answer)
        return Score(
            statistics={name: one(found[name].fmeasure) for name in _ROUGE},
            answer=answer,
            explanation=f"ROUGE-L {found['rougeL'].fmeasure:.2f} with {item.target!r}",
            refused=is_refusal(answer),
            expected=item.target,
        )

    return score


class _Tokenizer:
    """What rouge-score asks for; its own drops all letters that are not Latin."""

    def tokenize(self, text: str) -> list[str]:
        return tokens(text)


@cache
def _rouge() -> RougeScorer:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(list(_ROUGE), tokenizer=_Tokenizer())
