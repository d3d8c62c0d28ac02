"""Examples on disk: what was written comes back, once, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepseek.errors import ConfigurationError, DataError
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_tune.data import cache as cache_module
from deepseek_tune.data.cache import DataSettings, TokenCache, tokenized
from deepseek_tune.data.examples import Encoder
from deepseek_tune.data.problems import DUPLICATE_ID, EMPTY_ANSWER, MALFORMED
from deepseek_tune.data.shapes import Chat
from tests.tokenizer.tiny import CHATML, build, byte_level
from tests.tune.conftest import questions, write_jsonl


def make(path: Path, tokenizer: Tokenizer, root: Path, **settings: Any) -> TokenCache:
    return tokenized(path, tokenizer, DataSettings(**settings), root=root)


@pytest.mark.parametrize("flush", [1, 64, 1 << 20])
def test_examples_come_back(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, flush: int) -> None:
    monkeypatch.setattr(cache_module, "_FLUSH_TOKENS", flush)
    rows = questions(33)
    cache = make(write_jsonl(tmp_path / "data.jsonl", rows), tokenizer, tmp_path / "cache")
    assert len(cache) == len(rows)
    encoder = Encoder(tokenizer, 2048)
    answers = 0
    for index, row in enumerate(rows):
        turns = [{"role": "user", "content": row["question"]}, {"role": "assistant", "content": row["answer"]}]
        (example,) = encoder.encode(Chat(turns)).examples
        ids, bits = cache.example(index)
        ((start, end),) = example.answers
        assert ids.tolist() == example.ids and ids.dtype == np.uint16
        assert np.flatnonzero(bits).tolist() == list(range(start, end))
        assert cache.row(index) == index + 1 and cache.lengths[index] == len(example.ids)
        answers += end - start
    assert cache.answer_tokens == answers


def test_opening_again_reads_nothing(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", questions(5))
    first = make(path, tokenizer, tmp_path)
    monkeypatch.setattr(cache_module, "read_rows", None)
    again = make(path, tokenizer, tmp_path, max_bad_rows=0.5)
    assert again.folder == first.folder and again.problems.rows == 5


def test_the_key_is_content_tokenizer_and_settings(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", questions(5))
    other = build(byte_level() | {"tokenizer.chat_template": CHATML.replace("<|im_start|>", "<|im_start|> ")})
    folders = [make(path, tokenizer, tmp_path).folder, make(path, tokenizer, tmp_path, max_tokens=99).folder]
    folders.append(make(path, other, tmp_path).folder)
    write_jsonl(path, questions(6))
    folders.append(make(path, tokenizer, tmp_path).folder)
    assert len(set(folders)) == len(folders)


def test_bad_rows_below_the_limit_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows: list[Any] = [{"id": i, **row} for i, row in enumerate(questions(8))]
    rows[2] = "not JSON"
    rows[3]["answer"] = ""
    rows[5]["id"] = 4
    rows[6]["question"] = 7
    path = write_jsonl(tmp_path / "data.jsonl", rows)
    cache = make(path, tokenizer, tmp_path, max_bad_rows=0.5)
    assert [cache.row(index) for index in range(len(cache))] == [1, 2, 5, 8]
    assert cache.problems.counts == {MALFORMED: 1, EMPTY_ANSWER: 1, DUPLICATE_ID: 1, "missing or wrong column": 1}
    report = "\n".join(cache.problems.report())
    assert "line 3: not JSON" in report and "line 6: the id 4 was there before" in report
    with pytest.raises(DataError, match=r"(?s)4 of 8 rows.*line 4: message 2 \(assistant\) is empty"):
        make(path, tokenizer, tmp_path, max_bad_rows=0.49)
    with pytest.raises(DataError, match="4 of 8 rows"):
        make(path, tokenizer, tmp_path / "new", max_bad_rows=0.49)
    assert not list((tmp_path / "new").glob("*/meta.json"))


def test_memory_does_not_grow_with_the_data(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 200 characters leaves a digest of its id and a length behind."""
    monkeypatch.setattr(cache_module, "_FLUSH_TOKENS", 4096)
    monkeypatch.setattr("deepseek_tune.data.digests._FEW", 64)
    texts = (f"{number:0200}" for number in range(4000))
    rows = [{"id": text, "text": text} for text in texts]

    def peak(count: int) -> int:
        path = write_jsonl(tmp_path / f"{count}.jsonl", rows[:count])
        tracemalloc.start()
        cache = make(path, tokenizer, tmp_path)
        _, highest = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(cache) == count
        return highest

    peak(10)  # what is loaded when it is first used
    assert (peak(4000) - peak(1000)) / 3000 < 48


def test_hopeless_data_is_given_up_early(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_tune.data.problems.EARLY", 10)
    rows: list[Any] = [*questions(4), *["bad"] * 100]
    with pytest.raises(DataError, match="6 of 10 rows"):
        make(write_jsonl(tmp_path / "data.jsonl", rows), tokenizer, tmp_path)


def test_data_without_examples(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", questions(3))
    with pytest.raises(DataError, match="no examples"):
        make(path, tokenizer, tmp_path, max_tokens=2)
    (tmp_path / "packed.jsonl").write_bytes(b"PK\3\4" + bytes(range(256)))
    with pytest.raises(
        DataError, match=r"no rows that can be read\. The first problem, in line 1: not JSON .*: PK\\x03\\x04"
    ):
        make(tmp_path / "packed.jsonl", tokenizer, tmp_path)
    (tmp_path / "latin.csv").write_bytes("question,answer\ncafé,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"line 2: its text is not Unicode: is the file saved as UTF-8\?"):
        make(tmp_path / "latin.csv", tokenizer, tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        make(tmp_path / "none.jsonl", tokenizer, tmp_path)


def test_labels_are_listed_in_the_prompt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"text": f"T{i}", "category": "even" if i % 2 == 0 else "odd"} for i in range(4)]
    cache = make(write_jsonl(tmp_path / "data.jsonl", rows), tokenizer, tmp_path)
    assert cache.shape.instruction == "Answer with one of these labels: even, odd."
    ids, answers = cache.example(1)
    assert "labels: even, odd.\n\nT1" in tokenizer.decode(ids.tolist())
    assert tokenizer.decode(ids[answers].tolist()) == "odd"


@pytest.mark.parametrize("settings", [{"over_long": "cut"}, {"max_tokens": 1}, {"max_bad_rows": 1.5}])
def test_settings_that_cannot_work(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        DataSettings(**settings)


def test_a_killed_process_leaves_nothing_that_looks_good(tmp_path: Path, tokenizer: Tokenizer) -> None:
    path = write_jsonl(tmp_path / "data.jsonl", questions(20))
    code = f"""
import os, signal
from pathlib import Path
from deepseek_tune.data import cache
from tests.tokenizer.tiny import build, byte_level
cache._FLUSH_TOKENS = 64
add, count = cache._Writer.add, 0
def dying(self, example, row):
    global count
    count += 1
    add(self, example, row)
    if count == 10:
        os.kill(os.getpid(), signal.SIGKILL)
cache._Writer.add = dying
cache.tokenized(Path({str(path)!r}), build(byte_level()), cache.DataSettings(), root=Path({str(tmp_path)!r}))
"""
    process = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=os.environ, check=False)
    assert process.returncode == -signal.SIGKILL
    assert list(tmp_path.glob("*.partial")) and not list(tmp_path.glob("*/meta.json"))
    assert len(make(path, tokenizer, tmp_path)) == 20
    assert not list(tmp_path.glob("*.partial"))
