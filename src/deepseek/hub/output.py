"""Results that appear under their name when they are whole, and not at all if something goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deepseek.errors import ConfigurationError, DiskSpaceError


def check_output(output: Path) -> None:
    """Raises ConfigurationError if ``output`` exists and is not an empty folder."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} exists and is not an empty folder: choose another name, or remove it.")


def check_space(folder: Path, needed: int) -> None:
    """Raises DiskSpaceError if ``folder``'s disk has less than ``needed`` bytes free."""
    if needed > (free := shutil.disk_usage(folder).free):
        room = f"{free / 2**30:.2f} GiB free"
        raise DiskSpaceError(f"the weights take {needed / 2**30:.2f} GiB and the disk of {folder.parent} has {room}.")


@contextmanager
def written_whole(output: Path, *, file: bool = False, replace: bool = False) -> Iterator[Path]:
    """A folder (or the path of a file) beside ``output`` that gets its name when everything in it is written, and is
    removed otherwise. ``replace`` lets it take the place of what has that name.

    Raises DiskSpaceError where the disk is full, ConfigurationError where the place cannot be written or is taken.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}.partial-", dir=output.parent))
    except OSError as error:
        raise ConfigurationError(f"{output} cannot be written: {error.strerror or error}.") from error
    try:
        result = folder / output.name if file else folder
        yield result
        if not file:
            result.chmod(0o755)
        if replace and output.exists():
            _swap(result, output)
        elif file and output.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        else:
            os.rename(result, output)  # noqa: PTH104  # replaces an empty folder, fails on any other
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskSpaceError(f"the disk of {output.parent} is full; free some room.") from error
        raise ConfigurationError(f"{output} cannot be written: {error.strerror or error}.") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _swap(new: Path, old: Path) -> None:
    """Put ``new`` where ``old`` is; if that fails, ``old`` is there again."""
    aside = Path(tempfile.mkdtemp(prefix=f".{old.name}.old-", dir=old.parent))
    old.rename(aside / old.name)
    try:
        new.rename(old)
    except OSError:
        (aside / old.name).rename(old)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
