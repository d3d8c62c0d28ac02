"""Rows: every example once, nearly full, the same for the same seed."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path

import numpy as np
import pytest

from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_tune.data import packing
from deepseek_tune.data.cache import DataSettings, tokenized
from deepseek_tune.data.packing import IGNORED, Packer, best_fit, pack
from tests.tune.conftest import questions, write_jsonl


def lengths_of(count: int, seed: int = 0) -> np.ndarray:
    return np.minimum(np.random.default_rng(seed).lognormal(4, 1, count).astype(np.int64) + 2, 512)


@pytest.mark.parametrize("count", [1, packing.WINDOW - 1, packing.WINDOW, packing.WINDOW + 1])
def test_every_example_once_and_rows_nearly_full(count: int) -> None:
    lengths = lengths_of(count)
    packer = Packer(lengths, np.arange(count), 512)
    rows = list(packer.rows(0))
    assert sorted(example for row in rows for example in row) == list(range(count))
    assert all(lengths[row].sum() <= 512 for row in rows)
    assert all(np.all(np.diff(lengths[row]) <= 0) for row in rows)
    if count > 1:
        assert packer.efficiency() > 0.97
    assert packer.tokens == lengths.sum()


def test_best_fit_by_hand() -> None:
    lengths = np.array([4, 6, 3, 5, 2, 10], np.int64)
    # 10 | 6 4 | 5 3 2: each into the fullest row that has room
    assert best_fit(lengths, np.arange(6), 10) == [[5], [1, 0], [3, 2, 4]]


def test_seed_and_epoch_decide_and_a_start_resumes() -> None:
    lengths = lengths_of(300)
    rows = {(s, e): list(Packer(lengths, np.arange(300), 512, s).rows(e)) for s in (0, 1) for e in (0, 1)}
    assert len({str(found) for found in rows.values()}) == 4
    packer = Packer(lengths, np.arange(300), 512)
    assert list(packer.rows(0)) == rows[0, 0]
    for start in (0, 1, len(rows[0, 0]) - 1, len(rows[0, 0])):
        assert list(packer.rows(0, start)) == rows[0, 0][start:]


@pytest.mark.parametrize("pad_to", [1, 64])
def test_a_packed_row(tmp_path: Path, tokenizer: Tokenizer, pad_to: int) -> None:
    cache = tokenized(write_jsonl(tmp_path / "data.jsonl", questions(4)), tokenizer, DataSettings(), root=tmp_path)
    row = pack(cache, [2, 0, 3], share=False, pad_to=pad_to)
    assert row.examples == (2, 0, 3) and len(row.ids) % pad_to == 0
    assert row.cu_seqlens.tolist() == [0, *np.cumsum(row.lengths).tolist()]
    for start, end, example in zip(row.cu_seqlens, row.cu_seqlens[1:], row.examples, strict=False):
        ids, answers = cache.example(example)
        assert row.ids[start:end].tolist() == ids.tolist()
        assert row.positions[start:end].tolist() == list(range(len(ids)))
        learned = np.flatnonzero(row.targets[start:end] != IGNORED)
        assert (learned + 1).tolist() == np.flatnonzero(answers).tolist()
        assert row.targets[start:end][learned].tolist() == ids[answers].tolist()
    assert np.all(row.targets[row.cu_seqlens[-1] :] == IGNORED)
    assert row.answer_tokens == sum(cache.example(example)[1].sum() for example in row.examples)


@pytest.mark.parametrize("pad_to", [1, 64])
def test_what_examples_begin_with_stands_once(tmp_path: Path, tokenizer: Tokenizer, pad_to: int) -> None:
    cache = tokenized(write_jsonl(tmp_path / "data.jsonl", questions(4)), tokenizer, DataSettings(), root=tmp_path)
    row, apart = pack(cache, [2, 0, 3], pad_to=pad_to), pack(cache, [2, 0, 3], share=False)
    whole = [cache.example(example)[0].tolist() for example in row.examples]
    common = list(takewhile(lambda same: same, (len(set(tokens)) == 1 for tokens in zip(*whole, strict=False))))
    assert row.shared == len(common) > 5
    assert row.example_tokens == apart.example_tokens == sum(map(len, whole))
    assert row.answer_tokens == apart.answer_tokens and len(row.ids) % pad_to == 0
    assert row.positions[: row.shared].tolist() == list(range(row.shared))
    for start, end, ids in zip(row.cu_seqlens, row.cu_seqlens[1:], whole, strict=False):
        assert row.ids[: row.shared].tolist() + row.ids[start:end].tolist() == ids
        assert row.positions[start:end].tolist() == list(range(row.shared, len(ids)))
        learned = np.flatnonzero(row.targets[start:end] != IGNORED)
        assert row.targets[start:end][learned].tolist() == row.ids[start:end][learned + 1].tolist() or end == len(ids)


class Two:
    """Two examples as a cache holds them; answers begin at ``first``."""

    def __init__(self, one: list[int], other: list[int], first: int) -> None:
        self.ids = np.array(one), np.array(other)
        self.first = first

    def example(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        return self.ids[index], np.arange(len(self.ids[index])) >= self.first


@pytest.mark.parametrize(
    ("one", "other", "first", "shared"),
    [
        ([5, 6, 7, 8], [5, 6, 7, 9], 3, 2),  # the token before an answer says it
        ([5, 6, 7, 8], [5, 6, 7, 9], 2, 1),
        ([5, 6, 7, 8], [5, 6, 7, 9], 1, 0),
        ([5, 6, 7, 8], [5, 6, 7, 8], 3, 2),
        ([5, 6, 7, 8], [5, 4, 7, 8], 3, 1),
        ([5, 6, 7, 8], [4, 6, 7, 8], 3, 0),
    ],
)
def test_answers_are_not_shared(one: list[int], other: list[int], first: int, shared: int) -> None:
    row = pack(Two(one, other, first), [0, 1])  # type: ignore[arg-type]
    assert row.shared == shared and row.answer_tokens == 2 * (4 - first)
    assert pack(Two(one, other, first), [0]).shared == 0  # type: ignore[arg-type]
