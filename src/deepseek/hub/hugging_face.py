"""Fetch a model repository from Hugging Face (or the mirror in ``HF_ENDPOINT``) into huggingface-hub's own cache."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.errors import CheckpointError, DeepSeekError, DiskSpaceError, DownloadError, ModelNotFoundError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

CONFIG_SUFFIXES = (".json", ".jinja", ".txt", ".model")
_POOLING = re.compile(r"[^/]*Pooling/config\.json")  # of sentence-transformers
DEFAULT_TYPES = ("q4_k_m", "q8_0")
"""GGUF types to take from a repository that has many, best first; the same that other engines default to."""


def fetch_repository(repository: str, choice: str, *, offline: bool, show: bool) -> Path:
    """A folder of safetensors and JSON, or a ``.gguf`` file.

    Args:
        repository: ``org/name``.
        choice: for GGUF repositories, a file or a type (``Q8_0``); empty takes Q4_K_M, else Q8_0, else the only one.
        offline: take what is in the cache.
        show: let huggingface-hub draw its progress bars.

    Raises ModelNotFoundError, DownloadError (gated, no network, not in the cache), DiskSpaceError, CheckpointError.
    """
    from huggingface_hub import HfApi, constants, errors

    if offline or constants.HF_HUB_OFFLINE:
        return _cached(repository, choice, "the network is switched off")
    try:
        return _download(HfApi(), repository, choice, show)
    except DeepSeekError:
        raise
    except errors.GatedRepoError as error:
        raise DownloadError(
            f"{repository} is gated: accept its terms at {constants.ENDPOINT}/{repository}, then set HF_TOKEN to a "
            "token of that account (or run `hf auth login`)."
        ) from error
    except errors.RepositoryNotFoundError as error:
        detail = f"{constants.ENDPOINT} has no such repository, or it is private and HF_TOKEN is not set"
        raise ModelNotFoundError(repository, detail=detail) from error
    except errors.HFValidationError as error:
        raise ModelNotFoundError(repository, detail=str(error)) from error
    except errors.HfHubHTTPError as error:
        raise DownloadError(f"{constants.ENDPOINT} refused {repository}: {_short(error)}.") from error
    except (errors.HTTPError, OSError) as error:  # type: ignore[attr-defined]  # the HTTP client's base class
        return _cached(repository, choice, f"{constants.ENDPOINT} cannot be reached ({_short(error)})")


def _download(api: HfApi, repository: str, choice: str, show: bool) -> Path:
    from huggingface_hub import constants, snapshot_download, utils

    info = api.model_info(repository, files_metadata=True)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    wanted, gguf = select_files(repository, sizes, choice)
    _check_space(repository, Path(constants.HF_HUB_CACHE), wanted, sizes)
    silence = not show and not utils.are_progress_bars_disabled()  # type: ignore[attr-defined]
    if silence:
        utils.disable_progress_bars()  # type: ignore[attr-defined]
    try:
        # The names are matched as patterns: brackets would mean something else.
        patterns = [re.sub(r"([\[*?])", r"[\1]", name) for name in wanted]
        folder = Path(snapshot_download(repository, allow_patterns=patterns))
    finally:
        if silence:
            utils.enable_progress_bars()  # type: ignore[attr-defined]
    return folder / gguf if gguf else folder


def select_files(repository: str, sizes: Mapping[str, int], choice: str) -> tuple[list[str], str]:
    """Which of a repository's files to fetch, and the GGUF file among them or "". Raises CheckpointError."""
    top = [name for name in sizes if "/" not in name]
    safetensors = [name for name in top if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if safetensors and not choice:
        pooling = [name for name in sizes if _POOLING.fullmatch(name)]
        return safetensors + [name for name in top if name.endswith(CONFIG_SUFFIXES)] + pooling, ""
    ggufs = sorted(name for name in sizes if name.lower().endswith(".gguf") and "mmproj" not in name.lower())
    if not ggufs:
        what = f"no GGUF file {choice!r}" if choice else "neither safetensors nor GGUF files"
        raise CheckpointError(
            f"{repository} has {what}. Pickled weights (.bin) are never loaded: choose a repository with safetensors."
        )
    if choice in ggufs:
        return [choice], choice
    if not choice and len(ggufs) == 1:
        return ggufs, ggufs[0]
    for wanted in (choice.lower(),) if choice else DEFAULT_TYPES:
        matches = [name for name in ggufs if re.search(rf"(^|[^a-z0-9]){re.escape(wanted)}\.gguf$", name.lower())]
        if len(matches) == 1:
            return matches, matches[0]
    raise CheckpointError(
        f"{repository} has {len(ggufs)} GGUF files; say which: "
        + ", ".join(f"{repository}:{name}" for name in ggufs[:8])
        + ("." if len(ggufs) <= 8 else ", ...")
    )


def _cached(repository: str, choice: str, why: str) -> Path:
    """What the cache has of the repository. Raises DownloadError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except HFValidationError as error:
        raise ModelNotFoundError(repository, detail=str(error)) from error
    except LocalEntryNotFoundError as error:
        # It also says so when files are missing that were never wanted (README, .bin): that is judged below.
        incomplete = getattr(error, "snapshot_path", None)
        if incomplete is None:
            raise DownloadError(
                f"{repository} is not in the cache, and {why}. Try again with a network, or give a local path."
            ) from error
        folder = Path(incomplete)
    names = {str(path.relative_to(folder)): 0 for path in folder.rglob("*") if path.is_file()}
    try:
        _, gguf = select_files(repository, names, choice)
    except CheckpointError as error:
        raise DownloadError(f"the cached copy of {repository} is not complete ({error}), and {why}.") from error
    missing = [] if gguf else missing_shards(folder)
    if missing:
        raise DownloadError(f"the cached copy of {repository} lacks {', '.join(missing[:4])}, and {why}.")
    return folder / gguf if gguf else folder


def missing_shards(folder: Path) -> list[str]:
    """Files that the folder's safetensors index names, but that are not there. Raises CheckpointError."""
    from deepseek.hub.safetensors_checkpoint import INDEX, read_json

    if not (folder / INDEX).exists():
        return []
    weight_map = read_json(folder / INDEX).get("weight_map", {})
    shards = {shard for shard in weight_map.values() if isinstance(shard, str)} if isinstance(weight_map, dict) else ()
    return sorted(shard for shard in shards if not (folder / shard).exists())


def _check_space(repository: str, cache: Path, wanted: list[str], sizes: Mapping[str, int]) -> None:
    have = cache / ("models--" + repository.replace("/", "--")) / "blobs"
    present = sum(file.stat().st_size for file in have.iterdir()) if have.is_dir() else 0
    needed = sum(sizes[name] for name in wanted) - present
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DiskSpaceError(
            f"{repository} needs {needed / 1e6:,.0f} MB of free disk space in {cache}, but only {free / 1e6:,.0f} MB "
            "are free; free some, or move the cache: set HF_HUB_CACHE to a folder on another disk."
        )


def _short(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
