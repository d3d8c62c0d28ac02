"""The shapes that training data comes in, and how a row of each becomes a conversation or a text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.errors import ConfigurationError, DataError
from deepseek_tune.data.problems import COLUMNS, EMPTY_ANSWER, Problem, RowError
from deepseek_tune.data.read import Row

SAMPLE_ROWS = 20
"""Rows whose columns say the shape."""
MAX_LISTED_LABELS = 32
"""Labels that an instruction lists; with more, the labels are learned without it."""

_ANY_ANSWER = ("answer", "response", "output", "completion")

# Shape -> what it needs -> the columns that may hold it, best first. A shape is told by its needs, in this order.
NEEDED: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"messages": ("messages",)},
    "conversations": {"conversations": ("conversations",)},
    "instruction": {"instruction": ("instruction",), "output": ("output", "response", "answer")},
    "prompt": {"prompt": ("prompt",), "completion": ("completion", "response", "answer", "output")},
    "question": {"question": ("question", "query", "q"), "answer": (*_ANY_ANSWER, "a")},
    "label": {
        "text": ("text", "sentence", "utterance", "query"),
        "label": ("label", "category", "intent", "class", "label_text"),
    },
    "text": {"text": ("text", "content")},
}
_OPTIONAL: dict[str, dict[str, tuple[str, ...]]] = {
    "messages": {"tools": ("tools",)},
    "conversations": {"system": ("system",), "tools": ("tools",)},
    "instruction": {"input": ("input", "context"), "system": ("system",)},
    "prompt": {"system": ("system",)},
    "question": {"context": ("context",), "system": ("system",)},
}
_SHAREGPT_ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "model", "bot"), "assistant"),
    "system": "system",
    **dict.fromkeys(("tool", "observation", "function_response"), "tool"),
}


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation whose last message is the assistant's; all the assistant's messages are trained on."""

    messages: list[dict[str, Any]]
    tools: list[Any] | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """A text that is trained on as a whole."""

    text: str


@dataclass(frozen=True)
class Shape:
    """How rows are read.

    Attributes:
        name: a key of ``NEEDED``.
        columns: what is needed (and the optional things that are there) -> the column that holds it.
        instruction: what stands before each text of the shape ``label``.
    """

    name: str
    columns: Mapping[str, str]
    instruction: str = ""

    def read(self, values: Mapping[str, Any]) -> Chat | Text:
        """The conversation or text of a row. Raises RowError if the row lacks something."""
        match self.name:
            case "messages":
                return _chat(self._list(values, "messages"), self._tools(values))
            case "conversations":
                turns = [_sharegpt(turn) for turn in self._list(values, "conversations")]
                return _chat(self._system(values) + turns, self._tools(values))
            case "text":
                text = self._string(values, "text")
                if not text.strip():
                    raise RowError(EMPTY_ANSWER, f"the text ({self.columns['text']!r}) is empty")
                return Text(text)
        question, answer = self._pair(values)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return _chat(self._system(values) + turns, None)

    def _pair(self, values: Mapping[str, Any]) -> tuple[str, str]:
        match self.name:
            case "instruction":
                given = self._string(values, "instruction"), self._string(values, "input")
                return "\n\n".join(part for part in given if part), self._string(values, "output")
            case "prompt":
                return self._string(values, "prompt"), self._string(values, "completion")
            case "question":
                given = self._string(values, "context"), self._string(values, "question")
                return "\n\n".join(part for part in given if part), self._string(values, "answer")
            case _:
                given = self.instruction, self._string(values, "text")
                return "\n\n".join(part for part in given if part), self.label(values)

    def label(self, values: Mapping[str, Any]) -> str:
        """The row's label as text. Raises RowError."""
        value = values.get(self.columns["label"])
        return str(value) if type(value) is int else self._string(values, "label")

    def _system(self, values: Mapping[str, Any]) -> list[dict[str, Any]]:
        system = self._string(values, "system")
        return [{"role": "system", "content": system}] if system else []

    def _string(self, values: Mapping[str, Any], what: str) -> str:
        """A column's text; "" where the shape has no such column, or an optional one is empty."""
        column = self.columns.get(what)
        if column is None:
            return ""
        value = values.get(column)
        if isinstance(value, str):
            return value
        if value is None and what not in NEEDED[self.name]:
            return ""
        raise RowError(COLUMNS, f"{column!r} must be text{_found(values, column)}")

    def _list(self, values: Mapping[str, Any], what: str) -> list[Any]:
        value = values.get(self.columns[what])
        if not isinstance(value, list) or not value:
            column = self.columns[what]
            raise RowError(COLUMNS, f"{column!r} must be a list of messages{_found(values, column)}")
        return value

    def _tools(self, values: Mapping[str, Any]) -> list[Any] | None:
        tools = values.get(self.columns.get("tools", ""))
        if tools is not None and not isinstance(tools, list):
            raise RowError(COLUMNS, f"{self.columns['tools']!r} must be a list of tool descriptions")
        return tools or None


def _found(values: Mapping[str, Any], column: str) -> str:
    return f", not {type(values[column]).__name__}" if column in values else ", and is missing"


