"""Where downloaded models live, and how a finished one is told from a broken one.

``models/NAME/FILE`` (and companions) beside a ``manifest.json`` that was written after the SHA-256 was checked. Work in
progress lies in ``models/NAME.partial/`` and becomes ``models/NAME`` by one rename.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deepseek.errors import DownloadError
from deepseek.hub.registry import KnownModel


def cache_dir() -> Path:
    """``$DEEPSEEK_CACHE``, else ``$XDG_CACHE_HOME/deepseek``, else ``~/.cache/deepseek``. Not created."""
    own = os.environ.get("DEEPSEEK_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "deepseek"


def model_folder(model: KnownModel) -> Path:
    """The folder of a complete model."""
    return cache_dir() / "models" / model.name


def model_path(model: KnownModel) -> Path:
    """What opens a complete model: its file, or its folder if it has companions."""
    folder = model_folder(model)
    return folder if model.companions else folder / model.file


def cached_model(model: KnownModel) -> Path | None:
    """The model's path if it is in the cache and was verified; None otherwise. Cheap: nothing is hashed.

    The manifest holds sizes and modification times from the moment that hashes were checked, so a file that was
    changed or copied since then does not count (:func:`reverify` looks at it again).
    """
    folder = model_folder(model)
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        return model_path(model) if manifest == _manifest(model, folder) else None
    except (OSError, ValueError):
        return None


def reverify(model: KnownModel) -> Path | None:
    """Hash a cached model whose manifest does not fit. The path if it is good after all; else what is wrong is removed:
    None."""
    folder = model_folder(model)
    expected = {model.file: (model.size, model.sha256)}
    expected |= {companion.path: (companion.size, companion.sha256) for companion in model.companions}
    good = True
    for name, (size, sha256) in expected.items():
        path = folder / name
        if not path.exists():
            good = False
        elif path.stat().st_size != size or file_sha256(path) != sha256:
            path.unlink()
            good = False
    if not good:
        return None
    write_manifest(model, folder)
    return model_path(model)


def write_manifest(model: KnownModel, folder: Path) -> None:
    """Mark the model in ``folder`` as verified, atomically and durably."""
    temporary = folder / "manifest.json.new"
    with temporary.open("w") as file:
        json.dump(_manifest(model, folder), file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / "manifest.json")
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Make renames inside ``folder`` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def lock(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold ``path`` as a lock between processes; calls ``on_wait`` once before it waits for another holder. The kernel
    frees it when the holder ends, however it ends."""
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise DownloadError(
            f"the cache folder {path.parent} cannot be written: {error.strerror}. Set DEEPSEEK_CACHE to one that can."
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _manifest(model: KnownModel, folder: Path) -> dict[str, object]:
    status = (folder / model.file).stat()
    manifest: dict[str, object] = {
        "file": model.file,
        "sha256": model.sha256,
        "expected_size": model.size,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
    }
    for companion in model.companions:
        status = (folder / companion.path).stat()
        manifest[companion.path] = [companion.sha256, status.st_size, status.st_mtime_ns]
    return manifest
