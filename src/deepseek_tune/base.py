"""The base model: the product's names and formats in, a frozen transformers model and our tokenizer out."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from deepseek.errors import CheckpointError, ConfigurationError, UnsupportedModelError
from deepseek.hub.checkpoint import Checkpoint
from deepseek.hub.open import open_checkpoint
from deepseek.hub.progress import RichProgress
from deepseek.hub.resolve import ModelFiles, resolve
from deepseek.machine import describe_machine
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.tokenizer import Tokenizer
from deepseek_tune.quantized import Blocks, Integers, QuantizedLinear, frozen_matrix, is_kept

_BF16 = {"amx_bf16", "avx512_bf16", "bf16"}
"""Processor features that multiply bf16."""
_LEAST_SHARE = 0.5
"""Of the weights of matrices that must become integers for a quantized base to be worth its name."""


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
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigurationError("device='cuda', but torch finds no GPU here; use device='cpu' or 'auto'.")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def choose_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """``auto`` is bf16 where the hardware multiplies it; never fp16, whose range gradients leave."""
    if wanted == "auto":
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
        features = describe_machine()["features"]
        assert isinstance(features, list)
        return torch.bfloat16 if _BF16.intersection(features) else torch.float32
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def load_base(files: ModelFiles, dtype: torch.dtype, device: torch.device, base_dtype: str | None = None) -> Any:
    """The frozen transformers model, in evaluation mode.

    Args:
        dtype: of what is computed, and of the weights. Quantized checkpoints are dequantized to it.
        base_dtype: ``int8``, ``int4`` or ``stored`` keeps the linear layers as integers, loaded one by one
            (:mod:`deepseek_tune.quantized`); None as floats.

    Raises CheckpointError for damaged or incomplete files, UnsupportedModelError for what transformers cannot hold,
    ConfigurationError where ``base_dtype`` would save nothing.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    if files.path.is_dir() and base_dtype is None and "quantization_config" not in _config(files.path):
        try:
            model = transformers.AutoModelForCausalLM.from_pretrained(
                files.path, dtype=dtype, local_files_only=True, trust_remote_code=False, attn_implementation="sdpa"
            )
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{files.path} cannot be loaded as a language model: {error}") from error
    else:
        checkpoint = open_checkpoint(files.path)
        try:
            model = _from_checkpoint(checkpoint, files.path, dtype, base_dtype)
        finally:
            checkpoint.close()
    model.requires_grad_(False)
    return model.to(device).eval()


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'config.json'} cannot be read: {error}.") from error
    return config


def _from_checkpoint(checkpoint: Checkpoint, path: Path, dtype: torch.dtype, base_dtype: str | None) -> Any:
    """A model of what our own readers read: GGUF, and folders of safetensors, quantized ones too."""
    import transformers

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
    matrices = {} if base_dtype is None else _matrices(checkpoint, class_, config, path, base_dtype)
    # Instead of a matrix that stays integers, one number that is repeated: a shape without memory.
    hole = torch.zeros((), dtype=dtype)
    weights = {
        name: hole.expand(shape) if name in matrices else checkpoint.load(name, dtype)
        for name, shape in checkpoint.shapes.items()
    }
    model, found = class_.from_pretrained(
        None, config=config, state_dict=weights, dtype=dtype, output_loading_info=True, attn_implementation="sdpa"
    )
    wrong = {what: sorted(map(str, found.get(f"{what}_keys", ()))) for what in ("missing", "unexpected", "mismatched")}
    if any(wrong.values()):
        detail = "; ".join(f"{what}: {', '.join(names[:5])}" for what, names in wrong.items() if names)
        raise UnsupportedModelError(f"{path}: its weights are not those of transformers' {class_.__name__} ({detail}).")
    for name, matrix in matrices.items():
        layer = name.removesuffix(".weight")
        model.set_submodule(layer, QuantizedLinear(matrix, model.get_submodule(layer).bias, dtype))
    return model


def _matrices(
    checkpoint: Checkpoint, class_: Any, config: Any, path: Path, base_dtype: str
) -> dict[str, Integers | Blocks]:
    """Name -> integers of every matrix that is kept so: those that are a linear layer of the model, under that name.

    Raises ConfigurationError if the checkpoint stores floats (``stored``), or most of the weights are not among them.
    """
    with torch.device("meta"):
        skeleton = class_(config)
    linear = {f"{name}.weight" for name, module in skeleton.named_modules() if type(module) is torch.nn.Linear}
    sizes = {name: math.prod(shape) for name, shape in checkpoint.shapes.items() if is_kept(name, shape)}
    chosen = [name for name in sizes if name in linear]
    if base_dtype == "stored":
        chosen = [name for name in chosen if checkpoint.quantized(name) is not None]
        if not chosen:
            raise ConfigurationError(f"base_dtype='stored', but {path} stores floats: take int8 or int4.")
    share = sum(sizes[name] for name in chosen) / max(1, sum(sizes.values()))
    if share < _LEAST_SHARE:
        raise ConfigurationError(
            f"base_dtype={base_dtype!r} keeps linear layers as integers, and in {path} these hold {share:.0%} of the "
            "weights of matrices: the others, such as experts, would stay floats. Leave base_dtype out."
        )
    return {name: frozen_matrix(checkpoint, name, base_dtype) for name in chosen}
