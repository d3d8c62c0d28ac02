"""Where the rows of a dataset are: in a folder that was given, or fetched from their public source.

A folder of data holds one folder per dataset, with the files as their source has them; a text file may be gzipped, with
``.gz`` added to its name. What there is to be had is in ``catalogue.json``: repository, commit, files with their
SHA-256, licence, and whom to credit. No row of any dataset is part of this package.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import hashlib
import io
import json
import os
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import msgspec

from deepseek.errors import ConfigurationError, DataError, DownloadError, IntegrityError
from deepseek.hub.cache import cache_dir, lock
from deepseek.hub.progress import Progress, Silent

DATA_VARIABLE = "DEEPSEEK_EVAL_DATA"
SOURCE = "https://raw.githubusercontent.com"
_TIMEOUT_SECONDS = 60.0
_BLOCK = 1 << 18


class SourceFile(msgspec.Struct, frozen=True, array_like=True):
    """One file of a dataset.

    Attributes:
        path: inside the dataset's folder.
        source_path: inside its repository.
        size: bytes, as the source has it.
        sha256: of those bytes.
    """

    path: str
    source_path: str
    size: int
    sha256: str


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a dataset.

    Attributes:
        title: what it is.
        languages: ISO 639-1 codes.
        rows: in all files together.
        licence: SPDX identifiers.
        credit: whom to name.
        repository: ``owner/name`` on GitHub.
        commit: which state of it.
        files: those that tasks read, and its licence.
    """

    title: str
    languages: tuple[str, ...]
    rows: int
    licence: str
    credit: str
    repository: str
    commit: str
    files: tuple[SourceFile, ...]

    @property
    def size(self) -> int:
        """Bytes to download."""
        return sum(file.size for file in self.files)

    def url(self, file: SourceFile) -> str:
        """Where a file is fetched from."""
        return f"{SOURCE}/{self.repository}/{self.commit}/{file.source_path}"


@cache
def catalogue() -> dict[str, Dataset]:
    """All datasets, by name."""
    text = resources.files("deepseek_eval").joinpath("catalogue.json").read_bytes()
    return msgspec.json.decode(text, type=dict[str, Dataset])


