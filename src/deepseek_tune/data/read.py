"""Rows of a JSON, JSONL, CSV or Parquet file, one at a time: a file may be larger than memory."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from deepseek.errors import ConfigurationError, DataError
from deepseek_tune.data.problems import ENCODING, MALFORMED, Problem, beginning

MAX_ROW = 64 << 20
"""Characters of one row: more is a file that lacks a line break, a quote or a bracket."""
_CHUNK = 1 << 20
_PARQUET_ROWS = 256
_ROWS_KEY = "data"


@dataclass(frozen=True, slots=True)
class Row:
    """One row.

    Attributes:
        number: the line it begins on (CSV: ends on; Parquet: its row number), from 1.
        values: by column.
    """

    number: int
    values: dict[str, Any]


def read_rows(path: Path) -> Iterator[Row | Problem]:
    """The rows of ``path`` in order, and a :class:`Problem` for each that cannot be read.

    The name's ending says the format: ``.json`` (an array of objects, or an object whose "data" is one; lines of
    objects too), ``.jsonl`` or ``.ndjson``, ``.csv``, ``.tsv``, ``.parquet``; all but the last may be followed by
    ``.gz``.

    Raises:
        DataError: the file is missing, of another format, or damaged so that its rows cannot be told apart.
        ConfigurationError: Parquet, and pyarrow is not installed.
    """
    read = _FORMATS.get(_suffix(path))
    if read is None:
        raise DataError(
            f"{path}: training data is a .json, .jsonl, .csv, .tsv or .parquet file (text formats may be .gz)."
        )
    try:
        yield from read(path)
    except (EOFError, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is damaged or cut off: {error}.") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from error


def _suffix(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        del suffixes[-1]
        return suffixes[-1] if suffixes and suffixes[-1] != ".parquet" else ""
    return suffixes[-1] if suffixes else ""


def _open(path: Path) -> IO[bytes]:
    """The file's bytes, unpacked, behind a byte order mark. Raises DataError for UTF-16 and UTF-32."""
    packed = path.suffix.lower() == ".gz"
    file = cast(IO[bytes], gzip.open(path, "rb") if packed else path.open("rb"))  # noqa: SIM115
    start = file.read(4)
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or start == b"\0\0\xfe\xff":
        file.close()
        raise DataError(f"{path} is UTF-16 or UTF-32: save it as UTF-8.")
    file.seek(3 if start.startswith(b"\xef\xbb\xbf") else 0)
    return file


@contextmanager
def _text(path: Path) -> Iterator[io.TextIOWrapper]:
    """The file as text. Bytes that are no UTF-8 become lone surrogates, so that they cost only their own row."""
    with _open(path) as file, io.TextIOWrapper(file, "utf-8", errors="surrogateescape", newline="") as text:
        yield text


# JSON lines


def _json_lines(path: Path) -> Iterator[Row | Problem]:
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_ROW):
            number += 1
            if len(line) == MAX_ROW:
                raise DataError(f"{path}: line {number} is longer than {MAX_ROW >> 20} MiB: is it JSON lines?")
            if line.isspace():
                continue
            yield _parse_line(number, line)


def _parse_line(number: int, line: bytes) -> Row | Problem:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        shown = beginning(line.decode("utf-8", "backslashreplace"))
        return Problem(number, ENCODING, f"byte {error.start + 1} is not UTF-8", shown)
    try:
        return _row(number, json.loads(text))
    except (ValueError, RecursionError) as error:
        return Problem(number, MALFORMED, f"not JSON ({error})", beginning(text))


def _row(number: int, value: Any) -> Row | Problem:
    if isinstance(value, dict):
        return Row(number, value)
    return Problem(number, MALFORMED, f"a row must be a JSON object, not {_kind(value)}", beginning(value))


