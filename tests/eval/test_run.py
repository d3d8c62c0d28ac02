"""Runs go on where they ended, count what was not answered, and are the same every time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from tests.eval.scripted import Scripted, addition, item, right

from deepseek.errors import ConfigurationError, DataError, EvaluationError, SpendingCapError
from deepseek_eval.registry import select
from deepseek_eval.results import Results, load
from deepseek_eval.run import _LONG_ANSWERS, evaluate
from deepseek_eval.select import subset
from deepseek_eval.task import Item, Output


def timeless(results: Results) -> object:
    """Results without what a second run has otherwise."""
    plain = msgspec.to_builtins(results)
    plain.pop("started")
    for model in plain["models"]:
        for task in model["tasks"].values():
            task.pop("seconds")
            task.pop("asked_now")
    return plain


def test_a_run_is_written_down(tmp_path: Path) -> None:
    results = evaluate(
        Scripted(lambda one: "0" if one.id == "3" else right(one)), tasks=[addition()], output_dir=tmp_path
    )
    loaded, folder = load(tmp_path)
    assert loaded == results and folder == tmp_path
    (model,) = results.models
    found = model.tasks["addition"]
    accuracy = found.metrics["accuracy"]
    assert accuracy.value == 39 / 40 and accuracy.method == "wilson" and accuracy.above_chance is True
    assert found.groups["parity"]["even"]["accuracy"].value == 1.0
    assert found.groups["parity"]["odd"]["accuracy"].items == 20
    assert (found.answered, found.unanswered, found.asked_now) == (40, 0, 40)
    assert results.tasks["addition"].items == 40
    assert results.machine["python"] and results.versions["numpy"]


def test_unanswered_and_refused_are_counted_apart(tmp_path: Path) -> None:
    def answer(one: Item) -> Output | str:
        number = int(one.id)
        return Output(error="HTTP 500") if number < 10 else "no" if number < 12 else right(one)

    results = evaluate(Scripted(answer), tasks=[addition()], output_dir=tmp_path)
    found = results.models[0].tasks["addition"]
    assert (found.answered, found.unanswered, found.refused) == (30, 10, 2)
    assert found.errors == {"HTTP 500": 10}
    assert found.metrics["accuracy"].value == 28 / 30
    assert found.if_wrong == 28 / 40


def test_a_second_run_asks_nothing_again_but_what_had_no_answer(tmp_path: Path) -> None:
    failing = Scripted(lambda one: Output(error="gone") if one.id == "5" else right(one))
    evaluate(failing, tasks=[addition()], output_dir=tmp_path)
    again = Scripted(right)
    results = evaluate(again, tasks=[addition()], output_dir=tmp_path)
    assert again.asked == ["5"]
    assert results.models[0].tasks["addition"].unanswered == 0
    third = Scripted(right)
    assert timeless(evaluate(third, tasks=[addition()], output_dir=tmp_path)) == timeless(results)
    assert third.asked == []
    fresh = evaluate(Scripted(right), tasks=[addition()], output_dir=tmp_path / "other")
    assert timeless(fresh) == timeless(results)


def test_a_killed_run_loses_what_was_under_way(tmp_path: Path) -> None:
    def answer(one: Item) -> str:
        if one.id == "10":
            raise KeyboardInterrupt
        return right(one)

    with pytest.raises(KeyboardInterrupt):
        evaluate(Scripted(answer), tasks=[addition()], output_dir=tmp_path)
    (outputs,) = tmp_path.glob("models/*/outputs/addition.jsonl")
    whole = outputs.read_bytes()
    assert whole.count(b"\n") == 29
    outputs.write_bytes(whole[:-7])  # the last line was being written
    again = Scripted(right)
    results = evaluate(again, tasks=[addition()], output_dir=tmp_path)
    assert sorted(map(int, again.asked)) == list(range(12))
    assert results.models[0].tasks["addition"].metrics["accuracy"].value == 1.0
    assert outputs.read_bytes().count(b"\n") == 40


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537])
def test_a_torn_line_of_any_length_is_dropped(tmp_path: Path, size: int) -> None:
    evaluate(Scripted(right), tasks=[addition()], output_dir=tmp_path)
    (outputs,) = tmp_path.glob("models/*/outputs/addition.jsonl")
    whole = outputs.read_bytes()
    with outputs.open("ab") as file:
        file.write(b'{"task":"' + b"x" * size)
    more = addition([*map(item, range(41))])
    again = Scripted(right)
    evaluate(again, tasks=[more], output_dir=tmp_path)
    assert again.asked == ["40"]
    assert outputs.read_bytes().startswith(whole) and outputs.read_bytes().count(b"\n") == 41


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    evaluate(Scripted(right), tasks=[addition()], output_dir=tmp_path)
    (outputs,) = tmp_path.glob("models/*/outputs/addition.jsonl")
    lines = outputs.read_bytes().split(b"\n")
    outputs.write_bytes(b"\n".join([*lines[:2], b"{broken", *lines[3:]]))
    with pytest.raises(DataError, match="line 3"):
        evaluate(Scripted(right), tasks=[addition()], output_dir=tmp_path)


def test_another_prompt_or_another_model_is_asked_again(tmp_path: Path) -> None:
    evaluate(Scripted(right), tasks=[addition()], output_dir=tmp_path)
    changed = [item(0, prompt="What comes after 0?"), *map(item, range(1, 40))]
    again = Scripted(right)
    evaluate(again, tasks=[addition(changed)], output_dir=tmp_path)
    assert again.asked == ["0"]
    other = Scripted(right, weights="others")
    evaluate(other, tasks=[addition(changed)], output_dir=tmp_path)
    assert len(other.asked) == 40


def test_what_cannot_go_on_is_stopped_cleanly(tmp_path: Path) -> None:
    def answer(one: Item) -> str:
        if one.id == "30":
            raise SpendingCapError("$1 of $1 are spent.")
        return right(one)

    results = evaluate(Scripted(answer), tasks=[addition(), addition(name="second")], output_dir=tmp_path)
    (model,) = results.models
    assert model.tasks["addition"].stopped == "$1 of $1 are spent."
    assert model.tasks["addition"].answered == 9
    assert [(one.task, one.model) for one in results.missing] == [("second", "scripted")]
    again = Scripted(right)
    evaluate(again, tasks=[addition()], output_dir=tmp_path)
    assert len(again.asked) == 31


def test_missing_data_is_reported_and_the_rest_run(tmp_path: Path) -> None:
    empty = tmp_path / "data"
    empty.mkdir()
    lacking = addition(name="lacking", datasets=("gsm8k",))
    results = evaluate(Scripted(right), tasks=[lacking, addition()], output_dir=tmp_path / "run", data=empty)
    assert [one.task for one in results.missing] == ["lacking"]
    assert "gsm8k" in results.missing[0].reason
    assert list(results.models[0].tasks) == ["addition"]
    with pytest.raises(DataError, match="no task can be run"):
        evaluate(Scripted(right), tasks=[lacking], output_dir=tmp_path / "run", data=empty)


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="limit"):
        evaluate(Scripted(right), tasks=[addition()], output_dir=tmp_path, limit=0)
    with pytest.raises(ConfigurationError, match="no model"):
        evaluate([], tasks=[addition()], output_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="twice"):
        evaluate([Scripted(right), Scripted(right)], tasks=[addition()], output_dir=tmp_path)
    with pytest.raises(ConfigurationError, match="called 'addition'"):
        evaluate(Scripted(right), tasks=[addition(), addition()], output_dir=tmp_path)
    with pytest.raises(DataError, match="'3'"):
        evaluate(Scripted(right), tasks=[addition([item(3), item(3)])], output_dir=tmp_path)
    with pytest.raises(DataError, match="no items"):
        evaluate(Scripted(right), tasks=[addition([])], output_dir=tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="cannot be made"):
        evaluate(Scripted(right), tasks=[addition()], output_dir=tmp_path / "file")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "nothing")
    (tmp_path / "results.json").write_text('{"format": 1}')
    with pytest.raises(DataError, match="holds no results"):
        load(tmp_path)


@pytest.mark.parametrize("limit", [1, 39, 40, 41, None])
def test_a_limit_takes_so_many(limit: int | None) -> None:
    items = [item(number) for number in range(40)]
    assert len(subset(items, limit, 0)) == min(limit or 40, 40)


def test_a_limit_does_not_depend_on_the_order() -> None:
    items = [item(number) for number in range(100)]
    few, more = subset(items, 10, 0), subset(items, 20, 0)
    assert {one.id for one in few} < {one.id for one in more}
    assert {one.id for one in subset(items[::-1], 10, 0)} == {one.id for one in few}
    assert few == [one for one in items if one in few]
    assert {one.id for one in subset(items, 10, 1)} != {one.id for one in few}


def test_a_limit_takes_clusters_whole() -> None:
    items = [item(number, cluster=str(number // 4)) for number in range(40)]
    taken = subset(items, 10, 0)
    assert len(taken) == 8
    assert all(sum(one.cluster == other.cluster for other in taken) == 4 for one in taken)
    assert len(subset(items, 3, 0)) == 3  # no cluster fits


def test_the_core_suite_has_mathematics_code_and_tools() -> None:
    core = {task.name: task for task in select(["core"])}
    assert {"mathematics", "code", "tools"} <= {task.kind for task in core.values()}
    assert core.keys() >= _LONG_ANSWERS.keys()
