"""Learned prompts in the layouts of peft: the tokens of P-Tuning, and prefixes.

P-Tuning (Liu et al., 2021, arXiv:2103.10385) puts learned embeddings before each example, made by a small network, the
prompt encoder, that only training needs. A prefix (Li and Liang, 2021, arXiv:2101.00190) puts learned keys and values
before it in every layer. Both take positions: an example's own tokens count from behind them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepseek.errors import UnsupportedModelError
from deepseek_tune.adapters import quiet_peft
from deepseek_tune.settings import PTuningSettings

if TYPE_CHECKING:
    from deepseek_tune.forward import Prompt

WEIGHT = "prompt_embeddings"
"""The one tensor of ``adapter_model.safetensors``: [virtual tokens, width], of a prefix [virtual tokens, layers * 2 *
KV heads * width of a head], keys before values in each layer."""
_LEARNING_RATES = {"p-tuning": 1e-2, "prefix": 1e-2}


class LearnedPrompt:
    """Implements :class:`deepseek_tune.method.Method`.

    Args:
        model: the base model; peft puts itself around it.
        settings: of the run.
        base_name: what the adapter says it was made for.

    Raises UnsupportedModelError: the model's keys and values are not of one shape.
    """

    def __init__(self, model: Any, settings: PTuningSettings, base_name: str) -> None:
        import peft

        model.name_or_path = base_name
        self._prefix = settings.variant == "prefix"
        self._base = model
        with quiet_peft():
            self.module = peft.get_peft_model(model, _config(model, settings, base_name))
        self._encoder = self.module.prompt_encoder["default"].float()
        self.learning_rate = settings.learning_rate or _LEARNING_RATES[settings.variant]
        self._settings = settings
        if self._prefix:
            _check_prefix(model, self.module.peft_config["default"])

    def start_from(self, prefix: Tensor) -> None:
        """Begin with this prefix ([virtual tokens, layers * 2 * KV width]) instead of random numbers."""
        self._encoder.load_prompt_embeddings(prefix.float())

    def prompt(self) -> Prompt:
        """What stands before each example, with the gradient of the encoder."""
        from deepseek_tune.forward import Prompt

        values = self._values()
        count = len(values)
        if not self._prefix:
            return Prompt(count, embeddings=values.to(self._base.dtype))
        config = self.module.peft_config["default"]
        heads, width = config.num_attention_heads, config.token_dim // config.num_attention_heads
        learned = values.to(self._base.dtype).view(count, config.num_layers, 2, heads, width)
        return Prompt(count, learned=learned.permute(1, 2, 3, 0, 4))

    def _values(self) -> Tensor:
        count = self._settings.virtual_tokens
        values: Tensor = self._encoder(torch.arange(count, device=self._encoder.embedding.weight.device)[None])
        return values[0]

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": list(self._encoder.parameters()), "scale": 1.0}]

    @torch.no_grad()
    def weights(self) -> dict[str, Tensor]:
        training = self._encoder.training
        self._encoder.eval()
        values = self._values().detach().cpu().clone().contiguous()
        self._encoder.train(training)
        return {WEIGHT: values}

    def state(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().clone() for name, value in self._encoder.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self._encoder.load_state_dict(dict(state))

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.module.peft_config["default"].to_dict()
        return config

    def choices(self) -> dict[str, Any]:
        names = ("variant", "virtual_tokens", "encoder", "encoder_hidden", "encoder_layers", "encoder_dropout")
        chosen = {name: getattr(self._settings, name) for name in (*names, "projection", "init")}
        return chosen | {"learning_rate": self.learning_rate}


def _config(model: Any, settings: PTuningSettings, base_name: str) -> Any:
    import peft

    common = {
        "task_type": "CAUSAL_LM",
        "num_virtual_tokens": settings.virtual_tokens,
        "encoder_hidden_size": settings.encoder_hidden or model.config.get_text_config().hidden_size,
        "base_model_name_or_path": base_name,
    }
    if settings.variant == "prefix":
        return peft.PrefixTuningConfig(**common, prefix_projection=settings.projection)
    return peft.PromptEncoderConfig(
        **common,
        encoder_reparameterization_type=settings.encoder.upper(),
        encoder_num_layers=settings.encoder_layers,
        encoder_dropout=settings.encoder_dropout,
    )


def _check_prefix(model: Any, config: Any) -> None:
    """Raises UnsupportedModelError if the model's layers do not hold keys and values as the prefix has them."""
    text = model.config.get_text_config()
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if hasattr(text, "kv_lora_rank") or (config.num_attention_heads, config.token_dim) != (heads, heads * width):
        raise UnsupportedModelError(
            f"{type(model).__name__} keeps keys and values in a shape of its own: a prefix cannot be put before them. "
            "Use variant='p-tuning' or LoRATuner."
        )
