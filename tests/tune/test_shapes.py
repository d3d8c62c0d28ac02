"""Which shape a row has, and the conversation it becomes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deepseek.errors import ConfigurationError, DataError
from deepseek_tune.data.problems import COLUMNS, EMPTY_ANSWER, RowError
from deepseek_tune.data.read import Row
from deepseek_tune.data.shapes import MAX_LISTED_LABELS, Chat, Shape, Text, choose_shape, with_labels

PATH = Path("data.jsonl")


def shape_of(*rows: dict[str, Any], **named: Any) -> Shape:
    return choose_shape(PATH, [Row(i + 1, row) for i, row in enumerate(rows)], **named)


def turns(row: dict[str, Any], **named: Any) -> list[tuple[str, Any]]:
    chat = shape_of(row, **named).read(row)
    assert isinstance(chat, Chat)
    return [(message["role"], message["content"]) for message in chat.messages]


@pytest.mark.parametrize(
    ("row", "name", "expected"),
    [
        (
            {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
            "messages",
            [("user", "Q"), ("assistant", "A")],
        ),
        (
            {
                "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}],
                "system": "S",
            },
            "conversations",
            [("system", "S"), ("user", "Q"), ("assistant", "A")],
        ),
        (
            {"instruction": "I", "input": "", "output": "A"},
            "instruction",
            [("user", "I"), ("assistant", "A")],
        ),
        (
            {"instruction": "I", "input": "X", "output": "A", "text": "I X A"},
            "instruction",
            [("user", "I\n\nX"), ("assistant", "A")],
        ),
        ({"prompt": "Q", "completion": "A"}, "prompt", [("user", "Q"), ("assistant", "A")]),
        ({"Q": "Q", "A": "A", "label": "0"}, "question", [("user", "Q"), ("assistant", "A")]),
        (
            {"question": "Q", "context": "C", "answer": "A"},
            "question",
            [("user", "C\n\nQ"), ("assistant", "A")],
        ),
        ({"text": "T", "category": "L"}, "label", [("user", "T"), ("assistant", "L")]),
        ({"text": "T", "label": 3}, "label", [("user", "T"), ("assistant", "3")]),
    ],
)
def test_shapes_are_told_by_columns(row: dict[str, Any], name: str, expected: list[tuple[str, str]]) -> None:
    assert shape_of(row).name == name
    assert turns(row) == expected


def test_plain_text() -> None:
    assert shape_of({"text": "T", "source": "web"}).read({"text": "T"}) == Text("T")


def test_columns_can_be_named() -> None:
    row = {"frage": "Q", "antwort": "A", "text": "T"}
    assert shape_of(row).name == "text"
    named = {"prompt": "frage", "completion": "antwort"}
    assert turns(row, shape="prompt", columns=named) == [("user", "Q"), ("assistant", "A")]
    assert turns({"frage": "Q", "antwort": "A"}, columns=named) == [("user", "Q"), ("assistant", "A")]


def test_unknown_columns_are_listed_with_what_is_expected() -> None:
    with pytest.raises(DataError, match=r"'frage', 'antwort'.*messages: messages;.*question\|query\|q and") as caught:
        shape_of({"frage": "Q", "antwort": "A"})
    assert "columns={'prompt'" in str(caught.value)
    with pytest.raises(DataError, match="Missing: completion"):
        shape_of({"prompt": "Q"}, shape="prompt")
    with pytest.raises(ConfigurationError, match="not 'chat'"):
        shape_of({"prompt": "Q"}, shape="chat")
    with pytest.raises(ConfigurationError, match="'anwser'"):
        shape_of({"prompt": "Q"}, shape="prompt", columns={"anwser": "prompt"})
    with pytest.raises(DataError, match="no rows"):
        shape_of()


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"messages": "Q"}, COLUMNS),
        ({"messages": []}, COLUMNS),
        ({"messages": ["Q"]}, COLUMNS),
        ({"messages": [{"content": "Q"}]}, COLUMNS),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "A"}]}, COLUMNS),
        ({"messages": [{"role": "user", "content": "Q"}]}, EMPTY_ANSWER),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": " \n"}]}, EMPTY_ANSWER),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": None}]}, EMPTY_ANSWER),
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": 4}]}, COLUMNS),
        ({"conversations": [{"from": "martian", "value": "Q"}]}, COLUMNS),
        ({"prompt": "Q", "completion": None}, COLUMNS),
        ({"prompt": "Q", "completion": ""}, EMPTY_ANSWER),
        ({"prompt": ["Q"], "completion": "A"}, COLUMNS),
        ({"text": "T", "label": 1.5}, COLUMNS),
        ({"text": " "}, EMPTY_ANSWER),
    ],
)
def test_bad_rows(row: dict[str, Any], kind: str) -> None:
    with pytest.raises(RowError) as caught:
        shape_of(row).read(row)
    assert caught.value.kind == kind


def test_what_follows_the_last_answer_is_left_out_and_nulls_are_no_fields() -> None:
    messages = [
        {"role": "user", "content": "Q", "tool_calls": None},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": {}}}]},
        {"role": "user", "content": "thanks"},
    ]
    chat = shape_of({"messages": messages, "tools": []}).read({"messages": messages, "tools": []})
    assert isinstance(chat, Chat) and chat.tools is None
    assert [sorted(message) for message in chat.messages] == [["content", "role"], ["content", "role", "tool_calls"]]


@pytest.mark.parametrize("count", [1, 2, MAX_LISTED_LABELS, MAX_LISTED_LABELS + 1])
def test_few_labels_are_listed(count: int) -> None:
    rows = [Row(i + 1, {"text": f"T{i}", "label": f"L{i % count:02d}"}) for i in range(2 * count)]
    shape = with_labels(choose_shape(PATH, rows), iter(rows))
    if 1 < count <= MAX_LISTED_LABELS:
        assert shape.instruction.startswith("Answer with one of these labels: L00, L01")
        chat = shape.read(rows[0].values)
        assert isinstance(chat, Chat) and chat.messages[0]["content"] == f"{shape.instruction}\n\nT0"
    else:
        assert shape.instruction == ""
