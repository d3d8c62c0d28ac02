"""Checkpoints of a run: a folder each, which gets its name when everything in it is on the disk.

Whatever happens while one is written (a kill, a full disk), the one before it is complete and stays.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.errors import CheckpointError, ConfigurationError, DiskSpaceError
from deepseek.hub.cache import sync_folder

if TYPE_CHECKING:
    from torch import Tensor

FOLDER = "checkpoints"
"""Below the folder of the result."""
_PREFIX = "step-"
_PARTIAL = ".partial"
_PROBE_BYTES = 4096
_TENSORS = "state.safetensors"
_VALUES = "state.json"


def write_file(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or not there, and on the disk. Raises OSError."""
    temporary = path.with_name(f".{path.name}{_PARTIAL}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def disk_error(error: OSError, path: Path, kept: str) -> DiskSpaceError | ConfigurationError:
    """Our error for a failed write below ``path``; ``kept`` says what is still good."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskSpaceError(f"the disk of {path} is full. {kept}")
    return ConfigurationError(f"{path} cannot be written ({error.strerror or error}). {kept}")


def check_writable(folder: Path) -> None:
    """Make ``folder``. Raises DiskSpaceError or ConfigurationError if nothing can be written into it: better before a
    run than at its first checkpoint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(_PROBE_BYTES))
    except OSError as error:
        raise disk_error(error, folder, "Nothing was trained: make room there, or set output_dir.") from error


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Path:
    """Write the checkpoint of ``step`` below ``folder``, then remove those before it.

    Raises DiskSpaceError or ConfigurationError if it cannot be written; earlier checkpoints are then as they were.
    """
    import safetensors.torch

    final = folder / f"{_PREFIX}{step:08d}"
    while final.exists():  # judged since then, say: it stays until this one is whole
        final = final.with_name(f"{final.name}+")
    partial = final.with_name(final.name + _PARTIAL)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        write_file(partial / _TENSORS, safetensors.torch.save(dict(tensors)))
        write_file(partial / _VALUES, json.dumps(values).encode())
        partial.rename(final)
        sync_folder(folder)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        before = latest(folder)
        kept = (
            f"The checkpoint {before.name} is good: make room and run the same command again to go on from it."
            if before
            else "No checkpoint was written yet."
        )
        raise disk_error(error, folder, kept) from error
    for other in folder.glob(f"{_PREFIX}*"):
        if other != final:
            shutil.rmtree(other, ignore_errors=True)
    return final


def latest(folder: Path) -> Path | None:
    """The newest complete checkpoint below ``folder``."""
    complete = [path for path in folder.glob(f"{_PREFIX}*") if path.suffix != _PARTIAL]
    return max(complete, default=None)


def step_of(path: Path) -> int:
    """The step that a checkpoint was made at."""
    return int(path.name.removeprefix(_PREFIX).rstrip("+"))


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, values) of a checkpoint. Raises CheckpointError if it is damaged."""
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        values = json.loads((path / _VALUES).read_bytes())
        return safetensors.torch.load_file(path / _TENSORS), values
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"the checkpoint {path} is damaged ({error}); resume=False starts over.") from error
