"""Metrics over real data equal what their libraries say of it."""

from __future__ import annotations

import csv
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from deepseek_eval.datasets import Files, missing_files, open_all
from deepseek_eval.metrics import bleu, chrf, macro_f1, micro_f1, pearson, spearman
from deepseek_eval.registry import all_tasks
from deepseek_eval.scorers.generation import TOKENIZERS
from deepseek_eval.scorers.spans import tag_counts
from deepseek_eval.task import Ask, Choose, Likelihood, Measure, Output, Sample
from deepseek_eval.tasks.classification import SIB200, TOPICS, xsid_sentences
from deepseek_eval.tasks.documents import documents


def said(text: str) -> Output:
    return Output(samples=(Sample(text=text),))


@pytest.mark.parametrize("language", ["zh", "ja", "ko"])
def test_translation(language: str, shared_data: Path) -> None:
    """The line before each reference as its translation, and each reference without its last characters."""
    from sacrebleu.metrics import BLEU, CHRF

    task = all_tasks()[f"ntrex_en_{language}"]
    items = list(task.items(open_all(task.datasets, shared_data), 0))[:120]
    references = [item.target for item in items]
    answers = [text[:-4] if index % 3 else references[index - 1] for index, text in enumerate(references)]
    scores = [task.scorer(item, said(answer)).statistics for item, answer in zip(items, answers, strict=True)]
    theirs = {
        "bleu": BLEU(tokenize=TOKENIZERS[language]).corpus_score(answers, [references]).score,
        "chrf": CHRF().corpus_score(answers, [references]).score,
    }
    for metric in (bleu(), chrf()):
        ours = float(metric.of_sums(np.sum([score[metric.name] for score in scores], axis=0)))
        assert ours == pytest.approx(theirs[metric.name], abs=1e-9)
        assert 20 < ours < 90


@pytest.mark.parametrize("language", SIB200)
def test_stored_answers_of_gpt_4(language: str, shared_data: Path) -> None:
    """Free text, scored by the task, against scikit-learn on the labels that the scorer read."""
    task = all_tasks()[f"sib200_{language}"]
    text = Files("sib200", shared_data / "sib200").text(f"llm-results/output_gpt4/{SIB200[language]}.tsv")
    stored = {row["index_id"]: row["gpt-4"] for row in csv.DictReader(io.StringIO(text), delimiter="\t")}
    items = list(task.items(open_all(task.datasets, shared_data), 0))
    assert {item.id for item in items} == set(stored)
    scores = [task.scorer(item, said(stored[item.id])) for item in items]
    actual = [TOPICS[item.target] for item in items]
    predicted = [score.answer or "none" for score in scores]
    accuracy = np.mean([score.statistics["accuracy"][0] for score in scores])
    assert accuracy == pytest.approx(accuracy_score(actual, predicted))
    assert 0.74 < accuracy < 0.84
    sums = np.sum([score.statistics["macro_f1"] for score in scores], axis=0)
    theirs = f1_score(actual, predicted, labels=list(TOPICS), average="macro")
    assert float(macro_f1().of_sums(sums)) == pytest.approx(theirs, abs=1e-12)


NOTHING_IS_RIGHT = ("bold", "crows_pairs", "perplexity", "tendencies")


def test_every_score_says_what_would_be_right(shared_data: Path) -> None:
    """Whatever a model says; but for tasks in which nothing is right."""
    tried = 0
    for task in all_tasks().values():
        if any(missing_files(name, shared_data) for name in task.datasets):
            continue
        item = next(iter(task.items(open_all(task.datasets, shared_data), task.shots)))
        likelihoods = tuple(Likelihood(logprob=-n - 1.0, tokens=1) for n in range(_texts_of(item.ask)))
        output = Output(likelihoods=likelihoods) if likelihoods else said("x")
        expected = task.scorer(item, output).expected
        assert bool(expected) != task.name.startswith(NOTHING_IS_RIGHT), task.name
        tried += 1
    assert tried > 50


def _texts_of(ask: Ask) -> int:
    """How many texts a model with log-probabilities weighs."""
    return len(ask.continuations) if isinstance(ask, Choose) else int(isinstance(ask, Measure))


def test_similarity(shared_data: Path) -> None:
    """Overlap of words as a rating of KorSTS."""
    from deepseek_eval.metrics import in_bins, moments
    from deepseek_eval.scorers.text import overlap_f1

    rows = list(Files("korsts", shared_data / "korsts").read("sts-test.tsv"))
    x = [round(20 * overlap_f1(row["sentence1"], row["sentence2"])) / 4 for row in rows]
    y = [round(4 * float(row["score"])) / 4 for row in rows]
    pairs = list(zip(x, y, strict=True))
    ours = float(pearson().of_sums(np.sum([moments(*pair) for pair in pairs], axis=0)))
    assert ours == pytest.approx(stats.pearsonr(x, y).statistic, abs=1e-9)
    ours = float(spearman(21).of_sums(np.sum([in_bins(*pair, 0.0, 5.0, 21) for pair in pairs], axis=0)))
    assert ours == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-9)
    assert len(pairs) == 1379 and ours > 0.3


def test_slots(shared_data: Path) -> None:
    """Tags of the sentence before, cut to length, as predictions of xSID."""
    from seqeval.metrics import f1_score as seqeval_f1

    tags = [line for _, _, line in xsid_sentences(Files("xsid", shared_data / "xsid"), "en", "test")]
    predicted = [
        [*line[: len(line) // 2], *(tags[index - 1] + ["O"] * len(line))[len(line) // 2 : len(line)]]
        for index, line in enumerate(tags)
    ]
    kinds = sorted({tag[2:] for line in tags for tag in line if tag != "O"})
    rows = [tag_counts(*pair, kinds) for pair in zip(predicted, tags, strict=True)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for metric, average in ((micro_f1(), "micro"), (macro_f1(), "macro")):
            ours = float(metric.of_sums(np.sum([row[metric.name] for row in rows], axis=0)))
            assert ours == pytest.approx(seqeval_f1(tags, predicted, average=average), abs=1e-12)
            assert 0.2 < ours < 0.95


def test_rouge_without_chinese_characters_is_rouge_scores_own(shared_data: Path) -> None:
    """On English the only differences of tokenizers are articles and marks, which the texts here do not have."""
    from rouge_score.rouge_scorer import RougeScorer

    task = all_tasks()["headline_en"]
    lines = [line for _, rows in documents(Files("ntrex", shared_data / "ntrex"), "en")[:40] for (line,) in rows[:2]]
    plain = [
        " ".join(w for w in line.split() if w.isascii() and w.isalpha() and w.lower() not in ("a", "an", "the"))
        for line in lines
    ]
    items = list(task.items(open_all(task.datasets, shared_data), 0))
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    from msgspec.structs import replace

    for target, answer in zip(plain[::2], plain[1::2], strict=True):
        ours = task.scorer(replace(items[0], target=target), said(answer)).statistics
        theirs = scorer.score(target, answer)
        for name in theirs:
            assert ours[name][0] == pytest.approx(theirs[name].fmeasure, abs=1e-12), (target, answer)
