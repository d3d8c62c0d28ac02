"""The base model: the product's names and formats in, a frozen transformers model and our tokenizer out."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.errors import CheckpointError, ConfigurationError, UnsupportedModelError
from deepseek.hub.open import open_checkpoint
from deepseek.hub.progress import RichProgress
from deepseek.hub.resolve import ModelFiles, resolve
from deepseek.machine import describe_machine
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch

_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}
"""Processor features that multiply bf16."""


@dataclass(frozen=True)
class BaseFiles:
    """A base model that is not loaded yet."""

    files: ModelFiles
    tokenizer: Tokenizer


def find_base(name: str, *, offline: bool = False) -> BaseFiles:
    """The files and the tokenizer of the model called ``name``; whatever `deepseek serve` takes.

    Raises HubError, CheckpointError, TokenizerError: they cannot be had or read.
    """
    files = resolve(name, offline=offline, progress=RichProgress())
    return BaseFiles(files, load_tokenizer(files.path))


def choose_device(wanted: str) -> torch.device:
    """``auto`` is a GPU where torch finds one. Raises ConfigurationError for a GPU that is not there."""
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device='cuda', but torch finds no GPU here; use device='cpu' or 'auto'.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 where the hardware multiplies it; never fp16, whose range gradients leave."""
    import torch

    if wanted == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        features = describe_machine()["features"]
        assert isinstance(features, list)
        return torch.bfloat16 if _BF16.intersection(features) else torch.float32
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def load_base(files: ModelFiles, dtype: torch.dtype, device: torch.device) -> Any:
    """The frozen transformers model, in evaluation mode. Quantized checkpoints are dequantized to ``dtype``.

    Raises CheckpointError for damaged or incomplete files, UnsupportedModelError for what transformers cannot hold.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if files.path.is_dir() and "quantization_config" not in _config(files.path):
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                files.path, dtype=dtype, local_files_only=True, trust_remote_code=False, attn_implementation="sdpa"
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{files.path} cannot be loaded as a language model: {error}") from error
    else:
        model = _from_checkpoint(files.path, dtype)
    model.requires_grad_(False)
    return model.to(device).eval()


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}.") from error
    return config


def _from_checkpoint(path: Path, dtype: torch.dtype) -> Any:
    """A model of what our own readers read: GGUF, and folders of quantized matrices."""
    import transformers

    checkpoint = open_checkpoint(path)
    try:
        settings = {key: value for key, value in checkpoint.config.items() if key != "quantization_config"}
        if settings.pop("rope_factors", None):
            raise UnsupportedModelError(
                f"{path} has RoPE factors in the manner of Llama 3, which GGUF files do not say in full: tune the "
                "model's safetensors folder instead."
            )
        kind = settings.pop("model_type")
        try:
            config = transformers.AutoConfig.for_model(kind, **settings)
            class_ = transformers.AutoModelForCausalLM._model_mapping[type(config)]
        except (KeyError, ValueError) as error:
            raise UnsupportedModelError(f"transformers cannot hold a model of type {kind!r}: {error}.") from error
        weights = {name: checkpoint.load(name, dtype) for name in checkpoint.shapes}
    finally:
        checkpoint.close()
    model, found = class_.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, attn_implementation="sdpa"
    )
    wrong = {what: sorted(map(str, found.get(f"{what}_keys", ()))) for what in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        detail = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in wrong.items() if names)
        raise UnsupportedModelError(f"{path}: its weights are not those of transformers' {class_.__name__} ({detail}).")
    return model
