"""Tasks of users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepseek.errors import ConfigurationError, DataError
from deepseek_eval.registry import select
from deepseek_eval.task import Choose, Generate, Item, Likelihood, Message, Output, Sample
from deepseek_eval.task_file import load_task_file

ROWS = [
    {"country": "France", "city": "Paris", "near": ["Paris", "Lyon"]},
    {"country": "Peru", "city": "Lima", "near": ["Cusco", "Lima"]},
]
FIELDS = {
    "name": "capitals",
    "data": "rows.jsonl",
    "prompt": "The capital of {country} is",
    "answer": "{city}",
    "scorer": "exact",
}


def written(folder: Path, rows: list[dict[str, Any]] = ROWS, **changes: Any) -> Path:
    path = folder / "task.yaml"
    path.write_text(yaml.safe_dump({**FIELDS, **changes}, allow_unicode=True), encoding="utf-8")
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "shots.jsonl").write_text('{"country": "Japan", "city": "Tokyo", "near": ["Tokyo", "Osaka"]}\n')
    return path


def items(path: Path, shots: int | None = None) -> list[Item]:
    task = load_task_file(path)
    return list(task.items({}, task.shots if shots is None else shots))


def test_a_small_file_is_a_task(tmp_path: Path) -> None:
    path = written(tmp_path, groups={"letter": "{country}"}, id="{city}")
    (task,) = select([str(path)])
    first, second = task.items({}, 0)
    assert (first.id, first.prompt, first.target) == ("Paris", "The capital of France is", ["Paris"])
    assert second.groups == {"letter": "Peru"} and isinstance(second.ask, Generate)
    assert task.metrics[0].name == "exact_match"
    scored = task.scorer(first, Output(samples=(Sample(text=" paris.\nAnd"),)))
    assert scored.statistics["exact_match"] == (1.0, 1.0)


def test_examples_come_from_their_own_file(tmp_path: Path) -> None:
    path = written(tmp_path, examples="shots.jsonl", shots=1, description="Capitals.\n\n")
    assert items(path)[0].prompt == "Capitals.\n\nThe capital of Japan is Tokyo\n\nThe capital of France is"
    assert items(path, 0)[0].prompt == "Capitals.\n\nThe capital of France is"
    with pytest.raises(ConfigurationError, match="task capitals has 1 examples to show, so shots cannot be 2"):
        items(path, 2)


def test_choices(tmp_path: Path) -> None:
    first, second = items(written(tmp_path, scorer="choice", choices="near"))
    assert first.ask == Choose(continuations=(" Paris", " Lyon"), labels=("A", "B"))
    assert (first.target, second.target) == (0, 1)
    path = written(tmp_path, scorer="choice", choices=["Paris", "Lima"])
    assert items(path)[1].target == 1
    output = Output(likelihoods=(Likelihood(logprob=-1, tokens=1), Likelihood(logprob=-2, tokens=1)))
    assert load_task_file(path).scorer(items(path)[0], output).statistics["accuracy"] == (1.0, 1.0)


def test_chats_and_json(tmp_path: Path) -> None:
    schema = {"type": "object"}
    rows = [{"q": "one", "a": {"n": 1}}]
    path = written(tmp_path, rows, prompt='{q} {{"n": ?}}', answer="{a}", scorer="json", schema=schema, chat=True)
    (item,) = items(path)
    assert item.prompt == (Message("user", 'one {"n": ?}'),)
    assert item.target == {"schema": schema, "value": {"n": 1}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"promt": "x"}, "unknown field 'promt'. Did you mean prompt"),
        ({"scorer": "acuracy"}, "there is no scorer 'acuracy'"),
        ({"scorer": "choices"}, "Did you mean choice"),
        ({"scorer": "choice"}, "scorer choice needs choices"),
        ({"scorer": "json"}, "needs a schema"),
        ({"scorer": "translation", "languages": ["fr"]}, "needs the target"),
        ({"scorer": "transcription", "languages": []}, "needs the language"),
        ({"scorer": "judge", "grades": [5, 1]}, "grades must be two whole numbers, the lower first"),
        ({"scorer": "judge", "rubric": " "}, "rubric is empty"),
        ({"shots": 2}, "shots need a file of examples"),
        ({"shots": "two"}, "Expected `int`, got `str` - at `\\$.shots`"),
        ({"prompt": "a {country"}, "prompt is no template"),
        ({"prompt": "a {country.name!r}"}, "braces without the name of a field"),
        ({"name": "My Task"}, "name must be lower case"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
    ],
)
def test_wrong_fields_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        load_task_file(written(tmp_path, **changes))
    assert "task.yaml" in str(caught.value)


def test_a_field_that_is_not_there(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(yaml.safe_dump({name: value for name, value in FIELDS.items() if name != "answer"}))
    with pytest.raises(ConfigurationError, match="scorer exact needs an answer"):
        load_task_file(path)


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        (
            [*ROWS, {"county": "Chad", "city": "x"}],
            {},
            "row 3 has no field 'country', which prompt asks for. Did you mean county",
        ),
        ([{"country": "Chad", "city": None}], {}, "row 1 has no field 'city', which answer asks for"),
        (
            [{**ROWS[0], "city": "Nice"}],
            {"scorer": "choice", "choices": "near"},
            "the answer 'Nice' is none of the choices",
        ),
        ([{**ROWS[0], "near": "Paris"}], {"scorer": "choice", "choices": "near"}, "near must be a list"),
        (ROWS, {"scorer": "json", "schema": {}}, "row 1: the answer is not JSON"),
    ],
)
def test_wrong_rows_are_named(
    tmp_path: Path, rows: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        items(written(tmp_path, rows, **changes))
    assert "rows.jsonl" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "is not YAML"), ("- a", "must hold fields"), ("", "must hold fields")]
)
def test_files_that_are_no_tasks(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "task.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        load_task_file(tmp_path / "task.yaml")
    with pytest.raises(DataError, match="there is no task file"):
        load_task_file(tmp_path / "other.yaml")
    with pytest.raises(ConfigurationError, match="is no task file"):
        load_task_file(tmp_path / "task.toml")


def test_a_python_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from deepseek_eval.metrics import mean, one\n"
        "from deepseek_eval.task import Generate, Item, Score, Task\n"
        "def items(files, shots):\n"
        "    yield Item(id='1', prompt='1+1=', ask=Generate(max_tokens=2), target='2')\n"
        "def scorer(item, output):\n"
        "    return Score(statistics={'right': one(output.samples[0].text.strip() == item.target)})\n"
        "task = Task(name='sum', title='', kind='custom', languages=('en',), datasets=(), items=items, scorer=scorer,\n"
        "            metrics=(mean('right'),))\n"
    )
    assert [item.id for item in load_task_file(path).items({}, 0)] == ["1"]
    path.write_text("task = 3")
    with pytest.raises(ConfigurationError, match=r"must have a deepseek_eval\.task\.Task called task, and has 3"):
        load_task_file(path)
