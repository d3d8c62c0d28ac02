"""Training data of very different lengths: bank questions, short Korean chats, long Chinese dialogues.

Of the sets in ``DEEPSEEK_BENCH_DATA`` (Banking77, Chatbot_data, CrossWOZ: see their licences), or made up where it is
not there.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import random
import zipfile
from pathlib import Path
from typing import Any

SHARES = {"banking77": 0.5, "korean_chatbot": 0.3, "crosswoz": 0.2}

Conversation = list[dict[str, str]]


def data_folder() -> Path | None:
    """Where real data is."""
    folder = Path(os.environ.get("DEEPSEEK_BENCH_DATA") or "../shared/data")
    return folder if folder.is_dir() else None


def mixed(count: int, seed: int = 0) -> list[Conversation]:
    """``count`` conversations in random order."""
    generator = random.Random(seed)
    folder = data_folder()
    if folder is None:
        return [_made_up(generator) for _ in range(count)]
    read = {"banking77": _banking, "korean_chatbot": _chatbot, "crosswoz": _crosswoz}
    found: list[Conversation] = []
    for name, share in SHARES.items():
        rows = read[name](folder / name)
        found += generator.sample(rows, min(len(rows), round(share * count)))
    generator.shuffle(found)
    return found


def banking(folder: Path, name: str = "train.csv.gz") -> list[tuple[str, str]]:
    """(question, intent) of Banking77."""
    raw = (folder / name).read_bytes()
    text = (gzip.decompress(raw) if name.endswith(".gz") else raw).decode("utf-8")
    return [(row["text"], row["category"]) for row in csv.DictReader(io.StringIO(text))]


def _banking(folder: Path) -> list[Conversation]:
    return [_pair(text, intent) for text, intent in banking(folder)]


def _chatbot(folder: Path) -> list[Conversation]:
    with gzip.open(folder / "ChatbotData.csv.gz", "rt", encoding="utf-8") as file:
        return [_pair(row["Q"], row["A"]) for row in csv.DictReader(file)]


def _crosswoz(folder: Path) -> list[Conversation]:
    with zipfile.ZipFile(folder / "val.json.zip") as archive:
        dialogues: dict[str, Any] = json.loads(archive.read(archive.namelist()[0]))
    roles = {"usr": "user", "sys": "assistant"}
    found = []
    for dialogue in dialogues.values():
        turns = [{"role": roles[turn["role"]], "content": turn["content"]} for turn in dialogue["messages"]]
        found.append(turns if turns[-1]["role"] == "assistant" else turns[:-1])
    return found


def _pair(question: str, answer: str) -> Conversation:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _made_up(generator: random.Random) -> Conversation:
    words = [
        "card",
        "account",
        "transfer",
        "limit",
        "refund",
        "pending",
        "order",
        "parcel",
        "street",
        "morning",
        "please",
        "where",
        "which",
    ]
    length = max(4, min(600, round(generator.lognormvariate(3, 1))))
    return _pair(*(" ".join(generator.choices(words, k=count)) for count in (length, max(2, length // 4))))


def intents(folder: Path, name: str) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(text, intent in words) of ``banking77`` or ``clinc150``: the rows to learn from, and those of the test."""
    if name == "banking77":
        parts = [banking(folder / name, file) for file in ("train.csv.gz", "test.csv")]
    else:
        data = json.loads(gzip.decompress((folder / name / "data_full.json.gz").read_bytes()))
        parts = [data["train"], data["test"]]
    train, test = ([(text.strip(), intent.replace("_", " ")) for text, intent in part] for part in parts)
    return train, test
