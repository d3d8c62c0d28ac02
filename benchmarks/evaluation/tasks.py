"""The same items for lm-evaluation-harness: its own task definitions, over rows of the local datasets."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek_eval.datasets import Files, open_all
from deepseek_eval.registry import select
from deepseek_eval.select import items_of, subset
from deepseek_eval.task import Choose, Item

Row = dict[str, Any]
Rows = Callable[[Files], Mapping[str, Row]]


@dataclass(frozen=True)
class Pair:
    """A task that both sides define.

    Attributes:
        include: the harness's definition, relative to its folder of tasks; "" for one that is ours alone.
        rows: item id -> the row as the harness's template wants it; None makes it of our item.
        fields: of the definition, in place of the included ones.
        scores: (our metric, theirs, their filter), the first of which should agree.
        shots: examples in the prompt.
        generates: answers are generated, not chosen.
    """

    name: str
    include: str
    rows: Rows | None
    scores: tuple[tuple[str, str, str], ...] = (("accuracy", "acc", "none"),)
    fields: tuple[tuple[str, Any], ...] = ()
    shots: int = 0
    generates: bool = False


def _xcopa(files: Files) -> Mapping[str, Row]:
    return {f"{part}/{row['idx']}": row for part in ("test", "val") for row in files.read(f"{part}.zh.jsonl")}


def _jcommonsenseqa(files: Files) -> Mapping[str, Row]:
    rows = files.read("jcommonsenseqa-v1.3/valid-v1.3.json")
    return {str(row["q_id"]): {**row, "choices": [row[f"choice{index}"] for index in range(5)]} for row in rows}


def _winogender(files: Files) -> Mapping[str, Row]:
    pronouns = {"he", "she", "they", "him", "her", "them", "his", "their"}
    found = {}
    for row in files.read("all_sentences.tsv"):
        occupation, participant, label, _, _ = row["sentid"].split(".")
        words = row["sentence"].replace(".", " ").replace(",", " ").split()
        found[row["sentid"].removesuffix(".txt")] = {
            "sentence": row["sentence"],
            "pronoun": next(word for word in words if word in pronouns),
            "occupation": occupation,
            "participant": participant,
            "label": int(label),
        }
    return found


def _crows_pairs(files: Files) -> Mapping[str, Row]:
    return {
        str(index): {"sent_more": row["sent_more"], "sent_less": row["sent_less"]}
        for index, row in enumerate(files.read("crows_pairs_anonymized.csv"))
    }


def _gsm8k(files: Files) -> Mapping[str, Row]:
    return {f"test/{index}": row for index, row in enumerate(files.read("test.jsonl"))}


_OWN_CHOICE = (
    ("output_type", "multiple_choice"),
    ("doc_to_text", "{{prompt}}"),
    ("doc_to_target", "label"),
    ("doc_to_choice", "{{choices}}"),
    ("target_delimiter", ""),
    ("metric_list", [{"metric": "acc"}]),
)
PAIRS = (
    Pair("xcopa_zh", "xcopa/default_zh.yaml", _xcopa),
    Pair("jcommonsenseqa", "japanese_leaderboard/ja_leaderboard_jcommonsenseqa.yaml", _jcommonsenseqa),
    Pair("winogender", "winogender/winogender.yaml", _winogender),
    Pair(
        "crows_pairs",
        "crows_pairs/crows_pairs_english.yaml",
        _crows_pairs,
        scores=(("stereotype_share", "pct_stereotype", "none"),),
    ),
    Pair("sib200_en", "", None, fields=_OWN_CHOICE),
    Pair(
        "gsm8k",
        "gsm8k/gsm8k.yaml",
        _gsm8k,
        scores=(("strict", "exact_match", "strict-match"), ("exact_match", "exact_match", "flexible-extract")),
        shots=5,
        generates=True,
    ),
)


def items_for(pair: Pair, data: Path, limit: int, seed: int) -> tuple[list[Item], Files]:
    """The items that :func:`deepseek_eval.evaluate` asks with these settings, and their dataset."""
    task = select([pair.name])[0]
    files = open_all(task.datasets, data, download=False, progress=None)
    return subset(items_of(task, files, pair.shots)[0], limit, seed), files[task.datasets[0]]


def write_task(pair: Pair, items: list[Item], files: Files, definitions: Path, folder: Path) -> None:
    """The harness's task ``bench_NAME``: a definition and its rows."""
    rows = [{**_row(pair, item, files), "item": item.id} for item in items]
    path = folder / f"{pair.name}.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    definition: dict[str, Any] = {
        **({"include": str(definitions / pair.include)} if pair.include else {}),
        "task": f"bench_{pair.name}",
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": {"test": str(path)}},
        **dict.fromkeys(("training_split", "validation_split", "fewshot_split")),
        "test_split": "test",
        "num_fewshot": 0,
        **dict(pair.fields),
    }
    # JSON is YAML.
    (folder / f"{pair.name}.yaml").write_text(json.dumps(definition, indent=1), encoding="utf-8")


def _row(pair: Pair, item: Item, files: Files) -> Row:
    if pair.rows is None:
        assert isinstance(item.ask, Choose)
        return {"prompt": item.prompt, "choices": item.ask.continuations, "label": item.target}
    row = pair.rows(files)[item.id]
    if pair.shots:
        # Which examples the harness shows is drawn by chance, so ours stand in the question; its template surrounds it.
        assert isinstance(item.prompt, str)
        return {**row, "question": item.prompt.removeprefix("Question: ").removesuffix("\nAnswer:")}
    return row
