"""Token ids of a whole data set on disk: made once, mapped into memory from then on.

A folder per (data, tokenizer, settings) holds ``tokens`` (uint16 or uint32), ``answers`` (one bit per token),
``offsets`` (uint64, one more than examples), ``rows`` (uint64, the line each example came from) and ``meta.json``. It
is written beside its place and renamed when it is whole, so what has the right name is good.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from deepseek.errors import ConfigurationError, DataError, DiskSpaceError
from deepseek.hub.cache import cache_dir, file_sha256, lock, sync_folder
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_tune.data.digests import Digests
from deepseek_tune.data.examples import OVER_LONG, Encoder, Example
from deepseek_tune.data.problems import DUPLICATE_ID, Problem, Problems, RowError, beginning
from deepseek_tune.data.read import Row, read_rows
from deepseek_tune.data.shapes import Shape, choose_shape, with_labels

VERSION = 1
"""Of the folder's layout and of what makes its contents; part of the key."""
_FLUSH_TOKENS = 1 << 20
_ID_COLUMNS = ("id", "ID", "Id", "uid", "uuid", "example_id")

Bits = NDArray[np.bool_]
Ids = NDArray[Any]


class DataSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How a file becomes examples.

    Attributes:
        shape: of the rows (:data:`deepseek_tune.data.shapes.NEEDED`); ``auto`` looks at the columns.
        columns: what a shape needs -> the column that holds it, where a column has another name.
        max_tokens: of one example.
        over_long: ``truncate``, ``drop`` or ``error`` (:class:`deepseek_tune.data.examples.Encoder`).
        max_bad_rows: the share of rows that may be bad and are left out; with more the data is refused.
    """

    shape: str = "auto"
    columns: dict[str, str] = {}
    max_tokens: int = 2048
    over_long: str = "truncate"
    max_bad_rows: float = 0.01

    def __post_init__(self) -> None:
        if self.over_long not in OVER_LONG:
            raise ConfigurationError(f"over_long must be one of {', '.join(OVER_LONG)}; not {self.over_long!r}.")
        if self.max_tokens < 2:
            raise ConfigurationError(f"max_tokens must be at least 2, not {self.max_tokens}.")
        if not 0 <= self.max_bad_rows <= 1:
            raise ConfigurationError(f"max_bad_rows is a share from 0 to 1, not {self.max_bad_rows}.")


class TokenCache:
    """Examples on disk. Nothing but the lengths is read before it is asked for: 8 bytes of memory per example.

    Attributes:
        folder: where they lie.
        data_sha256: of the file they were made of.
        shape: how its rows were read.
        problems: what was wrong with them.
        answer_tokens: of all examples.
        lengths: int64 [examples], in tokens.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        meta = json.loads((folder / "meta.json").read_bytes())
        self.data_sha256: str = meta["data_sha256"]
        self.shape = Shape(**meta["shape"])
        self.problems = Problems.from_json(meta["problems"])
        self.answer_tokens: int = meta["answer_tokens"]
        self._offsets = np.memmap(folder / "offsets", np.uint64, "r")
        self._rows = np.memmap(folder / "rows", np.uint64, "r")
        self._tokens: Ids = np.memmap(folder / "tokens", meta["dtype"], "r")
        self._bits = np.memmap(folder / "answers", np.uint8, "r")
        self.lengths: NDArray[np.int64] = np.diff(self._offsets).view(np.int64)

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int) -> tuple[Ids, Bits]:
        """(token ids, whether each is an answer's), both [length]."""
        start, end = int(self._offsets[index]), int(self._offsets[index + 1])
        bits = np.unpackbits(self._bits[start // 8 : -(-end // 8)], bitorder="little")
        return self._tokens[start:end], bits[start % 8 : start % 8 + end - start].astype(bool)

    def row(self, index: int) -> int:
        """The line of the file that an example came from."""
        return int(self._rows[index])


def tokenized(
    path: Path,
    tokenizer: Tokenizer,
    settings: DataSettings,
    *,
    root: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> TokenCache:
    """The examples of ``path``: from the cache, or made now.

    Args:
        root: the folder of caches; None takes ``tune`` in the folder of downloaded models.
        say: hears that data is being read.

    Raises:
        DataError: the data cannot be used (:mod:`deepseek_tune.data.read`, ``shapes``), or too many rows are bad.
        DiskSpaceError: the cache has no room.
    """
    try:
        data_sha256 = file_sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error
    root = root or cache_dir() / "tune"
    folder = root / _key(data_sha256, path, tokenizer, settings)
    if not (folder / "meta.json").exists():
        with _disk_errors(root):
            root.mkdir(parents=True, exist_ok=True)
        with (
            lock(root / f"{folder.name}.lock", lambda: say("another process is reading the same data: waiting for it")),
            _disk_errors(root),
        ):
            if not (folder / "meta.json").exists():
                say(f"reading {path}")
                _make(path, data_sha256, tokenizer, settings, folder)
    cache = TokenCache(folder)
    cache.problems.check(path, settings.max_bad_rows)
    return cache


def _key(data_sha256: str, path: Path, tokenizer: Tokenizer, settings: DataSettings) -> str:
    kept = {name: value for name, value in msgspec.to_builtins(settings).items() if name != "max_bad_rows"}
    suffixes = "".join(path.suffixes).lower()
    parts = [VERSION, data_sha256, suffixes, tokenizer.fingerprint(), kept]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]


@contextmanager
def _disk_errors(root: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(f"the disk of {root} is full: free some room, or set cache_dir.") from error
        raise ConfigurationError(f"{root} cannot be written ({error.strerror or error}): set cache_dir.") from error


def _make(path: Path, data_sha256: str, tokenizer: Tokenizer, settings: DataSettings, folder: Path) -> None:
    shape = choose_shape(path, read_rows(path), settings.shape, settings.columns)
    if shape.name == "label":
        shape = with_labels(shape, read_rows(path))
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed: whoever holds the lock is alone
    partial.mkdir(parents=True, mode=0o700)
    try:
        problems = Problems()
        with _Writer(partial, tokenizer.vocab_size) as writer:
            encoder = Encoder(tokenizer, settings.max_tokens, settings.over_long)
            _encode_all(path, shape, encoder, problems, writer, settings.max_bad_rows)
        problems.check(path, settings.max_bad_rows)
        if not writer.examples:
            raise DataError(f"{path} has no examples to train on.\n" + "\n".join(problems.report()))
        meta = {
            "data_sha256": data_sha256,
            "shape": {"name": shape.name, "columns": dict(shape.columns), "instruction": shape.instruction},
            "problems": problems.to_json(),
            "answer_tokens": writer.answer_tokens,
            "dtype": writer.dtype,
        }
        with (partial / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta, file)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(partial)
        partial.rename(folder)
        sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _encode_all(
    path: Path, shape: Shape, encoder: Encoder, problems: Problems, writer: _Writer, max_bad_rows: float
) -> None:
    seen = Digests()
    for row in read_rows(path):
        problems.rows += 1
        if isinstance(row, Row):
            try:
                _check_id(row, seen)
                encoded = encoder.encode(shape.read(row.values))
            except RowError as error:
                row = Problem(row.number, error.kind, error.detail, beginning(row.values))
            else:
                for example in encoded.examples:
                    writer.add(example, row.number)
                if encoded.notice:
                    problems.notices[encoded.notice] += 1
        if isinstance(row, Problem):
            problems.add(row)
            if problems.hopeless(max_bad_rows):
                problems.check(path, max_bad_rows)


def _check_id(row: Row, seen: Digests) -> None:
    """Raises RowError if an earlier row had the same id."""
    value = next((row.values[column] for column in _ID_COLUMNS if row.values.get(column) not in (None, "")), None)
    if value is None:
        return
    text = str(value).encode("utf-8", "backslashreplace")
    if not seen.add(text):
        raise RowError(DUPLICATE_ID, f"the id {beginning(value)} was there before")


class _Writer:
    """Appends examples to the files of a cache, some megabytes at a time."""

    def __init__(self, folder: Path, vocab_size: int) -> None:
        self.dtype = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self.examples = 0
        self.answer_tokens = 0
        self._files: dict[str, IO[bytes]] = {
            name: (folder / name).open("wb") for name in ("tokens", "answers", "offsets", "rows")
        }
        self._tokens: list[int] = []
        self._answers: list[Bits] = []
        self._bits_left = np.zeros(0, bool)
        self._offset = 0
        self._files["offsets"].write(np.uint64(0).tobytes())

    def __enter__(self) -> _Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._flush()
                self._files["answers"].write(np.packbits(self._bits_left, bitorder="little").tobytes())
                for file in self._files.values():
                    file.flush()
                    os.fsync(file.fileno())
        finally:
            for file in self._files.values():
                file.close()

    def add(self, example: Example, row: int) -> None:
        answers = np.zeros(len(example.ids), bool)
        for start, end in example.answers:
            answers[start:end] = True
        self._tokens += example.ids
        self._answers.append(answers)
        self._offset += len(example.ids)
        self._files["offsets"].write(np.uint64(self._offset).tobytes())
        self._files["rows"].write(np.uint64(row).tobytes())
        self.examples += 1
        self.answer_tokens += int(answers.sum())
        if len(self._tokens) >= _FLUSH_TOKENS:
            self._flush()

    def _flush(self) -> None:
        self._files["tokens"].write(np.array(self._tokens, self.dtype).tobytes())
        bits = np.concatenate([self._bits_left, *self._answers])
        whole = len(bits) // 8 * 8
        self._files["answers"].write(np.packbits(bits[:whole], bitorder="little").tobytes())
        self._bits_left = bits[whole:]
        self._tokens, self._answers = [], []
