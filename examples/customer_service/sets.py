"""Public customer-service data as conversations: (those to learn from, those to judge by)."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Conversation = list[dict[str, str]]
Parts = tuple[list[Conversation], list[Conversation]]

INTENT = "Name the intent of this customer's message in a few words."


@dataclass(frozen=True)
class DataSet:
    """One public set.

    Attributes:
        files: what the folder of this name must hold; each may have ``.gz`` behind its name.
        source: where to get them.
        read: (folder) -> conversations to learn from and to judge by, in the order of the files.
        exact: answers are short, and right or wrong.
    """

    files: tuple[str, ...]
    source: str
    read: Callable[[Path], Parts]
    exact: bool


class MissingData(Exception):
    """Files that are not there; the message says where they come from."""


def load(name: str, data: Path, train: int, test: int, seed: int) -> Parts:
    """At most ``train`` and ``test`` conversations of a set below ``data``, drawn at random. Raises MissingData."""
    chosen = SETS[name]
    for file in chosen.files:
        if not (data / name / file).exists() and not (data / name / f"{file}.gz").exists():
            raise MissingData(
                f"{data / name / file} is not there. Get it from {chosen.source} and put it there, or name "
                "another folder (--data)."
            )
    learned, judged = chosen.read(data / name)
    draw = random.Random(seed)
    return draw.sample(learned, min(train, len(learned))), draw.sample(judged, min(test, len(judged)))


def _open(path: Path) -> io.TextIOBase:
    if path.exists():
        return path.open(encoding="utf-8", newline="")
    return gzip.open(f"{path}.gz", "rt", encoding="utf-8", newline="")


def _turn(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _intents(rows: Iterable[tuple[str, str]]) -> list[Conversation]:
    return [_turn(f"{INTENT}\n\n{text}", intent.replace("_", " ")) for text, intent in rows]


def _banking77(folder: Path) -> Parts:
    parts = []
    for name in ("train.csv", "test.csv"):
        with _open(folder / name) as file:
            parts.append(_intents((row["text"], row["category"]) for row in csv.DictReader(file)))
    return parts[0], parts[1]


def _clinc150(folder: Path) -> Parts:
    with _open(folder / "data_full.json") as file:
        data: dict[str, list[tuple[str, str]]] = json.load(file)
    return _intents(data["train"]), _intents(data["test"])


def _korean_chatbot(folder: Path) -> Parts:
    with _open(folder / "ChatbotData.csv") as file:
        turns = [_turn(row["Q"], row["A"]) for row in csv.DictReader(file)]
    random.Random(0).shuffle(turns)  # the file is sorted and has no part to judge by
    return turns[1000:], turns[:1000]


def _crosswoz(folder: Path) -> Parts:
    return _dialogues(folder / "val.json.zip"), _dialogues(folder / "test.json.zip")


def _dialogues(path: Path) -> list[Conversation]:
    with zipfile.ZipFile(path) as archive:
        data: dict[str, Any] = json.loads(archive.read(archive.namelist()[0]))
    roles = {"usr": "user", "sys": "assistant"}
    found = []
    for dialogue in data.values():
        turns = [{"role": roles[turn["role"]], "content": turn["content"]} for turn in dialogue["messages"]]
        while turns and turns[-1]["role"] == "user":
            turns.pop()
        if turns and turns[0]["role"] == "user":
            found.append(turns)
    return found


SETS = {
    "banking77": DataSet(
        ("train.csv", "test.csv"),
        "https://github.com/PolyAI-LDN/task-specific-datasets (banking_data, CC-BY-4.0)",
        _banking77,
        exact=True,
    ),
    "clinc150": DataSet(
        ("data_full.json",), "https://github.com/clinc/oos-eval (data, CC-BY-3.0)", _clinc150, exact=True
    ),
    "korean_chatbot": DataSet(
        ("ChatbotData.csv",), "https://github.com/songys/Chatbot_data (MIT)", _korean_chatbot, exact=False
    ),
    "crosswoz": DataSet(
        ("val.json.zip", "test.json.zip"),
        "https://github.com/thu-coai/CrossWOZ (data/crosswoz, Apache-2.0)",
        _crosswoz,
        exact=False,
    ),
}
