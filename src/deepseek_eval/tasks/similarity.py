"""How alike two sentences are; synonyms and antonyms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from deepseek_eval.metrics import in_bins, mean, moments, one, pearson, spearman
from deepseek_eval.scorers.choice import chosen
from deepseek_eval.task import Item, Output, Rows, Score, Scorer, Task
from deepseek_eval.tasks.builders import Question, Style, choice_task, split_in_turn

RATINGS = ("0", "1", "2", "3", "4", "5")
_BINS = 21  # quarters of a point from 0 to 5
_METRICS = (pearson(), spearman(_BINS), mean("mean_error", unit="number", higher_is_better=False))
_NOTE = (
    "Six ratings are offered. The model's rating is their mean, weighted with their likelihoods, or the one it names. "
    "Spearman's correlation is that of ratings rounded to quarters. 12 rows are kept back as examples, with "
    "whole ratings."
)


def tasks() -> Iterator[Task]:
    """All of them."""
    yield _sts(
        "jsts",
        "ja",
        "jglue",
        lambda rows: (
            (row["sentence_pair_id"], row["sentence1"], row["sentence2"], float(row["label"]))
            for row in rows.read("jsts-v1.3/valid-v1.3.json")
        ),
    )
    yield _sts(
        "klue_sts",
        "ko",
        "klue",
        lambda rows: (
            (row["guid"], row["sentence1"], row["sentence2"], float(row["labels"]["real-label"]))
            for row in rows.json("klue-sts-v1.1_dev.json")
        ),
    )
    yield _sts(
        "korsts",
        "ko",
        "korsts",
        lambda rows: (
            (str(index), row["sentence1"], row["sentence2"], float(row["score"]))
            for index, row in enumerate(rows.read("sts-test.tsv"))
        ),
    )
    yield _klue_paraphrase()
    yield _word_relations()


_Pairs = Callable[[Rows], Iterable[tuple[str, str, str, float]]]
_WORDS = {
    "ja": (
        "二つの文の意味の近さを0（無関係）から5（同じ意味）の整数で答えなさい。\n\n",
        "文1：{}\n文2：{}\n近さ：",
        "",
    ),
    "ko": (
        "두 문장의 의미가 얼마나 비슷한지 0(무관함)부터 5(같은 의미)까지의 정수로 답하세요.\n\n",
        "문장1: {}\n문장2: {}\n점수:",
        " ",
    ),
}


def _sts(name: str, language: str, dataset: str, pairs: _Pairs) -> Task:
    description, template, delimiter = _WORDS[language]

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        every = (
            Question(ident, template.format(first, second), str(round(rating)), RATINGS, target=rating)
            for ident, first, second, rating in pairs(files[dataset])
        )
        return split_in_turn(every, 12)

    return choice_task(
        name,
        f"{'Japanese' if language == 'ja' else 'Korean'} sentences: how alike are they",
        "paraphrase",
        (language,),
        (dataset,),
        read,
        choices=len(RATINGS),
        classes=RATINGS,
        style=Style(description=description, delimiter=delimiter),
        shots=6,
        note=_NOTE,
        scorer=rating(),
        metrics=_METRICS,
    )


def rating() -> Scorer:
    """A rating from 0 to 5. ``target``: people's mean. Metrics: ``pearson``, ``spearman``, ``mean_error`` (absolute).

    A text without a rating is left out of the correlations and counts as an error of 5.
    """

    def score(item: Item, output: Output) -> Score:
        made, right = chosen(item, output), float(item.target)
        if made.index is None:
            return Score(
                statistics={"mean_error": one(5.0)},
                explanation=made.explanation,
                refused=made.refused,
                expected=f"{right:.2f}",
            )
        value = float(made.index)
        if made.probabilities is not None:
            value = float(made.probabilities @ np.arange(len(RATINGS)))
        return Score(
            statistics={
                "pearson": moments(value, right),
                "spearman": in_bins(value, right, 0.0, 5.0, _BINS),
                "mean_error": one(abs(value - right)),
            },
            answer=f"{value:.2f}",
            explanation=f"people say {right:.2f}",
            expected=f"{right:.2f}",
        )

    return score


def _klue_paraphrase() -> Task:
    names = ("예", "아니요")

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        every = (
            Question(
                row["guid"],
                f"문장1: {row['sentence1']}\n문장2: {row['sentence2']}\n두 문장은 같은 의미입니까?\n답:",
                names[0] if row["labels"]["binary-label"] else names[1],
                names,
            )
            for row in files["klue"].json("klue-sts-v1.1_dev.json")
        )
        return split_in_turn(every, 12)

    return choice_task(
        "klue_paraphrase",
        "Korean sentences: is it the same meaning",
        "paraphrase",
        ("ko",),
        ("klue",),
        read,
        choices=2,
        classes=names,
        shots=4,
        note="The binary labels of KLUE-STS, dev; 12 of its rows are kept back as examples.",
    )


def _word_relations() -> Task:
    names = ("synonyms", "antonyms")
    each = 500

    def pairs(rows: Rows, file: str, answer: str) -> list[Question]:
        """Pairs of different words, once each; inflections of one word are no synonyms."""
        found: dict[tuple[str, ...], Question] = {}
        for line in rows.text(file).split("\n"):
            words = tuple(sorted(line.split()))
            if len(words) == 2 and words[0][:4] != words[1][:4] and words not in found:
                text = f"{words[0]} and {words[1]} are"
                found[words] = Question(" ".join(words), text, answer, names, groups={"relation": answer})
        return list(found.values())

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        rows = files["counter_fitting"]
        same = pairs(rows, "ppdb_synonyms.txt", names[0])
        opposite = pairs(rows, "wordnet_antonyms.txt", names[1])
        both = {one.id for one in same} & {one.id for one in opposite}
        kept = [[one for one in side if one.id not in both] for side in (same, opposite)]
        # Evenly over each file, whose lines are sorted by nothing in particular but come in runs of one word.
        chosen_ones = [side[:: max(1, len(side) // (each + 4))][: each + 4] for side in kept]
        return split_in_turn((one for turn in zip(*chosen_ones, strict=False) for one in turn), 8)

    return choice_task(
        "word_relations",
        "English words: synonyms or antonyms",
        "knowledge",
        ("en",),
        ("counter_fitting",),
        read,
        choices=2,
        classes=names,
        shots=4,
        suites=("core",),
        note="500 pairs of each kind, from PPDB and WordNet as counter-fitting selected them; no pairs that "
        "begin alike.",
    )
