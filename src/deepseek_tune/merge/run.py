"""Merging: names in, a model out."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import torch

from deepseek.errors import CheckpointError, ConfigurationError, HubError
from deepseek.export.gguf_model import write_gguf
from deepseek.hub.checkpoint import Checkpoint
from deepseek.hub.open import open_checkpoint
from deepseek.hub.output import check_space, written_whole
from deepseek.hub.shard_writer import ShardWriter
from deepseek.quant.plan import HEAD
from deepseek.threads import wait_politely
from deepseek.tokenizer.companions import write_companions
from deepseek_tune.adapters import CONFIG, RUN, read_config
from deepseek_tune.base import BaseFiles, find_base
from deepseek_tune.merge.adapter import LoRAAdapter, MergedCheckpoint, refuse_prompts
from deepseek_tune.merge.check import Check, check_merged, room_for_check
from deepseek_tune.merge.gguf_lora import write_gguf_lora
from deepseek_tune.settings import ROUNDED

logger = logging.getLogger(__name__)

SAFETENSORS, GGUF, GGUF_LORA = "safetensors", "gguf", "gguf-lora"
FORMATS = (SAFETENSORS, GGUF, GGUF_LORA)
DTYPES = {
    SAFETENSORS: ("f32", "f16", "bf16"),
    GGUF: ("f32", "f16", "bf16", "q8_0"),
    GGUF_LORA: ("f32", "f16"),
}
REPORT = "merge.json"
_TORCH = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_SPELLINGS = {"fp32": "f32", "float32": "f32", "fp16": "f16", "float16": "f16", "bfloat16": "bf16"}


class MergeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What was written.

    Attributes:
        output: the folder, or the ``.gguf`` file.
        format, dtype: of :data:`FORMATS`, and the precision of the matrices.
        base_model: the base model's name.
        adapter: the adapter's folder.
        size_bytes: of the weights.
        seconds: that it took, checked and all.
        check: how far it is from base model and adapter; None if that was not looked at.
    """

    output: str
    format: str
    dtype: str
    base_model: str
    adapter: str
    size_bytes: int
    seconds: float
    check: Check | None


def merge(
    adapter: str | Path,
    output: str | Path,
    base_model: str | None = None,
    *,
    format: str | None = None,
    dtype: str = "auto",
    overwrite: bool = False,
    check: bool = True,
    probe: str | None = None,
    offline: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> MergeResult:
    """Merge a LoRA adapter into its base model.

    Args:
        adapter: the folder with adapter_config.json and adapter_model.safetensors.
        output: the folder to write, or the ``.gguf`` file.
        base_model: any name that `deepseek serve` takes; None takes the one that the adapter was made for.
        format: ``safetensors``, ``gguf``, or ``gguf-lora`` (the adapter alone, for llama.cpp's ``--lora``); None goes
            by the output's name.
        dtype: of the matrices: ``f32``, ``f16``, ``bf16``, and in GGUF ``q8_0``. ``auto`` takes the base model's own,
            and ``f16`` for a quantized one.
        overwrite: replace a model (or file) that is there.
        check: run ``probe`` through both and refuse a result that computes something else. It needs memory for the
            model in fp32; where that is not there, a note says so.
        probe: a text like what the model will see; None takes one of our own.
        say: hears of progress.

    Raises:
        ConfigurationError: settings that do not fit each other, an output that is there, an adapter that is a prompt.
        CheckpointError: files that are damaged; an adapter that does not fit, with all mismatches; a failed check.
        HubError, TokenizerError, UnsupportedModelError: the base model, or what GGUF cannot say of it.
        DiskSpaceError: no room. Whatever goes wrong, nothing is left under ``output``.
    """
    wait_politely()
    began = time.perf_counter()
    folder, path = Path(adapter).expanduser(), Path(output).expanduser()
    refuse_prompts(folder)
    kind = _format(format, path, dtype)
    base = _find_base(folder, base_model, offline)
    _check_place(path, kind, overwrite, {"the adapter": folder, "the base model": base.files.path})
    source = open_checkpoint(base.files.path)
    try:
        change = LoRAAdapter(folder, source.shapes)
        precision = _precision(dtype, kind, source.config, base.files.path)
        merged = MergedCheckpoint(source, change)
        say(f"merging {len(change.changes)} matrices of rank {change.rank} into {base.files.name}, {precision}")
        trained_base = _settings(folder).get("base_dtype")
        if trained_base not in ROUNDED:
            trained_base = None
        else:
            say(f"it was trained on this model in {trained_base}; it is merged into the weights as the files hold them")
        checked = None
        with written_whole(path, file=kind != SAFETENSORS, replace=overwrite) as place:
            if kind == SAFETENSORS:
                _write_folder(merged, base.files.path, place, precision)
            elif kind == GGUF:
                write_gguf(merged, base.files.path, base.files.name, place, precision)
            else:
                write_gguf_lora(change, source.config, place, precision)
            if check and kind != GGUF_LORA:
                checked = _checked(base, folder, place, precision, probe, trained_base, source.shapes, say)
            size = _size(place)
            result = MergeResult(
                output=str(path),
                format=kind,
                dtype=precision,
                base_model=base.files.name,
                adapter=str(folder),
                size_bytes=size,
                seconds=time.perf_counter() - began,
                check=checked,
            )
            if kind == SAFETENSORS:
                (place / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(result)) + b"\n")
    finally:
        source.close()
    return result


