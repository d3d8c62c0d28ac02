"""The file that pages of the KV cache are spilled to."""

from __future__ import annotations

import errno
import logging
import os
import tempfile
from pathlib import Path

import psutil

from deepseek.errors import ConfigurationError

logger = logging.getLogger(__name__)

_IN_MEMORY = ("tmpfs", "ramfs")
_NO_NAMELESS = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT)  # what kernels and file systems say without O_TMPFILE


def open_spill_file(folder: str, size: int) -> int:
    """The descriptor of a file of ``size`` bytes in ``folder``, whose room on the disk is taken.

    The file has no name, so that a process that dies in whatever way leaves nothing behind, and nobody else can open it
    by accident. Its room is taken now, because a disk that is full when a mapped page is written ends the process.

    Raises ConfigurationError if the folder cannot be used, lies in memory, or has no room.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ConfigurationError(f"kv_spill_dir {folder!r} is not a folder.")
    if (kind := _file_system(path)) in _IN_MEMORY:
        raise ConfigurationError(
            f"kv_spill_dir {folder!r} is on a {kind}, which is memory itself. Choose a folder on a disk."
        )
    if size > (free := _free_bytes(path)):
        raise _no_room(folder, size, free)
    try:
        file = _open(path)
    except OSError as error:
        raise ConfigurationError(f"kv_spill_dir {folder!r} cannot be written: {error.strerror}.") from error
    try:
        os.posix_fallocate(file, 0, size)
    except OSError as error:
        os.close(file)
        if error.errno == errno.ENOSPC:
            raise _no_room(folder, size, free) from error
        if error.errno == errno.EFBIG:
            raise ConfigurationError(
                f"kv_spill_bytes: a file of {size / 2**30:.2f} GiB in {folder!r} is above what the file system or the "
                "limit of this process allows (ulimit -f). Raise the limit, or choose less."
            ) from error
        raise ConfigurationError(
            f"kv_spill_bytes: {size / 2**30:.2f} GiB cannot be taken in {folder!r}: {error.strerror}."
        ) from error
    return file


def _open(folder: Path) -> int:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_NAMELESS:
            raise
    file, name = tempfile.mkstemp(prefix=".deepseek-kv-", dir=folder)  # 0600
    Path(name).unlink()
    return file


def _free_bytes(folder: Path) -> int:
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def _no_room(folder: str, size: int, free: int) -> ConfigurationError:
    return ConfigurationError(
        f"kv_spill_bytes: {size / 2**30:.2f} GiB are needed in {folder!r}, and {free / 2**30:.2f} GiB are free there. "
        "Free some room, or choose less or another kv_spill_dir."
    )


def _file_system(folder: Path) -> str:
    """Name of the kind of file system that a folder is on; empty if it is not known."""
    parents = {str(folder.resolve()), *map(str, folder.resolve().parents)}
    mounts = [mount for mount in psutil.disk_partitions(all=True) if mount.mountpoint in parents]
    return max(mounts, key=lambda mount: len(mount.mountpoint)).fstype if mounts else ""
