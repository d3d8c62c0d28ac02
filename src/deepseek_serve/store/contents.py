"""The bytes of files, in the data directory.

``files/DATABASE/ID`` is a complete content: what another database knows of is not taken for an orphan. While it is
written it lies in ``partial/PROCESS/``, a folder per process beside a lock file that the process holds as long as it
lives: whoever can take the lock knows that the folder is a dead one's.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Collection
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from deepseek_serve.store.errors import StoreUnavailableError, store_error

ORPHAN_AGE = 3600.0  # seconds; a content this old without a row lost it in a crash
CHUNK = 1 << 18


class Contents:
    """All methods block; call them in a thread.

    Attributes:
        site: the data directory's own name, random, as it stands in ``site``.
    """

    def __init__(self, data_dir: Path) -> None:
        self._files = data_dir / "files"  # with the database's name behind it when that is known
        self._partial = data_dir / "partial"
        self._data_dir = data_dir
        self._own: Path | None = None
        self._lock: int | None = None
        self.site = ""

    def open(self, database: str) -> None:
        """Make the folders, and remove what dead processes left half-written. Raises :class:`OSError`."""
        self._files = self._data_dir / "files" / database
        for folder in (self._files, self._partial):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.site = _site_name(self._data_dir / "site")
        if self._lock is None:
            name = secrets.token_hex(8)
            self._lock = hold_lock(self._partial / f"{name}.lock")
            self._own = self._partial / name
            self._own.mkdir(mode=0o700)
        self._clean_up()

    def close(self) -> None:
        """Give up the own folder; nothing may be written any more."""
        if self._lock is not None and self._own is not None:
            shutil.rmtree(self._own, ignore_errors=True)
            self._own.with_suffix(".lock").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = self._own = None

    def new(self) -> PartialContent:
        """An empty content in the making. Raises :class:`StoreError`."""
        if self._own is None:
            raise StoreUnavailableError("the data directory is not open")
        try:
            return PartialContent(self._own / secrets.token_hex(8), self._files)
        except OSError as error:
            raise store_error(error) or error from error

    def path(self, file_id: str) -> Path:
        """Where a complete content lies. ``file_id`` is one that was made here, never a client's text."""
        return self._files / file_id

    def remove(self, file_id: str) -> None:
        """Remove a content; nothing happens if it is not there."""
        self.path(file_id).unlink(missing_ok=True)

    def aged(self) -> list[str]:
        """Contents old enough to be orphans if no row names them."""
        limit = time.time() - ORPHAN_AGE
        found = []
        for entry in os.scandir(self._files):
            with contextlib.suppress(FileNotFoundError):
                if entry.stat().st_mtime < limit:
                    found.append(entry.name)
        return found

    def remove_all(self, file_ids: Collection[str]) -> None:
        for file_id in file_ids:
            self.remove(file_id)

    def _clean_up(self) -> None:
        for lock in self._partial.glob("*.lock"):
            descriptor = hold_lock(lock, create=False)
            if descriptor is None:
                continue
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink(missing_ok=True)
            os.close(descriptor)


class PartialContent:
    """A file that nobody sees before :meth:`publish`. Leaving the ``with`` block without it removes the file.

    Attributes:
        size: bytes so far.
    """

    def __init__(self, path: Path, files: Path) -> None:
        self._path = path
        self._files = files
        self._stream: BinaryIO = path.open("xb")
        os.fchmod(self._stream.fileno(), 0o600)
        self.size = 0

    def write(self, data: bytes) -> None:
        """Append. Raises :class:`StoreError` if the disk is full or fails."""
        try:
            self._stream.write(data)
        except OSError as error:
            raise store_error(error) or error from error
        self.size += len(data)

    def publish(self, file_id: str) -> None:
        """Make it durable under its final name, replacing what may be there. Raises :class:`StoreError`."""
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._path.rename(self._files / file_id)
            _sync_folder(self._files)
        except OSError as error:
            raise store_error(error) or error from error

    def discard(self) -> None:
        """Remove it, unless it was published."""
        with contextlib.suppress(OSError):  # closing writes what is buffered, which a full disk refuses
            self._stream.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> PartialContent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.discard()


def hold_lock(path: Path, *, create: bool = True) -> int | None:
    """A descriptor that holds the lock on ``path`` until it is closed or the process ends, however it ends.

    None if another process has it, or if it is not there and not to be created. Raises :class:`OSError`.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            if create:
                raise
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:  # noqa: PTH116 - beside fstat
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:
            pass
        except OSError:
            os.close(descriptor)
            raise
        os.close(descriptor)  # removed between open and lock: once more


def _site_name(path: Path) -> str:
    """The random name in ``path``, made by whoever comes first."""
    with contextlib.suppress(FileNotFoundError):
        return path.read_text(encoding="ascii").strip()
    fresh = path.with_name(f".site-{secrets.token_hex(8)}")
    fresh.write_text(secrets.token_hex(16), encoding="ascii")
    try:
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(fresh)
    finally:
        fresh.unlink()
    return path.read_text(encoding="ascii").strip()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
