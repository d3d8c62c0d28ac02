"""BIG-Bench Hard (Suzgun et al. 2022, arXiv:2210.09261): 27 kinds of problems."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from deepseek_eval.metrics import mean
from deepseek_eval.scorers.generation import READING_METRICS, reading
from deepseek_eval.task import Generate, Rows, Task
from deepseek_eval.tasks.builders import Question, Style, choice_task, generate_task, split, split_in_turn

_OPTION = re.compile(r"^(\([A-Z]\)) ", re.MULTILINE)
_TWO = {
    "boolean_expressions": ("True", "False"),
    "causal_judgement": ("Yes", "No"),
    "formal_fallacies": ("valid", "invalid"),
    "navigate": ("Yes", "No"),
    "sports_understanding": ("yes", "no"),
    "web_of_lies": ("Yes", "No"),
}
_LETTERED = {
    "date_understanding": 6,
    "disambiguation_qa": 3,
    "geometric_shapes": 11,
    "hyperbaton": 2,
    "logical_deduction_three_objects": 3,
    "logical_deduction_five_objects": 5,
    "logical_deduction_seven_objects": 7,
    "movie_recommendation": 5,
    "penguins_in_a_table": 5,
    "reasoning_about_colored_objects": 18,
    "ruin_names": 4,
    "salient_translation_error_detection": 6,
    "snarks": 2,
    "temporal_sequences": 4,
    "tracking_shuffled_objects_three_objects": 3,
    "tracking_shuffled_objects_five_objects": 5,
    "tracking_shuffled_objects_seven_objects": 7,
}
"""Kind -> how many options its questions have at most."""
_FREE = ("dyck_languages", "multistep_arithmetic_two", "object_counting", "word_sorting")
KINDS = tuple(sorted([*_TWO, *_LETTERED, *_FREE]))
_HELD_OUT = 6
_NOTE = (
    "Three examples without reasoning, of rows that are kept back; the original's examples, with reasoning, are "
    "another "
    "task. Do not train on this data."
)


def tasks() -> Iterator[Task]:
    """All of them."""
    for kind in KINDS:
        yield _free(kind) if kind in _FREE else _options(kind)


def _text(row: Mapping[str, Any]) -> str:
    return f"Q: {row['input']}\nA:"


def _title(kind: str) -> str:
    return f"BIG-Bench Hard: {kind.replace('_', ' ')}"


def _options(kind: str) -> Task:
    classes = _TWO.get(kind, ())

    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        every = []
        for index, row in enumerate(files["bbh"].json(f"{kind}.json")["examples"]):
            choices = classes or tuple(_OPTION.findall(row["input"]))
            # A few rows of the source have one option only, or an answer that is not among their options.
            if len(choices) > 1 and row["target"] in choices:
                every.append(Question(str(index), _text(row), row["target"], choices))
        return split_in_turn(every, _HELD_OUT)

    return choice_task(
        f"bbh_{kind}",
        _title(kind),
        "reasoning",
        ("en",),
        ("bbh",),
        read,
        choices=len(classes) or _LETTERED[kind],
        classes=classes,
        style=Style(),
        shots=3,
        suites=("core",) if kind in ("boolean_expressions", "tracking_shuffled_objects_three_objects") else (),
        note=_NOTE,
    )


def _free(kind: str) -> Task:
    def read(files: Mapping[str, Rows]) -> tuple[Iterable[Question], list[Question]]:
        every = [
            Question(str(index), _text(row), row["target"], target=[row["target"]])
            for index, row in enumerate(files["bbh"].json(f"{kind}.json")["examples"])
        ]
        return split(every, _HELD_OUT)

    return generate_task(
        f"bbh_{kind}",
        _title(kind),
        "reasoning",
        ("en",),
        ("bbh",),
        read,
        Generate(max_tokens=160 if kind == "word_sorting" else 48, stop=("\n", "Q:")),
        reading(),
        (mean("exact_match"), READING_METRICS[0]),
        style=Style(),
        shots=3,
        note=_NOTE,
    )
