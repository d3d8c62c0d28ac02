"""LoRA adapters in the layout of peft: which layers, which rank, and whether an adapter fits a model."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek.errors import CheckpointError, ConfigurationError
from deepseek_tune.settings import LoRASettings

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
RUN = "run.json"
"""Of a finished run: its settings, data and steps."""
REPORT = "report.html"
"""The same for people."""
DEFAULT_RANK = 16
TINY_SHARE = 0.001
"""Of the parameters that the preset ``tiny`` trains."""
_LEARNING_RATE = 5e-4
"""For a model of :data:`_REFERENCE_WIDTH`, whatever the rank. Narrower models take more: a power law that was fitted to
Llama models (tinker-cookbook's ``hyperparam_utils``, after Schulman et al., LoRA Without Regret, 2025)."""
_REFERENCE_WIDTH = 2000
_WIDTH_EXPONENT = 0.78
_TINY_TARGETS = ("v_proj", "kv_b_proj", "qkv_proj", "query_key_value", "o_proj", "down_proj", "dense_4h_to_h")
"""Of few parameters, those in values and in what is added to the residual stream teach most: on Banking77 with SmolLM2
43% after 57 steps, against 28% of as many in queries and values (docs/tune.md)."""
PREFIX = "base_model.model."
_UNSUPPORTED = ("rank_pattern", "alpha_pattern", "modules_to_save", "layers_to_transform")


@dataclass(frozen=True)
class AdapterPlan:
    """What is trained, every choice made.

    Attributes:
        rank, alpha, dropout, rslora, dora: as in :class:`deepseek_tune.settings.LoRASettings`.
        target_modules: last parts of the names of the layers.
        learning_rate: the highest, of the matrices A.
        loraplus_ratio: that of the matrices B over it.
    """

    rank: int
    alpha: float
    dropout: float
    rslora: bool
    dora: bool
    target_modules: tuple[str, ...]
    learning_rate: float
    loraplus_ratio: float


def make_plan(model: Any, settings: LoRASettings) -> AdapterPlan:
    """The plan for ``model``. Raises ConfigurationError naming all target modules that the model does not have, and
    CheckpointError for an adapter to start from that is none."""
    linear = linear_layers(model)
    names = sorted({name.rpartition(".")[2] for name in linear})
    rank, alpha, rslora, dora = settings.lora_rank, settings.lora_alpha, settings.rslora, settings.dora
    if settings.start_from is not None:
        config = read_config(Path(settings.start_from).expanduser())
        rank, alpha, rslora, dora = config["r"], config["lora_alpha"], config["use_rslora"], config["use_dora"]
        targets: Sequence[str] = config["target_modules"]
    elif settings.target_modules is not None:
        targets = settings.target_modules
    elif settings.preset == "tiny":
        targets = [name for name in _TINY_TARGETS if name in names] or names
    else:
        targets = names
    if missing := [name for name in targets if name not in names]:
        raise ConfigurationError(
            f"the base model has no linear layer {', '.join(map(repr, missing))}; it has {', '.join(names)}."
        )
    if rank is None:
        rank = _tiny_rank(model, linear, targets) if settings.preset == "tiny" else DEFAULT_RANK
    return AdapterPlan(
        rank=rank,
        alpha=alpha if alpha is not None else float(rank if rslora else 2 * rank),
        dropout=settings.lora_dropout,
        rslora=rslora,
        dora=dora,
        target_modules=tuple(sorted(set(targets))),
        learning_rate=settings.learning_rate or default_rate(model.config.get_text_config().hidden_size),
        loraplus_ratio=settings.loraplus_ratio,
    )


def default_rate(hidden_size: int) -> float:
    """The learning rate for a model of this width."""
    return _LEARNING_RATE * math.pow(_REFERENCE_WIDTH / hidden_size, _WIDTH_EXPONENT)


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs) of every linear layer but the output matrix."""
    import torch

    head = model.get_output_embeddings()
    return {
        name: (module.out_features, module.in_features)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }


def _tiny_rank(model: Any, linear: Mapping[str, tuple[int, int]], targets: Sequence[str]) -> int:
    from deepseek_tune.quantized import parameter_count

    per_rank = sum(sum(shape) for name, shape in linear.items() if name.rpartition(".")[2] in targets)
    return max(1, round(TINY_SHARE * parameter_count(model) / per_rank))


def add_adapter(model: Any, plan: AdapterPlan, base_name: str) -> Any:
    """Put untrained adapters into ``model``, in place; returns peft's model around it."""
    import peft

    config = peft.LoraConfig(
        r=plan.rank,
        lora_alpha=plan.alpha,
        lora_dropout=plan.dropout,
        target_modules=list(plan.target_modules),
        use_rslora=plan.rslora,
        use_dora=plan.dora,
        bias="none",
        task_type="CAUSAL_LM",
        base_model_name_or_path=base_name,
    )
    model.name_or_path = base_name  # which peft prefers to the config's; a GGUF file has none
    with quiet_peft():
        return peft.get_peft_model(model, config)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without two warnings of peft 0.21: it asks for an attribute that transformers 5.23 has renamed, and works all the
    same; and before a prompt it counts positions itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Position ids are not supported", UserWarning)
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        yield


