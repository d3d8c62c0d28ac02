"""From a model's name to what its engine is to load, for names that come in requests too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deepseek.errors import CheckpointError, HubError
from deepseek.hub import registry
from deepseek.hub.progress import Progress
from deepseek.hub.resolve import is_repository, resolve, resolve_published
from deepseek_serve.errors import ApiError
from deepseek_serve.memory import stored_bytes

if TYPE_CHECKING:
    from deepseek.tokenizer.tokenizer import Tokenizer


class Place(msgspec.Struct, frozen=True):
    """Where a model's files are to be had.

    Attributes:
        name: the model's own name.
        model: what to look for: a path, a built-in name or a Hugging Face id.
        published: it is one of the latter two, even if there is a path of that name.
        weights_bytes: size of its weights as they are stored, None if that is not known before they are there.
    """

    name: str
    model: str
    published: bool = False
    weights_bytes: int | None = None


class Source(msgspec.Struct, frozen=True):
    """A model whose files are on this machine.

    Attributes:
        name: the model's own name.
        model: what :class:`EngineConfig` calls it.
        weights_bytes: size of its weights as they are stored.
        load_tokenizer: reads its tokenizer; may raise TokenizerError, CheckpointError.
    """

    name: str
    model: str
    weights_bytes: int
    load_tokenizer: Callable[[], Tokenizer]


Fetch = Callable[[Place, bool, Progress], Source]


def locate(name: str, model_dir: Path | None) -> Place:
    """The place of a model that a request names: below ``model_dir``, built in, or on Hugging Face.

    A path that leads out of the folder, by ``..`` or by links, is treated as one that does not exist, so that nobody
    learns what there is. Raises :class:`ApiError` 404.
    """
    known = registry.find(name)
    path_only = name.startswith((".", "/", "~")) or (name.lower().endswith(".gguf") and ":" not in name)
    if known is not None and not path_only:
        return Place(known.name, known.name, True, known.size)
    path = _below(name, model_dir) if model_dir is not None else None
    if path is not None:
        return _at(path)
    if is_repository(name) and not path_only:
        return Place(name.partition(":")[0], name, True)
    local = "a path below its --model-dir, " if model_dir is not None else ""
    raise ApiError(
        404,
        f"There is no model {name[:200]!r}. Send {local}a built-in name, or a Hugging Face id (org/name).",
        param="model",
        code="model_not_found",
    )


def locate_adapter(name: str, model_dir: Path | None) -> str:
    """The folder of an adapter that a request names, below ``model_dir``; as :func:`locate`, nobody learns what there
    is elsewhere. Raises :class:`ApiError` 404."""
    path = _below(name, model_dir) if model_dir is not None else None
    if path is None or not path.is_dir():
        hint = "Send a folder below its --model-dir." if model_dir is not None else "It has no --model-dir."
        message = f"There is no adapter {name[:200]!r} for this server. {hint}"
        raise ApiError(404, message, param="lora_path", code="adapter_not_found")
    return str(path)


def _at(path: Path) -> Place:
    """The place of a model file or folder. Raises :class:`ApiError` 400 if it is none."""
    try:
        files = resolve(str(path), offline=True)
    except HubError as error:
        raise ApiError(404, str(error), param="model", code="model_not_found") from error
    except CheckpointError as error:
        raise ApiError(400, str(error), param="model", code="invalid_model") from error
    return Place(files.name, str(files.path), False, stored_bytes(files.path))


def _below(name: str, model_dir: Path) -> Path | None:
    """The file or folder of this name inside ``model_dir``, None if there is none or it has links that lead out."""
    try:
        root = model_dir.resolve(strict=True)
        path = (root / name).resolve(strict=True)
        files = [path, *path.iterdir()] if path.is_dir() else [path]
        inside = path != root and all(file.resolve().is_relative_to(root) for file in files)
    except (OSError, ValueError, RuntimeError):  # it does not exist, is too long, holds a zero byte, links in a circle
        return None
    return path if inside else None


def fetch(place: Place, offline: bool, progress: Progress) -> Source:
    """The files of a model, downloaded if they are not in the cache. Blocks.

    Raises HubError, CheckpointError: they cannot be had.
    """
    from deepseek.tokenizer.load import load_tokenizer

    find = resolve_published if place.published else resolve
    files = find(place.model, offline=offline, progress=progress)
    as_path = place.published and registry.find(place.model) is None
    model = str(files.path) if as_path else place.model
    return Source(files.name, model, stored_bytes(files.path), lambda: load_tokenizer(files.path))
