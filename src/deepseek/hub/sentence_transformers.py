"""What a model's files say about its vectors: those of the sentence-transformers library, the config, or GGUF metadata.

sentence-transformers (5.x) saves ``modules.json``, a list of steps, and a folder of settings for each step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from deepseek.engine.events import Pooling
from deepseek.errors import CheckpointError, UnsupportedModelError

T = TypeVar("T")
_MODES: Mapping[str, Pooling] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "last",
}
_GGUF_TYPES: Mapping[int, Pooling | None] = {0: None, 1: "mean", 2: "cls", 3: "last"}
"""llama.cpp's ``pooling_type``; 4 is a reranker's."""


@dataclass(frozen=True, kw_only=True)
class SentenceSettings:
    """What the files say; None where they say nothing.

    Attributes:
        shorter: as :class:`deepseek.engine.events.EmbeddingInfo` has it.
        max_tokens: longest text that the model was trained for.
    """

    pooling: Pooling | None = None
    normalize: bool | None = None
    shorter: tuple[int, ...] | None = ()
    max_tokens: int | None = None


class _Module(msgspec.Struct):
    type: str
    path: str = ""


def read_settings(path: Path, config: Mapping[str, Any]) -> SentenceSettings:
    """Of the model at ``path``, a folder or a GGUF file, whose config is ``config``.

    Raises UnsupportedModelError for a step or a kind of pooling that is not implemented, CheckpointError for files that
    are damaged.
    """
    shorter = _shorter(config)
    if not path.is_dir():
        return SentenceSettings(pooling=_gguf_pooling(config.get("pooling_type", 0)), shorter=shorter)
    if not (path / "modules.json").is_file():
        return SentenceSettings(shorter=shorter)
    pooling: Pooling | None = None
    normalize = False
    for module in _decoded(path / "modules.json", list[_Module]):
        kind = module.type.rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(path, module.path)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UnsupportedModelError(
                f"{path / 'modules.json'}: the step {module.type[:100]!r} is not supported; there are Transformer, "
                "Pooling and Normalize."
            )
    return SentenceSettings(pooling=pooling, normalize=normalize, shorter=shorter, max_tokens=_max_tokens(path))


def _pooling(folder: Path, name: str) -> Pooling:
    if Path(name).name != name:
        raise CheckpointError(f"{folder / 'modules.json'}: {name[:100]!r} is not a folder beside it.")
    file = folder / name / "config.json"
    settings = _decoded(file, dict[str, Any])
    chosen = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value]
    if len(chosen) != 1 or chosen[0] not in _MODES:
        raise UnsupportedModelError(
            f"{file}: pooling by {' and '.join(chosen) or 'nothing'} is not supported; there are {', '.join(_MODES)}."
        )
    return _MODES[chosen[0]]


def _max_tokens(folder: Path) -> int | None:
    file = folder / "sentence_bert_config.json"
    if not file.is_file():
        return None
    value = _decoded(file, dict[str, Any]).get("max_seq_length")
    return value if isinstance(value, int) and value > 0 else None


def _shorter(config: Mapping[str, Any]) -> tuple[int, ...] | None:
    listed = config.get("matryoshka_dimensions")
    if isinstance(listed, list) and all(isinstance(size, int) and size > 0 for size in listed):
        return tuple(sorted(listed))
    return None if config.get("is_matryoshka") is True else ()


def _gguf_pooling(number: Any) -> Pooling | None:
    if number not in _GGUF_TYPES:
        raise UnsupportedModelError(f"GGUF pooling_type {number!r} is not supported; there are 0 to 3.")
    return _GGUF_TYPES[number]


def _decoded(file: Path, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error.strerror}.") from error
    except msgspec.MsgspecError as error:
        raise CheckpointError(f"{file} is damaged: {error}.") from error
