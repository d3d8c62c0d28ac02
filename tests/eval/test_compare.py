"""Differences are of the same items only, corrected for their number, and have a direction."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.eval.scripted import Scripted, addition, item, right

from deepseek.errors import ConfigurationError, DataError
from deepseek_eval.compare import compare
from deepseek_eval.report.matrix import all_pairs
from deepseek_eval.report.sources import read_entries
from deepseek_eval.results import load_models
from deepseek_eval.run import evaluate
from deepseek_eval.task import Item, Output


def up_to(number: int) -> Scripted:
    return Scripted(lambda one: right(one) if int(one.id) < number else "0", name=f"up to {number}")


TASKS = {"addition": addition(), "second": addition(name="second")}


def test_a_real_difference_and_none(tmp_path: Path) -> None:
    evaluate(up_to(20), tasks=TASKS.values(), output_dir=tmp_path / "a")
    evaluate(up_to(38), tasks=TASKS.values(), output_dir=tmp_path / "b")
    evaluate(up_to(22), tasks=TASKS.values(), output_dir=tmp_path / "c")
    better = compare(tmp_path / "a", tmp_path / "b", tasks=TASKS)
    assert [one.verdict for one in better.tasks] == ["better", "better"] and not better.worse
    (one, _) = better.tasks
    assert (one.difference.only_first, one.difference.only_second) == (0, 18)
    assert one.p_holm == 2 * one.difference.p_value
    assert better.overall is not None
    assert (better.overall.first, better.overall.second, better.overall.kept) == pytest.approx((0.5, 0.95, 1.9))
    assert compare(tmp_path / "b", tmp_path / "a", tasks=TASKS).worse == ["addition", "second"]
    unclear = compare(tmp_path / "a", tmp_path / "c", tasks=TASKS).tasks[0]
    assert unclear.verdict == "not shown"
    assert unclear.difference.detectable is not None and unclear.difference.detectable > 0.05


def test_only_items_that_both_answered(tmp_path: Path) -> None:
    def answer(one: Item) -> Output | str:
        return Output(error="hung") if int(one.id) < 5 else right(one)

    evaluate(Scripted(answer), tasks=[addition()], output_dir=tmp_path / "a")
    evaluate(up_to(38), tasks=[addition()], output_dir=tmp_path / "b", limit=30)
    (one,) = compare(tmp_path / "a", tmp_path / "b", tasks=TASKS).tasks
    assert one.difference.items + one.left_out == 40
    assert one.difference.items <= 30


def test_what_is_not_the_same_is_not_compared(tmp_path: Path) -> None:
    evaluate(up_to(20), tasks=TASKS.values(), output_dir=tmp_path / "a")
    other = [addition(version=2), TASKS["second"]]
    evaluate(up_to(20), tasks=other, output_dir=tmp_path / "b")
    made = compare(tmp_path / "a", tmp_path / "b", tasks=TASKS)
    assert [one.task for one in made.tasks] == ["second"]
    assert "version differs" in made.skipped["addition"]
    reworded = addition([item(number, prompt=f"after {number}:") for number in range(40)])
    evaluate(up_to(20), tasks=[reworded], output_dir=tmp_path / "c")
    with pytest.raises(ConfigurationError, match="other words"):
        compare(tmp_path / "a", tmp_path / "c", tasks=TASKS)
    with pytest.raises(ConfigurationError, match="not a task of this installation"):
        compare(tmp_path / "a", tmp_path / "a")


def test_a_run_of_several_models(tmp_path: Path) -> None:
    evaluate([up_to(10), up_to(39)], tasks=[addition()], output_dir=tmp_path)
    named = compare(f"{tmp_path}#up to 39", f"{tmp_path}#up to 10", tasks=TASKS)
    assert named.worse == ["addition"]
    with pytest.raises(ConfigurationError, match="several models"):
        compare(tmp_path, tmp_path, tasks=TASKS)
    with pytest.raises(ConfigurationError, match="no model 'up to 7'"):
        compare(f"{tmp_path}#up to 7", tmp_path, tasks=TASKS)


def test_a_folder_may_have_a_hash_in_its_name(tmp_path: Path) -> None:
    place = tmp_path / "run#1"
    evaluate([up_to(10), up_to(39)], tasks=[addition()], output_dir=place)
    assert load_models(place)[1:] == (place, list(load_models(place)[0].models))
    assert [one.name for one in load_models(f"{place}#up to 39")[2]] == ["up to 39"]
    with pytest.raises(ConfigurationError, match="no model 'x'"):
        load_models(f"{place}#x")
    with pytest.raises(DataError, match="cannot be read"):
        load_models(f"{tmp_path}/nothing#x")


def test_a_reason_names_the_model_of_two_with_one_name(tmp_path: Path) -> None:
    evaluate(up_to(10), tasks=list(TASKS.values()), output_dir=tmp_path / "a")
    evaluate(up_to(10), tasks=[TASKS["second"]], output_dir=tmp_path / "b")
    (pair,) = all_pairs(read_entries([tmp_path / "a", tmp_path / "b"]), TASKS)
    assert pair.comparison is not None
    assert pair.comparison.skipped == {"addition": "up to 10 (b) was not run on it"}
