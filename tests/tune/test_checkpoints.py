"""Checkpoints: whole or not there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deepseek.errors import CheckpointError, ConfigurationError
from deepseek_tune import checkpoints


def test_the_newest_is_kept_and_comes_back(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path / "none") is None
    for step in (1, 9, 10, 10, 10, 100):
        tensors = {"a": torch.full((2,), float(step)), "byte": torch.arange(3, dtype=torch.uint8)}
        path = checkpoints.save(tmp_path, step, tensors, {"step": step})
        assert checkpoints.latest(tmp_path) == path and list(tmp_path.iterdir()) == [path]
        found, values = checkpoints.load(path)
        assert values == {"step": step} and all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_what_is_not_whole_does_not_count(tmp_path: Path) -> None:
    path = checkpoints.save(tmp_path, 3, {}, {})
    (tmp_path / "step-00000004.partial").mkdir()
    assert checkpoints.latest(tmp_path) == path
    (path / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="resume=False"):
        checkpoints.load(path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        checkpoints.save(tmp_path / "file", 1, {}, {})
