"""Stored outputs are scored again, and what is wrong with a file is said with its line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.eval.scripted import Scripted, addition, item, right

from deepseek.errors import ConfigurationError, DataError
from deepseek_eval.models.sib200 import convert_sib200
from deepseek_eval.models.stored import StoredModel
from deepseek_eval.registry import select
from deepseek_eval.run import evaluate
from deepseek_eval.task import Choose, Item, Measure


def stored(path: Path, *lines: object) -> Path:
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n", encoding="utf-8")
    return path


def test_texts_and_whole_outputs(tmp_path: Path) -> None:
    path = stored(
        tmp_path / "a.jsonl",
        {"model": {"name": "somebody's", "details": {"date": "2023"}}},
        {"task": "addition", "id": "0", "text": "1"},
        {"task": "addition", "id": "1", "texts": ["2", "3"]},
        {"task": "addition", "id": "2", "output": {"samples": [{"text": "3"}], "prompt_tokens": 7}},
        {"task": "addition", "id": "3", "error": "refused by the provider"},
        {"task": "other", "id": "4", "text": "5"},
    )
    model = StoredModel(path)
    assert (model.card.name, model.card.evidence, model.card.kind) == ("somebody's", "re-scored", "stored")
    assert model.tasks == ["addition", "other"]
    results = evaluate(model, tasks=[addition([item(number) for number in range(5)])], output_dir=tmp_path / "run")
    found = results.models[0].tasks["addition"]
    assert (found.answered, found.unanswered, found.prompt_tokens) == (3, 2, 7)
    assert found.errors == {"refused by the provider": 1, "there is no stored output": 1}
    assert found.metrics["accuracy"].value == 1.0


def test_outputs_of_a_run_are_stored_outputs(tmp_path: Path) -> None:
    evaluate(Scripted(right), tasks=[addition()], output_dir=tmp_path / "run")
    (path,) = (tmp_path / "run").glob("models/*/outputs/addition.jsonl")
    results = evaluate(StoredModel(path), tasks=[addition()], output_dir=tmp_path / "again")
    assert results.models[0].tasks["addition"].metrics["accuracy"].value == 1.0


def test_an_answer_to_something_else(tmp_path: Path) -> None:
    two = {"likelihoods": [{"logprob": -1, "tokens": 1}, {"logprob": -2, "tokens": 1}]}
    model = StoredModel(
        stored(tmp_path / "a.jsonl", *({"task": "addition", "id": str(i), "output": two} for i in range(3)))
    )
    items = [
        item(0),
        Item(id="1", prompt="x", ask=Choose(continuations=("a", "b", "c"))),
        Item(id="2", prompt="x", ask=Measure()),
    ]
    assert {output.error for _, output in model.answer(addition(), items)} == {
        "the stored output is no answer to what is asked"
    }
    (_, fitting), *_ = model.answer(addition(), [Item(id="1", prompt="x", ask=Choose(continuations=("a", "b")))])
    assert not fitting.error


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"task": "a", "id": "1"}], "line 1: it needs"),
        ([{"task": "a", "id": "1", "text": "x", "texts": ["y"]}], "line 1: it needs"),
        ([{"task": "a", "id": "1", "text": "x"}, {"task": "a", "id": "1", "text": "y"}], "line 2: task 'a', id '1'"),
        ([{"task": "a", "id": "1", "txt": "x"}], "unknown field `txt`"),
        ([{"task": "a", "id": 1, "text": "x"}], r"\$.id"),
        ([[]], "line 1"),
        ([], "holds no outputs"),
    ],
)
def test_a_file_with_a_mistake(tmp_path: Path, lines: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        StoredModel(stored(tmp_path / "a.jsonl", *lines))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        StoredModel(tmp_path / "nothing.jsonl")


# Recomputed by another program before this one was written: the first of the seven labels that an answer names.
FIRST_LABEL = {"gpt-4": (0.80, 0.79, 0.78, 0.80), "gpt-3.5": (0.72, 0.64, 0.66, 0.68)}


@pytest.mark.parametrize("name", FIRST_LABEL)
def test_the_answers_that_sib200_holds(tmp_path: Path, shared_data: Path, name: str) -> None:
    path = tmp_path / "stored.jsonl"
    assert convert_sib200(name, path, data=shared_data) == 4 * 204
    results = evaluate(StoredModel(path), tasks=select(["sib200"]), output_dir=tmp_path / "run", data=shared_data)
    found = results.models[0].tasks
    values = [found[f"sib200_{language}"].metrics["accuracy"].value for language in ("en", "zh", "ja", "ko")]
    assert values == pytest.approx(FIRST_LABEL[name], abs=0.05)
    assert all(task.answered == 204 for task in found.values())


def test_another_model_has_no_answers(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"gpt-3\.5 and gpt-4"):
        convert_sib200("gpt-5", tmp_path / "x", data=tmp_path)
    with pytest.raises(DataError, match="sib200"):
        convert_sib200("gpt-4", tmp_path / "x", data=tmp_path)
