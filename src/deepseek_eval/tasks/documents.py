"""News in four languages (NTREX-128, Federmann et al. 2022): translation, headlines, perplexity."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from deepseek_eval.scorers.generation import ROUGE_METRICS, TRANSLATION_METRICS, summary, translation
from deepseek_eval.scorers.likelihood import PERPLEXITY_METRICS, text_likelihood
from deepseek_eval.task import Generate, Item, Measure, Rows, Task
from deepseek_eval.tasks.builders import Question, Style, generate_task, split

FILES = {
    "en": "newstest2019-src.eng.txt",
    "zh": "newstest2019-ref.zho-CN.txt",
    "ja": "newstest2019-ref.jpn.txt",
    "ko": "newstest2019-ref.kor.txt",
}
_NAMES = {"en": "English", "zh": "Chinese", "ja": "Japanese", "ko": "Korean"}
DIRECTIONS = (("en", "zh"), ("en", "ja"), ("en", "ko"), ("zh", "en"), ("ja", "en"), ("ko", "en"))
_HELD_OUT = 6  # documents kept back as examples
_HEADLINE = {
    "en": ("Article: {}\nHeadline:", " "),
    "zh": ("文章：{}\n标题：", ""),
    "ja": ("記事：{}\n見出し：", ""),
    "ko": ("기사: {}\n제목:", " "),
}


def tasks() -> Iterator[Task]:
    """All of them."""
    for source, target in DIRECTIONS:
        yield _translation(source, target)
    for language in FILES:
        yield _headline(language)
    for language in FILES:
        yield _perplexity(language)


def documents(rows: Rows, *languages: str) -> list[tuple[str, list[tuple[str, ...]]]]:
    """(name, lines) of each document, in order; a line is there in each of ``languages``."""
    texts = [rows.text(FILES[language]).rstrip("\n").split("\n") for language in languages]
    found: list[tuple[str, list[tuple[str, ...]]]] = []
    for name, *lines in zip(rows.text("DOCUMENT_IDS.tsv").rstrip("\n").split("\n"), *texts, strict=True):
        if not found or found[-1][0] != name:
            found.append((name, []))
        found[-1][1].append(tuple(line.strip() for line in lines))
    return found


def _translation(source: str, target: str) -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        questions = [
            Question(
                f"{name}/{index}", f"{_NAMES[source]}: {ours}\n{_NAMES[target]}:", theirs, target=theirs, cluster=name
            )
            for name, lines in documents(files["ntrex"], source, target)
            for index, (ours, theirs) in enumerate(lines)
        ]
        kept = {name for name, _ in documents(files["ntrex"], source)[-_HELD_OUT:]}
        examples = [one for one in questions if one.cluster in kept and 40 < len(one.text) < 200]
        return [one for one in questions if one.cluster not in kept], examples

    return generate_task(
        f"ntrex_{source}_{target}",
        f"Translate news from {_NAMES[source]} to {_NAMES[target]}",
        "translation",
        (source, target),
        ("ntrex",),
        read,
        Generate(max_tokens=192, stop=("\n",)),
        translation(target),
        TRANSLATION_METRICS,
        shots=4,
        suites=("core",) if (source, target) == ("zh", "en") else (),
        note="Sentence by sentence. The texts were written in English and translated by people, so out of other "
        f"languages they are translations themselves. The last {_HELD_OUT} documents are kept back as examples. "
        f"BLEU with "
        f"sacrebleu's tokenizer for the language.",
    )


def _headline(language: str) -> Task:
    template, delimiter = _HEADLINE[language]
    joint = " " if language in ("en", "ko") else ""

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        every = []
        for name, lines in documents(files["ntrex"], language):
            headline, body = lines[0][0], joint.join(line for (line,) in lines[1:9])
            if headline not in body:
                asked = template.format(body)
                every.append(Question(name, asked, headline, target=headline))
        questions, examples = split(every, _HELD_OUT)
        return questions, sorted(examples, key=lambda one: len(one.text))

    return generate_task(
        f"headline_{language}",
        "Write the headline of a news article",
        "summarization",
        (language,),
        ("ntrex",),
        read,
        Generate(max_tokens=64, stop=("\n",)),
        summary(),
        ROUGE_METRICS,
        style=Style(delimiter=delimiter),
        shots=1,
        suites=("core",) if language == "en" else (),
        note="Made from NTREX, whose documents begin with their headline: the next eight lines are the article. "
        "There are "
        "fewer than 120, so intervals are wide, and a headline has many good wordings, of which one is the reference. "
        "Only the English ones were written by a newsroom.",
    )


def _perplexity(language: str) -> Task:
    def items(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
        for name, lines in documents(files["ntrex"], language):
            yield Item(id=name, prompt="\n".join(line for (line,) in lines), ask=Measure(), target=None)

    return Task(
        name=f"perplexity_{language}",
        title=f"How well {_NAMES[language]} news is predicted",
        kind="perplexity",
        languages=(language,),
        datasets=("ntrex",),
        items=items,
        scorer=text_likelihood(),
        metrics=PERPLEXITY_METRICS,
        suites=("core",) if language == "en" else (),
        note="Documents one by one. Compare models by bits per byte, which does not depend on the tokenizer. "
        "Models may "
        "have read the texts, which are of 2018.",
    )
