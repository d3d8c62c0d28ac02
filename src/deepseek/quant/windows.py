"""Texts cut into windows of tokens, and the logits of a model for them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from deepseek.errors import ConfigurationError
from deepseek.kernels.paging import PagedLayout
from deepseek.models.base import Batch, Model

WINDOW = 256
SHORTEST = 16
_PAGE_SIZE = 16


class Encoder(Protocol):
    """What is needed of a tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = False) -> list[int]: ...


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file, blank lines left out. Raises ConfigurationError naming file and line."""
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ConfigurationError(f"{path}, line {number}: not valid JSON ({str(error)[:100]}).") from error
        if not isinstance(row, dict):
            raise ConfigurationError(f"{path}, line {number}: a JSON {type(row).__name__}, not an object.")
        rows.append(row)
    return rows


def read_text(path: Path) -> str:
    """A file's text. Raises ConfigurationError for one that is missing or not UTF-8."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text: {error}.") from error


def read_texts(path: Path) -> list[str]:
    """The texts of a plain text file (one) or of a ``.jsonl`` file whose objects have a "text" field.

    Raises ConfigurationError naming the file, and the line where there is one at fault.
    """
    if path.suffix.lower() != ".jsonl":
        texts = [read_text(path)]
    else:
        texts = []
        for number, row in enumerate(read_rows(path), 1):
            if not isinstance(row.get("text"), str):
                raise ConfigurationError(f'{path}, object {number}: it has no "text" field that is a string.')
            texts.append(row["text"])
    if not any(text.strip() for text in texts):
        raise ConfigurationError(f"{path} holds no text.")
    return texts


def cut_windows(texts: Sequence[str], tokenizer: Encoder, *, tokens: int, window: int = WINDOW) -> list[list[int]]:
    """Up to ``tokens`` tokens in windows of at most ``window``, taken evenly from all of the texts.

    Windows below 16 tokens are left out. Raises ConfigurationError if nothing remains.
    """
    windows: list[list[int]] = []
    for text in texts:
        ids = tokenizer.encode(text)
        windows += [ids[start : start + window] for start in range(0, len(ids), window)]
    windows = [ids for ids in windows if len(ids) >= SHORTEST]
    if not windows:
        raise ConfigurationError(f"the text is too short: it must have at least {SHORTEST} tokens in one piece.")
    mean = sum(map(len, windows)) / len(windows)
    wanted = min(len(windows), max(1, round(tokens / mean)))
    return [windows[index * len(windows) // wanted] for index in range(wanted)]


def forward(model: Model, sequences: Sequence[Sequence[int]], rows: Tensor | None = None, *, shared: int = 0) -> Tensor:
    """fp32 logits [rows, vocabulary] of whole sequences, computed together from the start.

    Args:
        rows: int64, those wanted of all computed tokens; None for all.
        shared: all sequences begin with the same so many tokens. Whole pages of these are computed for the first one
            only: of the others, tokens from ``shared_start(shared)`` on.
    """
    skipped = shared_start(shared)
    common = tuple(range(skipped // _PAGE_SIZE))
    starts, first = [0], 0
    pages: list[tuple[int, ...]] = []
    slots: list[int] = []
    tokens: list[int] = []
    positions: list[int] = []
    for index, ids in enumerate(sequences):
        begin = skipped if index else 0
        count = -(-(len(ids) - begin) // _PAGE_SIZE)
        pages.append((*(common if index else ()), *range(first, first + count)))
        slots += range(first * _PAGE_SIZE, first * _PAGE_SIZE + len(ids) - begin)
        tokens += ids[begin:]
        positions += range(begin, len(ids))
        starts.append(len(tokens))
        first += count
    device = model.device
    layout = PagedLayout(
        page_size=_PAGE_SIZE,
        query_starts=tuple(starts),
        context_lens=tuple(len(ids) for ids in sequences),
        pages=tuple(pages),
        write_slots=torch.tensor(slots, device=device),
    )
    batch = Batch(torch.tensor(tokens, device=device), torch.tensor(positions, device=device), layout, rows)
    with torch.inference_mode():
        return model.forward(batch, model.new_cache(first, _PAGE_SIZE)).float().clone()


def shared_start(shared: int) -> int:
    """The first token that every sequence computes by itself where ``shared`` are common to all."""
    return shared // _PAGE_SIZE * _PAGE_SIZE