def parameter_groups(wrapped: Any, plan: AdapterPlan) -> list[dict[str, Any]]:
    """Parameters for the optimizer, the matrices B apart; ``scale`` is the share of the learning rate of each group."""
    ours = {name: weight for name, weight in wrapped.named_parameters() if weight.requires_grad}
    upper = [weight for name, weight in ours.items() if "lora_B" in name]
    others = [weight for name, weight in ours.items() if "lora_B" not in name]
    return [{"params": others, "scale": 1.0}, {"params": upper, "scale": plan.loraplus_ratio}]


def adapter_weights(wrapped: Any) -> dict[str, Tensor]:
    """A copy of the adapter's weights under their names in ``adapter_model.safetensors``."""
    import peft

    weights: Mapping[str, Tensor] = peft.get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    return {name: weight.detach().cpu().clone().contiguous() for name, weight in weights.items()}


def put_weights(wrapped: Any, weights: Mapping[str, Tensor]) -> None:
    """Set the adapter's weights to what :func:`adapter_weights` returned."""
    import peft

    result = peft.set_peft_model_state_dict(wrapped, dict(weights))
    assert not result.unexpected_keys, result.unexpected_keys


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a LoRA adapter: peft's keys, those that are needed here checked. Raises CheckpointError."""
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} is not an adapter: {path.name} cannot be read ({error}).") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise CheckpointError(f"{path} is not the config of a LoRA adapter.")
    targets = config.get("target_modules")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or rank < 1 or not isinstance(alpha, (int, float)) or not math.isfinite(alpha):
        raise CheckpointError(f"{path}: r and lora_alpha must be numbers, not {rank!r} and {alpha!r}.")
    if not isinstance(targets, list) or not all(isinstance(name, str) for name in targets) or not targets:
        raise CheckpointError(f"{path}: target_modules must be a list of names, not {targets!r}.")
    unsupported = [key for key in _UNSUPPORTED if config.get(key)]
    if unsupported or config.get("bias", "none") != "none":
        raise CheckpointError(f"{path}: {', '.join(unsupported) or 'bias'} is not supported.")
    return {**config, "use_rslora": bool(config.get("use_rslora")), "use_dora": bool(config.get("use_dora"))}


def read_adapter(folder: Path, model: Any) -> dict[str, Tensor]:
    """The weights of the adapter in ``folder``, which fits ``model``.

    Raises CheckpointError with all mismatches: layers that the model does not have, shapes that differ.
    """
    config, weights = read_config(folder), read_weights(folder)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    refuse_mismatches(folder, config, shapes, linear_layers(model))
    return weights


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of the adapter in ``folder``, whatever they are. Raises CheckpointError."""
    import safetensors.torch
    from safetensors import SafetensorError

    try:
        return safetensors.torch.load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} cannot be read: {error}.") from error


def refuse_mismatches(
    folder: Path,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    linear: Mapping[str, tuple[int, int]],
) -> None:
    """Raises CheckpointError that names all in which an adapter does not fit a model with these linear layers."""
    if wrong := mismatches(shapes, config["r"], linear):
        shown = "\n".join(f"  {line}" for line in wrong[:20]) + (f"\n  and {len(wrong) - 20} more" * (len(wrong) > 20))
        raise CheckpointError(
            f"the adapter in {folder} does not fit the base model (it was made for "
            f"{config.get('base_model_name_or_path') or 'one without a name'}):\n{shown}"
        )


def mismatches(shapes: Mapping[str, tuple[int, ...]], rank: int, linear: Mapping[str, tuple[int, int]]) -> list[str]:
    """What keeps adapter weights of these shapes from fitting linear layers (name -> outputs, inputs): one line each,
    none if they fit."""
    wrong = []
    for name, shape in sorted(shapes.items()):
        layer, _, part = name.removeprefix(PREFIX).partition(".lora_")
        if layer not in linear:
            wrong.append(f"{name}: the model has no linear layer {layer}")
            continue
        outputs, inputs = linear[layer]
        expected = {"A.weight": (rank, inputs), "B.weight": (outputs, rank), "magnitude_vector": (outputs,)}
        if part not in expected:
            wrong.append(f"{name}: neither A nor B of an adapter")
        elif shape != expected[part]:
            wrong.append(f"{name}: shape {list(shape)}, and the model needs {list(expected[part])}")
    return wrong