def known(name: str) -> Dataset:
    """The dataset of this name. Raises ConfigurationError with the nearest names."""
    try:
        return catalogue()[name]
    except KeyError:
        close = difflib.get_close_matches(name, catalogue(), n=3, cutoff=0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else f" Known are {', '.join(catalogue())}."
        raise ConfigurationError(f"there is no dataset {name!r}.{hint}") from None


def data_folder(given: Path | None = None) -> Path:
    """The folder of datasets: the given one, else ``$DEEPSEEK_EVAL_DATA``, else one in the cache.

    Raises ConfigurationError if it is named and not there. The one in the cache need not exist.
    """
    named = given or (Path(os.environ[DATA_VARIABLE]) if os.environ.get(DATA_VARIABLE) else None)
    if named is None:
        return cache_dir() / "eval-data"
    named = named.expanduser()
    if not named.is_dir():
        raise ConfigurationError(
            f"the data folder {named} does not exist: name another with --data or {DATA_VARIABLE}."
        )
    return named


class Files:
    """Files below a folder. Implements :class:`deepseek_eval.task.Rows`.

    Args:
        name: of the dataset, for messages.
        folder: where its files are.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder

    def data(self, path: str) -> bytes:
        """The bytes of a file as its source has it. Raises DataError."""
        plain = self.folder / path
        zipped = self.folder / f"{path}.gz"
        try:
            return plain.read_bytes() if plain.is_file() else gzip.decompress(zipped.read_bytes())
        except FileNotFoundError:
            raise DataError(f"dataset {self.name}: {plain} is missing. {how_to_get(self.name)}") from None
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(f"dataset {self.name}: {plain} cannot be read: {error}.") from error

    def sha256(self, path: str) -> str:
        """Of :meth:`data`: equal to the catalogue's where the file is its source's."""
        return hashlib.sha256(self.data(path)).hexdigest()

    def text(self, path: str) -> str:
        """A whole file, or the one file in it where it is an archive. UTF-8, lines end with ``\\n``."""
        data = self.data(path)
        try:
            if path.endswith(".zip"):
                with zipfile.ZipFile(io.BytesIO(data)) as archive:
                    data = archive.read(archive.namelist()[0])
            elif path.endswith(".gz"):
                data = gzip.decompress(data)
            return data.decode("utf-8-sig").replace("\r\n", "\n")
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile, IndexError, UnicodeDecodeError) as error:
            raise DataError(f"dataset {self.name}: {self.folder / path} is damaged: {error}.") from error

    def json(self, path: str) -> Any:
        """A JSON file, or the one in an archive."""
        try:
            return json.loads(self.text(path))
        except ValueError as error:
            raise DataError(f"dataset {self.name}: {self.folder / path} is not JSON: {error}.") from error

    def read(self, path: str) -> Iterator[dict[str, Any]]:
        """Rows, by the file's ending, see :class:`deepseek_eval.task.Rows`.

        A ``.json`` file holds a list of objects, or an object on each line. CSV and TSV have a header; TSV has no
        quotes.
        """
        ending = path.removesuffix(".gz").removesuffix(".zip").rsplit(".", 1)[-1]
        text = self.text(path)
        if ending == "csv":
            return iter(csv.DictReader(io.StringIO(text)))
        if ending == "tsv":
            return iter(csv.DictReader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))
        if ending == "json" and text.lstrip().startswith("["):
            return self._objects(path, enumerate(self.json(path), 1))
        if ending in ("json", "jsonl"):
            return self._objects(path, self._lines(path, text))
        raise DataError(f"dataset {self.name}: {path} has no rows: .jsonl, .json, .csv or .tsv is known.")

    def _lines(self, path: str, text: str) -> Iterator[tuple[int, Any]]:
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield number, json.loads(line)
                except ValueError as error:
                    raise DataError(
                        f"dataset {self.name}: {self.folder / path}, line {number} is not JSON: {error}."
                    ) from error

    def _objects(self, path: str, rows: Iterable[tuple[int, Any]]) -> Iterator[dict[str, Any]]:
        for number, row in rows:
            if not isinstance(row, dict):
                raise DataError(f"dataset {self.name}: {self.folder / path}, row {number} is not an object.")
            yield row


def missing_files(name: str, folder: Path) -> list[SourceFile]:
    """Files of a dataset that the folder of data lacks."""
    own = folder / name
    return [
        file
        for file in known(name).files
        if not (own / file.path).is_file() and not (own / f"{file.path}.gz").is_file()
    ]


def how_to_get(name: str) -> str:
    """One sentence for people who lack a dataset."""
    if name not in catalogue():
        return "Put it there, or correct the task's path."
    dataset = catalogue()[name]
    return (
        f"It comes from github.com/{dataset.repository} ({dataset.licence}): run with --download to fetch it "
        f"({dataset.size / 1e6:.1f} MB), or name a folder that has it with --data or {DATA_VARIABLE}."
    )


def open_dataset(name: str, folder: Path, *, download: bool = False, progress: Progress | None = None) -> Files:
    """A dataset whose files are all there.

    Args:
        folder: of all data (:func:`data_folder`).
        download: fetch what is missing into the folder.

    Raises:
        ConfigurationError: there is no such dataset.
        DataError: files are missing and are not to be fetched; the message says how to get them.
        DownloadError, IntegrityError: they could not be fetched.
    """
    missing = missing_files(name, folder)
    if missing and download:
        fetch(name, folder, progress)
    elif missing:
        names = ", ".join(file.path for file in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise DataError(f"dataset {name} is not in {folder} ({names} missing). {how_to_get(name)}")
    return Files(name, folder / name)


def fetch(name: str, folder: Path, progress: Progress | None = None) -> None:
    """Download the files of a dataset that the folder lacks, and check them.

    Raises DownloadError (no network, no such file, unwritable folder) and IntegrityError. A file appears under its name
    when it is whole and its hash is right; running again goes on with the next one.
    """
    dataset, progress = known(name), progress or Silent()
    try:
        with lock(folder / f"{name}.lock", lambda: progress.note(f"Another process is downloading {name}.")):
            missing = missing_files(name, folder)
            progress.start(name, sum(file.size for file in missing))
            done = 0
            for file in missing:
                _fetch(dataset, file, folder / name / file.path)
                done += file.size
                progress.update(done, file.path)
    except OSError as error:
        raise DownloadError(f"dataset {name} cannot be written to {folder}: {error.strerror or error}.") from error
    finally:
        progress.finish()


def _fetch(dataset: Dataset, file: SourceFile, target: Path) -> None:
    url = dataset.url(file)
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as answer:
            data = b"".join(iter(lambda: answer.read(_BLOCK), b""))
    except (urllib.error.URLError, TimeoutError, ConnectionError) as error:
        raise DownloadError(f"{url} cannot be fetched: {getattr(error, 'reason', error)}.") from error
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise IntegrityError(f"{url} is not the file that was promised: {len(data)} bytes, expected {file.size}.")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    partial.write_bytes(data)
    partial.replace(target)


def open_all(
    names: Sequence[str], folder: Path, *, download: bool = False, progress: Progress | None = None
) -> dict[str, Files]:
    """The datasets of a task, as :attr:`deepseek_eval.task.Task.items` wants them. Raises as :func:`open_dataset`."""
    return {name: open_dataset(name, folder, download=download, progress=progress) for name in names}
