"""Whether a model finds what a long context says: the texts and questions of ``deepseek bench recall``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from deepseek.benchmark.recall.documents import Frame, Question
from deepseek.benchmark.recall.retrieval import retrieval_document
from deepseek.benchmark.recall.scoring import score as recall_score
from deepseek_eval.metrics import mean, one
from deepseek_eval.scorers.refusal import is_refusal
from deepseek_eval.task import Generate, Item, Message, Output, Rows, Score, Scorer, Task

KINDS = ("needle", "multi-needle", "multi-key", "tracking")
LENGTHS = {"4k": 4_000, "16k": 16_000, "64k": 64_000}
"""In characters: the same text for every model, whatever its tokenizer. English has about 4 a token, Chinese 1.5."""
_TEXTS = 4
_QUESTIONS = 2  # of each kind about each text


def tasks() -> Iterator[Task]:
    """All of them."""
    for language in ("en", "zh"):
        for name, length in LENGTHS.items():
            yield _recall(language, name, length)


def _recall(language: str, name: str, length: int) -> Task:
    def items(files: Mapping[str, Rows], shots: int) -> Iterator[Item]:
        # Characters take the place of tokens, so that a text does not depend on the model.
        frame = Frame((), (), lambda text: [ord(char) for char in text])
        for number in range(_TEXTS):
            document = retrieval_document(
                str(number), language, length, str(number), frame, tasks=KINDS, limit=_QUESTIONS
            )
            text = "".join(map(chr, document.tokens))
            for place, question in enumerate(document.questions):
                yield Item(
                    id=f"{number}/{place}",
                    prompt=(Message("user", f"{text}\n\n{question.text}"),),
                    ask=Generate(max_tokens=96),
                    target={"answers": list(question.answers), "every": question.every, "kind": question.task},
                    groups={"kind": question.task},
                    cluster=str(number),
                )

    return Task(
        name=f"recall_{language}_{name}",
        title=f"Find what a text of {length // 1000},000 characters says",
        kind="long-context",
        languages=(language,),
        datasets=(),
        items=items,
        scorer=_recalled(),
        metrics=(mean("recall"), mean("all_found")),
        suites=("core",) if (language, name) == ("en", "4k") else (),
        note="Kinds of RULER (needles, several values, keys, chains of variables) in made-up text, as in "
        "`deepseek bench "
        "recall`; lengths are in characters.",
    )


def _recalled() -> Scorer:
    """``target``: {"answers", "every", "kind"}. Metrics: ``recall``: share of the answers that are named;
    ``all_found``."""

    def score(item: Item, output: Output) -> Score:
        aim: dict[str, Any] = item.target
        text = output.samples[0].text
        question = Question(aim["kind"], "", tuple(aim["answers"]), aim["every"], 0.0, 0)
        found = recall_score(question, text)
        return Score(
            statistics={"recall": one(found), "all_found": one(found == 1.0)},
            answer=text,
            explanation=f"names {found:.0%} of {', '.join(aim['answers'])}",
            refused=found == 0 and is_refusal(text),
            expected=(", " if aim["every"] else " / ").join(aim["answers"]),
        )

    return score
