"""A Hugging Face model folder: config.json and safetensors, in one file or in shards, floating or compressed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.hub.compressed_tensors import (
    QuantizedEntry,
    check_config,
    find_quantized,
    hidden_names,
    is_compressed,
    read_quantized,
)
from deepseek.hub.safetensors_file import TensorEntry, parse_json, read_header

if TYPE_CHECKING:
    import torch
    from safetensors import safe_open
    from torch import Tensor

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
MAX_JSON = 100_000_000

_FLOATS = frozenset({"F16", "BF16", "F32", "F64"})


class SafetensorsCheckpoint:
    """Implements :class:`deepseek.hub.checkpoint.Checkpoint`. Every header is checked when it is opened."""

    def __init__(self, folder: Path | str) -> None:
        self._folder = Path(folder)
        self.config: Mapping[str, Any] = read_config(self._folder)
        self._entries: dict[str, tuple[Path, TensorEntry]] = {}
        index = self._folder / INDEX
        if index.exists():
            self._read_shards(index)
        else:
            path = _single_file(self._folder)
            self._entries = {name: (path, entry) for name, entry in read_header(path).items()}
        # Embedding models such as Qwen3-Embedding are saved as decoders alone, whose names begin further inside.
        self._prefix = "model." if "embed_tokens.weight" in self._entries else ""
        self._entries = {self._prefix + name: entry for name, entry in self._entries.items()}
        self._quantized: dict[str, QuantizedEntry] = {}
        self.shapes: Mapping[str, tuple[int, ...]] = {name: entry.shape for name, (_, entry) in self._entries.items()}
        if is_compressed(self.config):
            self._read_compressed()
        self._open: dict[Path, safe_open] = {}

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        if name in self._quantized:
            return read_quantized(self._quantized[name], self._read, str(self._folder)).dequantize(dtype)
        tensor = self._read(name)
        path, entry = self._entries[name]
        if entry.dtype not in _FLOATS and tensor.dtype != dtype:
            raise UnsupportedModelError(
                f"{path}: tensor {name!r} is stored as {entry.dtype}; reading it as {dtype} is not supported."
            )
        return tensor.to(dtype)

    def quantized(self, name: str) -> QuantizedMatrix | None:
        if name not in self.shapes:
            raise self._missing(name)
        entry = self._quantized.get(name)
        return None if entry is None else read_quantized(entry, self._read, str(self._folder))

    def close(self) -> None:
        self._open.clear()  # a file is unmapped with the last tensor that lies in it

    def _missing(self, name: str) -> CheckpointError:
        return CheckpointError(f"{self._folder} has no tensor {name!r}: the checkpoint is not complete.")

    def _read(self, name: str) -> Tensor:
        """A tensor as it is stored."""
        import safetensors

        if name not in self._entries:
            raise self._missing(name)
        path, _ = self._entries[name]
        try:
            if path not in self._open:
                self._open[path] = safetensors.safe_open(path, framework="pt")
            tensor: Tensor = self._open[path].get_tensor(name.removeprefix(self._prefix))  # type: ignore[no-untyped-call]
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: tensor {name!r} cannot be read: {error}.") from error
        return tensor

    def _read_compressed(self) -> None:
        """Show quantized matrices under their plain names, and the config without what this reader takes care of."""
        settings = self.config["quantization_config"]
        check_config(settings, str(self._folder / "config.json"))
        entries = {name: entry for name, (_, entry) in self._entries.items()}
        self._quantized = find_quantized(entries, str(self._folder))
        hidden = hidden_names(entries)
        shapes = {name: entry.shape for name, entry in entries.items() if name not in hidden}
        self.shapes = shapes | {name: entry.shape for name, entry in self._quantized.items()}
        self.config = {key: value for key, value in self.config.items() if key != "quantization_config"}

    def _read_shards(self, index: Path) -> None:
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no weight_map.")
        headers: dict[str, dict[str, TensorEntry]] = {}
        for name, shard in weight_map.items():
            if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith(".safetensors"):
                raise CheckpointError(
                    f"{index}: tensor {name[:200]!r} is in {str(shard)[:80]!r}, not a file beside it."
                )
            if shard not in headers:
                headers[shard] = read_header(self._folder / shard)
            if name not in headers[shard]:
                raise CheckpointError(f"{index} says that {shard} has the tensor {name[:200]!r}, but it has not.")
            self._entries[name] = (self._folder / shard, headers[shard][name])


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``. Raises CheckpointError."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(f"{path} is larger than {MAX_JSON} bytes: that is no configuration.")
        return parse_json(path.read_bytes(), str(path))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error}.") from error


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json. Raises CheckpointError."""
    path = folder / "config.json"
    if not path.exists():
        raise CheckpointError(f"{folder} has no config.json: it is not a model folder.")
    return read_json(path)


def _single_file(folder: Path) -> Path:
    if (folder / WEIGHTS).exists():
        return folder / WEIGHTS
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files[0]
    if files:
        raise CheckpointError(f"{folder} has {len(files)} safetensors files, but no {INDEX} that says what is in them.")
    if any(folder.glob("*.bin")) or any(folder.glob("*.pth")) or any(folder.glob("*.pt")):
        raise CheckpointError(
            f"{folder} holds pickled weights (.bin), which can run code and are never loaded. Convert them to "
            "safetensors first: load them with transformers in a trusted place and call "
            "save_pretrained(folder, safe_serialization=True)."
        )
    raise CheckpointError(f"{folder} has no {WEIGHTS} and no {INDEX}: weights are missing.")
