"""Word problems."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

from deepseek_eval.metrics import mean
from deepseek_eval.scorers.numbers import number
from deepseek_eval.task import Generate, Rows, Task
from deepseek_eval.tasks.builders import Question, Style, generate_task, split

_METRICS = (mean("exact_match"), mean("strict"))
_MGSM = {"en": ("Question: ", "Answer:"), "zh": ("问题： ", "Answer:"), "ja": ("問題： ", "Answer:")}


def tasks() -> Iterator[Task]:
    """All of them."""
    yield _gsm8k()
    for language in _MGSM:
        yield _mgsm(language)


def _gsm8k() -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        test, train = (
            [
                Question(
                    f"{name}/{index}",
                    f"Question: {row['question']}\nAnswer:",
                    row["answer"],
                    target=re.sub(r"[,$]", "", row["answer"].rsplit("####", 1)[1].strip()),
                )
                for index, row in enumerate(files["gsm8k"].read(f"{name}.jsonl"))
            ]
            for name in ("test", "train")
        )
        return test, train[:64]

    return generate_task(
        "gsm8k",
        "School mathematics in several steps",
        "mathematics",
        ("en",),
        ("gsm8k",),
        read,
        Generate(max_tokens=256, stop=("Question:",)),
        number(strict=True),
        _METRICS,
        shots=5,
        suites=("core",),
        note="Test split; the first rows of train are the examples. The prompt is that of gsm8k in "
        "lm-evaluation-harness, "
        "which draws its examples; strict is its exact_match, and exact_match here also takes an answer in "
        "other words.",
    )


def _mgsm(language: str) -> Task:
    before, behind = _MGSM[language]

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        lines = [line for line in files["mgsm"].text(f"mgsm_{language}.tsv").split("\n") if line.strip()]
        every = []
        for index, line in enumerate(lines):
            text, right = line.rsplit("\t", 1)
            every.append(
                Question(str(index), f"{before}{text}\n{behind}", right.strip(), target=right.replace(",", ""))
            )
        return split(every, 8)

    return generate_task(
        f"mgsm_{language}",
        "School mathematics, answered at once",
        "mathematics",
        (language,),
        ("mgsm",),
        read,
        Generate(max_tokens=48, stop=("\n", before.strip())),
        number(),
        _METRICS[:1],
        style=Style(),
        shots=4,
        note="The same problems in all languages; the last 8 of 250 are kept back as examples, which show the number "
        "only, so a model has no room to reason. Prompt as mgsm_direct in lm-evaluation-harness 0.4.13 but for "
        "the examples.",
    )