def _sharegpt(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise RowError(COLUMNS, f"a turn must be an object with 'from' and 'value', not {type(turn).__name__}")
    if "role" in turn and "content" in turn:
        return dict(turn)
    role = _SHAREGPT_ROLES.get(str(turn.get("from")))
    if role is None:
        known = ", ".join(_SHAREGPT_ROLES)
        raise RowError(COLUMNS, f"a turn's 'from' must be one of {known}, not {turn.get('from')!r}")
    return {"role": role, "content": turn.get("value")}


def _chat(messages: list[Any], tools: list[Any] | None) -> Chat:
    """Check the messages, and leave out those behind the last answer: nothing is learned from them."""
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RowError(COLUMNS, f"message {index + 1} must be an object with 'role' and 'content'")
        if message["role"] == "assistant":
            _check_answer(index, message)
        elif not isinstance(message.get("content"), (str, list)):
            raise RowError(COLUMNS, f"message {index + 1} ({message['role']}) has no content")
    answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not answers:
        raise RowError(EMPTY_ANSWER, "no message is the assistant's")
    return Chat([_without_nulls(message) for message in messages[: answers[-1] + 1]], tools)


def _check_answer(index: int, message: Mapping[str, Any]) -> None:
    content = message.get("content")
    if content is not None and not isinstance(content, (str, list)):
        raise RowError(COLUMNS, f"message {index + 1} (assistant): the content must be text")
    if not message.get("tool_calls") and (not content or (isinstance(content, str) and not content.strip())):
        raise RowError(EMPTY_ANSWER, f"message {index + 1} (assistant) is empty")


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """Parquet gives every message every field of any message, as null."""
    return {key: value for key, value in message.items() if value is not None or key == "content"}


def choose_shape(
    path: Path, rows: Iterable[Row | Problem], shape: str = "auto", columns: Mapping[str, str] | None = None
) -> Shape:
    """The shape of the data in ``path``, told by the columns of its first rows.

    Args:
        rows: those of ``path``, of which the first few are taken.
        shape: a key of ``NEEDED``, or ``auto``.
        columns: what is needed -> the column that holds it, where a column has another name.

    Raises:
        DataError: no shape fits; the message has the columns found and those expected.
        ConfigurationError: ``shape`` or ``columns`` name what there is not.
    """
    found, problem = _columns(rows)
    if not found:
        detail = f" The first problem, in {problem}" if problem else ""
        raise DataError(f"{path} has no rows that can be read.{detail}")
    named = dict(columns or {})
    if shape == "auto":
        shape = next((name for name in NEEDED if _missing(name, found, named) == []), "")
        if not shape:
            expected = "; ".join(f"{name}: {_describe(name)}" for name in NEEDED)
            raise DataError(
                f"{path} has the columns {_quoted(found)}, which is no known shape of training data. Expected is one "
                f"of: {expected}. Rename the columns, or name the shape and its columns: "
                "shape='prompt', columns={'prompt': ..., 'completion': ...}."
            )
    elif shape not in NEEDED:
        raise ConfigurationError(f"shape must be auto, {', '.join(NEEDED)}; not {shape!r}.")
    known = NEEDED[shape] | _OPTIONAL.get(shape, {})
    if unknown := sorted(set(named) - set(known)):
        raise ConfigurationError(f"columns names {_quoted(unknown)}; the shape {shape!r} has {', '.join(known)}.")
    if missing := _missing(shape, found, named):
        raise DataError(
            f"{path} has the columns {_quoted(found)}; the shape {shape!r} needs {_describe(shape)}. "
            f"Missing: {', '.join(missing)}. Name them with columns={{{missing[0]!r}: ...}}."
        )
    places = {what: named.get(what) or _column(names, found) for what, names in known.items()}
    return Shape(shape, {what: column for what, column in places.items() if column})


def _columns(rows: Iterable[Row | Problem]) -> tuple[list[str], Problem | None]:
    """All columns of the first good rows, in order; and the first problem."""
    found: dict[str, None] = {}
    first: Problem | None = None
    good = 0
    for index, row in enumerate(rows):
        if isinstance(row, Row):
            found.update(dict.fromkeys(row.values))
            good += 1
        else:
            first = first or row
        if good == SAMPLE_ROWS or index == 50 * SAMPLE_ROWS:
            break
    return list(found), first


def _missing(shape: str, found: Sequence[str], named: Mapping[str, str]) -> list[str]:
    needed = NEEDED[shape]
    return [what for what, names in needed.items() if named.get(what, _column(names, found)) not in found]


def _column(names: Sequence[str], found: Sequence[str]) -> str | None:
    """The first of ``names`` that is a column, in any case of letters."""
    by_lower = {column.lower(): column for column in reversed(found)}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _describe(shape: str) -> str:
    return " and ".join("|".join(names) for names in NEEDED[shape].values())


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def with_labels(shape: Shape, rows: Iterator[Row | Problem]) -> Shape:
    """``shape`` with an instruction that lists the labels in ``rows``, if they are few; reads no more than needed."""
    labels: set[str] = set()
    for row in rows:
        if not isinstance(row, Row):
            continue
        try:
            label = shape.label(row.values)
        except RowError:
            continue
        if label.strip():
            labels.add(label)
        if len(labels) > MAX_LISTED_LABELS:
            return shape
    instruction = f"Answer with one of these labels: {', '.join(sorted(labels))}."
    return Shape(shape.name, shape.columns, instruction) if len(labels) > 1 else shape