def _kind(value: Any) -> str:
    names = {list: "an array", str: "a string", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")


# A JSON document


def _json(path: Path) -> Iterator[Row | Problem]:
    if _holds_lines(path):
        yield from _json_lines(path)
        return
    with _text(path) as file:
        reader = _JsonReader(path, file)
        first = reader.peek()
        if first == "{":
            reader.enter_rows()
        elif first != "[":
            raise DataError(f"{path}: a JSON file must be an array of rows, or an object whose {_ROWS_KEY!r} is one.")
        for number, value in reader.elements():
            yield _row(number, value)


def _holds_lines(path: Path) -> bool:
    """Whether the first line is an object of its own and no document: JSON lines under another name."""
    with _open(path) as file:
        line = b" "
        while line.isspace():
            line = file.readline(MAX_ROW)
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and not isinstance(value.get(_ROWS_KEY), list)


class _JsonReader:
    """Takes one value after another from a JSON text of any length."""

    def __init__(self, path: Path, file: io.TextIOWrapper) -> None:
        self._path = path
        self._file = file
        self._decoder = json.JSONDecoder()
        self._buffer = ""
        self._at = 0
        self._line = 1
        self._ended = False

    def peek(self) -> str:
        """The next character that is no space; "" at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in " \t\r\n":
                self._line += self._buffer[self._at] == "\n"
                self._at += 1
            if self._at < len(self._buffer) or not self._more(_CHUNK):
                return self._buffer[self._at : self._at + 1]

    def expect(self, characters: str, what: str) -> str:
        """Take the next character, which must be one of ``characters``."""
        found = self.peek()
        if not found or found not in characters:
            raise self._malformed(f"{what} is expected, not {found!r}" if found else "the file ends in the middle")
        self._at += 1
        return found

    def value(self) -> Any:
        """Take the next value. What lies in the buffer doubles until the value is whole, so long rows stay linear."""
        self.peek()
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._at)
            except (ValueError, RecursionError) as error:
                left = len(self._buffer) - self._at
                if isinstance(error, RecursionError) or left >= MAX_ROW or not self._more(max(_CHUNK, left)):
                    raise self._malformed(str(error)) from error
                continue
            # A number that ends with the buffer may go on.
            if end == len(self._buffer) and self._more(_CHUNK):
                continue
            self._line += self._buffer.count("\n", self._at, end)
            self._at = end
            return value

    def enter_rows(self) -> None:
        """Go to the array under the key of rows, over what comes before it."""
        self.expect("{", "'{'")
        seen = []
        while self.peek() == '"':
            key = self.value()
            seen.append(key)
            self.expect(":", "':'")
            if key == _ROWS_KEY and self.peek() == "[":
                return
            self.value()
            if self.expect(",}", "',' or '}'") == "}":
                break
        raise DataError(
            f"{self._path}: a JSON object of rows needs them as an array under {_ROWS_KEY!r}; "
            f"its keys are {', '.join(map(repr, seen[:10])) or 'none'}."
        )

    def elements(self) -> Iterator[tuple[int, Any]]:
        """(line, value) of each element of the array that begins here."""
        self.expect("[", "'['")
        if self.peek() == "]":
            return
        while True:
            self.peek()
            line = self._line
            yield line, self.value()
            if self.expect(",]", "',' or ']'") == "]":
                return

    def _more(self, size: int) -> bool:
        """Read on; False at the end of the file."""
        if self._ended:
            return False
        text = self._file.read(size)
        self._ended = not text
        self._buffer = self._buffer[self._at :] + text
        self._at = 0
        return bool(text)

    def _malformed(self, detail: str) -> DataError:
        return DataError(
            f"{self._path}: not JSON from line {self._line} on ({detail}): "
            f"{beginning(self._buffer[self._at : self._at + 200])}"
        )


# Tables


def _separated(path: Path) -> Iterator[Row | Problem]:
    csv.field_size_limit(MAX_ROW)  # the module's own, 128 KiB, is less than a long text
    with _text(path) as file:
        first = file.readline(MAX_ROW)
        delimiter = "\t" if _suffix(path) == ".tsv" else max(",;\t", key=first.count)
        columns = [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]
        if not any(columns) or len(set(columns)) < len(columns):
            raise DataError(
                f"{path}: the first line must name the columns, each differently: {beginning(first) or 'it is empty'}."
            )
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Problem(reader.line_num + 1, MALFORMED, f"not CSV ({error})")
                continue
            number = reader.line_num + 1
            if len(cells) == len(columns):
                yield Row(number, dict(zip(columns, cells, strict=True)))
            elif cells:
                detail = f"{len(cells)} cells, and the first line names {len(columns)} columns"
                yield Problem(number, MALFORMED, detail, beginning(delimiter.join(cells)))


def _parquet(path: Path) -> Iterator[Row | Problem]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigurationError(
            f"{path}: Parquet needs pyarrow: pip install 'deepseek-platform[tune]', or save the data as JSONL."
        ) from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            number = 0
            for batch in file.iter_batches(_PARQUET_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a Parquet file, or damaged: {error}.") from error


_FORMATS: dict[str, Callable[[Path], Iterator[Row | Problem]]] = {
    ".json": _json,
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _separated,
    ".tsv": _separated,
    ".parquet": _parquet,
}
