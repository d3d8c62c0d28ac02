"""Reading an adapter that fits a model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek.adapters.adapter import Adapter, Host, LowRankUpdate, Prefix
from deepseek.adapters.settings import CONFIG, AdapterSettings, read_settings
from deepseek.errors import AdapterError, CheckpointError
from deepseek.hub.safetensors_file import TensorEntry, read_header

if TYPE_CHECKING:
    from torch import Tensor

WEIGHTS = "adapter_model.safetensors"
TOKENS = "prompt_embeddings"
_PREFIX = "base_model.model."
_A, _B, _MAGNITUDE = "lora_A.weight", "lora_B.weight", "lora_magnitude_vector"
_FLOATS = ("F16", "BF16", "F32", "F64")


def read_adapter(folder: Path, host: Host) -> Adapter:
    """The adapter in ``folder``, for a model that offers ``host``.

    Raises AdapterError: no adapter, damaged, or one that does not fit; with all mismatches, not the first alone.
    """
    settings = read_settings(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        pickled = " (its .bin file is pickled, which can run code, and is never loaded)" * any(folder.glob("*.bin"))
        raise AdapterError(f"{folder} has no {WEIGHTS}{pickled}: save the adapter with safetensors.")
    try:
        entries = read_header(path)
    except CheckpointError as error:
        raise AdapterError(str(error)) from error
    check = _check_lora if settings.kind == "lora" else _check_tokens
    problems = check(entries, settings, host)
    problems += [f"{name}: stored as {e.dtype}, not as floats" for name, e in entries.items() if e.dtype not in _FLOATS]
    if problems:
        made_for = f" (it was made for {settings.base_model})" if settings.base_model else ""
        raise AdapterError(f"the adapter in {folder} does not fit this model{made_for}", problems)
    tensors = _load(path)
    digest = _digest(folder)
    if settings.kind == "lora":
        return Adapter("lora", digest, settings.base_model, updates=_updates(tensors, settings))
    if settings.kind == "prompt":
        return Adapter("prompt", digest, settings.base_model, vectors=tensors[TOKENS])
    return Adapter("prefix", digest, settings.base_model, prefix=_prefix(tensors[TOKENS], host))


def _check_lora(entries: Mapping[str, TensorEntry], settings: AdapterSettings, host: Host) -> list[str]:
    """One line for each thing that does not fit."""
    problems: list[str] = []
    unknown: list[str] = []
    wanted = {_A, _B, _MAGNITUDE} if settings.dora else {_A, _B}
    parts: dict[str, set[str]] = {}
    for name, entry in sorted(entries.items()):
        layer, _, part = name.removeprefix(_PREFIX).partition(".lora_")
        part = f"lora_{part}"
        if part not in wanted:
            problems.append(f"{name}: not a part of a linear layer's adapter; that is not implemented")
            continue
        site = host.sites.get(layer)
        if site is None:
            unknown.append(layer)
            continue
        rank = settings.rank_of(layer)
        expected = {_A: (rank, site.inputs), _B: (site.outputs, rank), _MAGNITUDE: (site.outputs,)}[part]
        if entry.shape != expected:
            problems.append(f"{name}: shape {list(entry.shape)}, and the model needs {list(expected)}")
        parts.setdefault(layer, set()).add(part)
    problems += [
        f"{layer}: has no {', '.join(sorted(wanted - found))}" for layer, found in parts.items() if wanted - found
    ]
    if unknown:
        problems += [f"{layer}: no linear layer of the model takes an adapter there" for layer in sorted(set(unknown))]
        kinds = sorted({name.rpartition(".")[2] for name in host.sites})
        problems.append(f"the model has {host.layers} layers with {', '.join(kinds) or 'none that takes one'}")
    if not entries:
        problems.append(f"{WEIGHTS} holds no tensors")
    return problems


def _check_tokens(entries: Mapping[str, TensorEntry], settings: AdapterSettings, host: Host) -> list[str]:
    problems = [f"{name}: there should be {TOKENS} alone" for name in sorted(entries) if name != TOKENS]
    if TOKENS not in entries:
        return [*problems, f"{TOKENS} is missing"]
    shape = entries[TOKENS].shape
    if settings.kind == "prefix":
        if host.cache_width is None:
            return [*problems, "this model keeps no plain keys and values, which a prefix is made of"]
        expected = (settings.tokens, host.layers * 2 * host.cache_width)
    else:
        expected = (settings.tokens, host.hidden)
    if shape != expected:
        problems.append(f"{TOKENS}: shape {list(shape)}, and the model needs {list(expected)}")
    return problems


def _load(path: Path) -> dict[str, Tensor]:
    """All tensors in fp32. Raises AdapterError for values that are not finite."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        stored = load_file(path)
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{path} cannot be read: {error}.") from error
    tensors = {name: tensor.to(torch.float32) for name, tensor in stored.items()}
    if bad := sorted(name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())):
        raise AdapterError(f"{path} is damaged, or its training diverged", [f"{n}: holds NaN or infinity" for n in bad])
    return tensors


def _updates(tensors: Mapping[str, Tensor], settings: AdapterSettings) -> dict[str, LowRankUpdate]:
    layers = {name.removeprefix(_PREFIX).partition(".lora_")[0]: name for name in tensors if name.endswith(_A)}
    return {
        layer: LowRankUpdate(
            tensors[name],
            tensors[name.removesuffix(_A) + _B],
            settings.scale_of(layer),
            tensors[name.removesuffix(_A) + _MAGNITUDE] if settings.dora else None,
        )
        for layer, name in layers.items()
    }


def _prefix(stored: Tensor, host: Host) -> Prefix:
    """From peft's [tokens, layers * (keys, values) * width]."""
    both = stored.view(len(stored), host.layers, 2, -1).permute(2, 1, 0, 3).contiguous()
    return Prefix(both[0], both[1])


def _digest(folder: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()
