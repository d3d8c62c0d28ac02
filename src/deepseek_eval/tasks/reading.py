"""Questions about a passage."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deepseek_eval.scorers.choice import LETTERS
from deepseek_eval.scorers.generation import READING_METRICS, reading
from deepseek_eval.task import Generate, Rows, Task
from deepseek_eval.tasks.builders import PLAIN, UNSPACED, Question, Style, choice_task, generate_task, split

_ASK = Generate(max_tokens=48, stop=("\n",))
_HELD_OUT = 10  # passages kept back as examples where there is one split only


def tasks() -> Iterator[Task]:
    """All of them."""
    note = f"The last {_HELD_OUT} passages are kept back as examples. F1 is over words."
    yield _reading(
        "xquad_en",
        "en",
        "xquad",
        "xquad.en.json",
        "Context: {context}\n\nQuestion: {question}\n\nAnswer:",
        PLAIN,
        suites=("core",),
        note=note + " The prompt is that of xquad_en in lm-evaluation-harness 0.4.13, which shows no examples.",
    )
    note = note.replace("words", "characters")
    yield _reading(
        "xquad_zh",
        "zh",
        "xquad",
        "xquad.zh.json",
        "语境: {context}\n\n问题: {question}\n\n回答:",
        PLAIN,
        note=note + " The prompt is that of xquad_zh in lm-evaluation-harness 0.4.13, which shows no examples.",
    )
    yield _reading(
        "cmrc2018",
        "zh",
        "cmrc2018",
        "cmrc2018_dev.json",
        "短文：{context}\n问题：{question}\n答案：",
        UNSPACED,
        note=note,
    )
    yield _reading(
        "jsquad",
        "ja",
        "jglue",
        "jsquad-v1.3/valid-v1.3.json",
        "文章：{context}\n質問：{question}\n答え：",
        UNSPACED,
        note=note,
    )
    yield _jsquad_title()


def _reading(
    name: str,
    language: str,
    dataset: str,
    file: str,
    template: str,
    style: Style,
    *,
    suites: tuple[str, ...] = (),
    note: str = "",
) -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        asked, kept = split(_paragraphs(files[dataset].json(file)), _HELD_OUT)
        questions = (one for number, paragraph in enumerate(asked) for one in _questions(template, number, paragraph))
        examples = (next(_questions(template, number, paragraph)) for number, paragraph in enumerate(kept))
        return questions, sorted(examples, key=lambda one: len(one.text))  # short passages first: examples cost tokens

    return generate_task(
        name,
        "Answer a question with words of the passage",
        "reading",
        (language,),
        (dataset,),
        read,
        _ASK,
        reading(),
        READING_METRICS,
        style=style,
        shots=1,
        suites=suites,
        note=note,
    )


def _paragraphs(squad: Any) -> Iterator[dict[str, Any]]:
    for article in squad["data"]:
        yield from article["paragraphs"]


def _questions(template: str, number: int, paragraph: Mapping[str, Any]) -> Iterator[Question]:
    for asked in paragraph["qas"]:
        answers = [one["text"] for one in asked["answers"]]
        text = template.format(context=_context(paragraph), question=asked["question"])
        yield Question(str(asked["id"]), text, answers[0], target=answers, cluster=str(number))


def _context(paragraph: Mapping[str, Any]) -> str:
    """JSQuAD puts the article's title before the passage."""
    return str(paragraph["context"]).replace(" [SEP] ", "\n")


def _jsquad_title() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        articles = files["jglue"].json("jsquad-v1.3/valid-v1.3.json")["data"]
        titles = [article["title"] for article in articles]
        questions = []
        for place, article in enumerate(articles):
            # The other choices are the titles of the articles behind; the right one's place goes round.
            others = [titles[(place + step) % len(titles)] for step in (1, 2, 3)]
            right = place % 4
            choices = [*others[:right], article["title"], *others[right:]]
            listed = "".join(f"{letter}. {title}\n" for letter, title in zip(LETTERS, choices, strict=False))
            text = _without(article["paragraphs"][0]["context"].split("[SEP]")[-1].strip(), article["title"])
            asked = f"文章：{text}\nこの文章は何についてのものですか。\n{listed}答え："
            questions.append(Question(str(place), asked, LETTERS[right], LETTERS[:4]))
        return split(questions, 8)

    return choice_task(
        "jsquad_title",
        "Which article a Japanese passage is from, four choices",
        "reading",
        ("ja",),
        ("jglue",),
        read,
        choices=4,
        style=UNSPACED,
        shots=2,
        note="Made from JSQuAD: the first passage of each article, its title hidden, and the titles of other articles.",
    )


def _without(text: str, title: str) -> str:
    return text.replace(title, "＿＿")
