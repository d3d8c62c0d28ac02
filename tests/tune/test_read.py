"""Rows of every format, whole and broken."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from deepseek.errors import DataError
from deepseek_tune.data import read
from deepseek_tune.data.problems import ENCODING, MALFORMED, Problem
from deepseek_tune.data.read import Row, read_rows

ROWS = [{"id": i, "text": f'line {i}\nsecond, "quoted" {"長い" * i}'} for i in range(9)]


def values(path: Path) -> list[dict[str, Any]]:
    found = list(read_rows(path))
    assert all(isinstance(row, Row) for row in found), found
    return [row.values for row in found if isinstance(row, Row)]


def as_csv(path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["id", "text"], delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(ROWS)


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    contents = {
        "lines.jsonl": lines,
        "lines.json": lines,
        "bom.jsonl": "\ufeff" + lines,
        "blank.jsonl": lines.replace("\n", "\n\n"),
        "array.json": json.dumps(ROWS, ensure_ascii=False),
        "pretty.json": json.dumps(ROWS, indent=2),
        "object.json": json.dumps({"name": {"data": [1]}, "data": ROWS}, indent=1),
        "one_line_object.json": json.dumps({"data": ROWS}),
    }
    for name, text in contents.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert values(tmp_path / name) == ROWS, name
        with gzip.open(tmp_path / f"{name}.gz", "wt", encoding="utf-8") as file:
            file.write(text)
        assert values(tmp_path / f"{name}.gz") == ROWS, name
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "table.parquet")
    assert values(tmp_path / "table.parquet") == ROWS
    for name in ("table.csv", "table.tsv"):
        as_csv(tmp_path / name)
        assert values(tmp_path / name) == [{"id": str(row["id"]), "text": row["text"]} for row in ROWS]


@pytest.mark.parametrize("chunk", [1, 2, 7, 64])
def test_a_json_array_is_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(read, "_CHUNK", chunk)
    rows = [*ROWS, {"number": 1234.5e-3, "nested": [{"a": [1, 2, {}]}, "]}"]}]
    path = tmp_path / "array.json"
    path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    assert values(path) == rows


def test_json_rows_know_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "array.json"
    path.write_text('[\n{"a": 1},\n\n{"a":\n 2}, [3],\n"four", 5\n]')
    found = list(read_rows(path))
    assert [(type(row).__name__, row.number if isinstance(row, Row) else row.row) for row in found] == [
        ("Row", 2),
        ("Row", 4),
        ("Problem", 5),
        ("Problem", 6),
        ("Problem", 6),
    ]


def test_broken_lines_cost_only_themselves(tmp_path: Path) -> None:
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n\xe9\xff{}\n[1]\n\n{"a": 2}')
    found = list(read_rows(path))
    assert [row.number for row in found if isinstance(row, Row)] == [1, 6]
    assert [(row.row, row.kind) for row in found if isinstance(row, Problem)] == [
        (2, MALFORMED),
        (3, ENCODING),
        (4, MALFORMED),
    ]


def test_broken_csv_rows(tmp_path: Path) -> None:
    path = tmp_path / "broken.csv"
    path.write_text('text;label\none;1\ntwo\n"three\nlines";3\nfour;4;5\n\n"open;6\n')
    found = list(read_rows(path))
    assert [(row.number, row.values["label"]) for row in found if isinstance(row, Row)] == [(2, "1"), (5, "3")]
    assert [row.row for row in found if isinstance(row, Problem)] == [3, 6, 8]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("rows.txt", b"", "is a .json, .jsonl"),
        ("rows.parquet.gz", b"", "is a .json, .jsonl"),
        ("rows.json", b'"text"', "must be an array"),
        ("rows.json", b"", "must be an array"),
        ("rows.json", b'{"rows": [{}],\n"more": 1, \n "data": {}}', "'rows', 'more', 'data'"),
        ("rows.json", b'[{"a": 1},\n{"a": 2,}]', "line 2"),
        ("rows.json", b'[{"a": 1},\n{"a": 2}', "ends in the middle"),
        ("rows.json", b'[{"a": 1} {"a": 2}]', "is expected"),
        ("rows.json", b"[" * 100_000, "not JSON"),
        ("rows.jsonl", '{"a": 1}'.encode("utf-16"), "save it as UTF-8"),
        ("rows.csv", b"", "must name the columns"),
        ("rows.csv", b"a,a\n1,2\n", "each differently"),
        ("rows.parquet", b"PAR1 but no more", "not a Parquet file"),
        ("rows.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 100, mtime=0)[:-9], "damaged or cut off"),
        ("rows.jsonl.gz", b'{"a": 1}\n', "damaged or cut off"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=said):
        list(read_rows(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        list(read_rows(tmp_path / "none.jsonl"))