def _format(wanted: str | None, output: Path, dtype: str) -> str:
    kind = wanted or (GGUF if output.suffix.lower() == ".gguf" else SAFETENSORS)
    if kind not in FORMATS:
        raise ConfigurationError(f"format is {', '.join(FORMATS)}, not {kind!r}.")
    if kind != SAFETENSORS and output.suffix.lower() != ".gguf":
        raise ConfigurationError(f"the name of a GGUF file ends in .gguf: {output}.gguf")
    if kind == SAFETENSORS and output.suffix.lower() == ".gguf":
        raise ConfigurationError(f"{output} would be a folder of safetensors: its name must not end in .gguf.")
    if dtype != "auto" and _SPELLINGS.get(dtype, dtype) not in DTYPES[kind]:
        raise ConfigurationError(f"dtype for {kind} is auto, {', '.join(DTYPES[kind])}, not {dtype!r}.")
    return kind


def _find_base(folder: Path, wanted: str | None, offline: bool) -> BaseFiles:
    """The model that was named, or that the adapter was made for: as the run's settings name it, else peft's config."""
    if wanted is not None:
        return find_base(wanted, offline=offline)
    name = _settings(folder).get("base_model", read_config(folder).get("base_model_name_or_path"))
    if not isinstance(name, str) or not name:
        raise ConfigurationError(f"{folder / CONFIG} names no base model: give it (base_model).")
    try:
        return find_base(name, offline=offline)
    except (HubError, CheckpointError) as error:
        raise ConfigurationError(
            f"the adapter was made for {name!r}, which cannot be had ({error}) Name its base model (base_model)."
        ) from error


def _settings(folder: Path) -> dict[str, Any]:
    """The settings of the run that made the adapter; none for that of another program."""
    try:
        settings = json.loads((folder / RUN).read_bytes())["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return settings if isinstance(settings, dict) else {}


def _check_place(output: Path, kind: str, overwrite: bool, sources: Mapping[str, Path]) -> None:
    """Nothing is replaced that was not asked for, and only what looks like an earlier result."""
    whole = output.resolve()
    for what, source in sources.items():
        if whole == source.resolve() or whole in source.resolve().parents:
            raise ConfigurationError(f"{output} is or holds {what}: choose another output.")
    if not output.exists():
        return
    if kind != SAFETENSORS:
        if not output.is_file():
            raise ConfigurationError(f"{output} exists and is no file: choose another name.")
        if not overwrite:
            raise ConfigurationError(f"{output} exists: choose another name, or overwrite it (overwrite).")
        return
    if not output.is_dir():
        raise ConfigurationError(f"{output} exists and is no folder: choose another name.")
    if not any(output.iterdir()):
        return
    if not overwrite:
        raise ConfigurationError(f"{output} exists and is not empty: choose another name, or overwrite it (overwrite).")
    if not (output / REPORT).is_file():
        raise ConfigurationError(f"{output} holds something else than a merged model ({REPORT}): it is not replaced.")


def _precision(dtype: str, kind: str, config: Mapping[str, Any], base: Path) -> str:
    if dtype != "auto":
        return _SPELLINGS.get(dtype, dtype)
    if kind == GGUF_LORA:
        return "f32"
    named = str(config.get("dtype") or config.get("torch_dtype") or "float16") if base.is_dir() else "float16"
    return _SPELLINGS.get(named, "f16")


def _write_folder(merged: Checkpoint, base: Path, folder: Path, precision: str) -> None:
    """The weights, tensor by tensor; config.json; and what stands beside them."""
    dtype = _TORCH[precision]
    tied = merged.config.get("tie_word_embeddings") is True
    names = [name for name in merged.shapes if not (tied and name == HEAD)]
    needed = sum(math.prod(merged.shapes[name]) for name in names) * dtype.itemsize
    check_space(folder, needed)
    writer = ShardWriter(folder)
    for name in names:
        tensor = merged.load(name, dtype)
        if not all(bool(torch.isfinite(extreme)) for extreme in torch.aminmax(tensor)):
            raise CheckpointError(f"tensor {name!r} holds NaN, infinity, or values beyond the range of {precision}.")
        writer.add({name: tensor})
    writer.finish()
    config = {key: value for key, value in merged.config.items() if key not in ("torch_dtype", "dtype")}
    config["dtype"] = str(dtype).removeprefix("torch.")
    if config.get("rope_factors"):
        logger.warning(
            "config.json keeps this GGUF file's rope_factors, which this engine reads and others do not know: they "
            "would compute long contexts wrongly."
        )
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_companions(base, folder)


def _checked(
    base: BaseFiles,
    adapter: Path,
    merged: Path,
    precision: str,
    probe: str | None,
    trained_base: str | None,
    shapes: Mapping[str, tuple[int, ...]],
    say: Callable[[str], None],
) -> Check | None:
    if not room_for_check(sum(math.prod(shape) for shape in shapes.values())):
        say("not checked: the memory that is free does not hold this model in fp32")
        return None
    say("checking: the base model with the adapter, and the merged model, on one text")
    return check_merged(base, adapter, merged, precision, probe, trained_base)


def _size(place: Path) -> int:
    files = [place] if place.is_file() else list(place.glob("*.safetensors"))
    return sum(file.stat().st_size for file in files)
