"""LoRATuner: adapters of low rank in the layers of a frozen model (Hu et al., 2021, arXiv:2106.09685)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deepseek_tune.settings import LoRASettings
from deepseek_tune.tuner import Tuner

if TYPE_CHECKING:
    from torch import Tensor

    from deepseek_tune.adapters import AdapterPlan
    from deepseek_tune.forward import PackedModel
    from deepseek_tune.progress import Reporter


class LoRA:
    """Implements :class:`deepseek_tune.method.Method`.

    Args:
        wrapped: peft's model around the base model.
        plan: what its adapter is.
    """

    def __init__(self, wrapped: Any, plan: AdapterPlan) -> None:
        self.module, self.plan = wrapped, plan

    @property
    def learning_rate(self) -> float:
        return self.plan.learning_rate

    def groups(self) -> list[dict[str, Any]]:
        from deepseek_tune.adapters import parameter_groups

        return parameter_groups(self.module, self.plan)

    def weights(self) -> dict[str, Tensor]:
        from deepseek_tune.adapters import adapter_weights

        return adapter_weights(self.module)

    def state(self) -> dict[str, Tensor]:
        return self.weights()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        from deepseek_tune.adapters import put_weights

        put_weights(self.module, state)

    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.module.peft_config["default"].to_dict()
        return config

    def choices(self) -> dict[str, Any]:
        return asdict(self.plan)


class LoRATuner(Tuner[LoRASettings]):
    """Adapts a model with LoRA.

    >>> LoRATuner(base_model="deepseek-v2.1", train_data="customer_service.json", lora_rank=16, epochs=10).train()

    Args:
        reporter: hears of the run; None draws a progress bar, unless ``progress=False``.
        **settings: the fields of :class:`deepseek_tune.settings.LoRASettings`.

    Raises ConfigurationError: a setting that is unknown, of the wrong type, or cannot work.
    """

    def __init__(self, *, reporter: Reporter | None = None, **settings: Any) -> None:
        super().__init__(LoRASettings, settings, reporter)

    def _method(self, model: Any, packed: PackedModel, base_name: str) -> LoRA:
        from deepseek_tune import adapters, fused

        plan = adapters.make_plan(model, self.settings)
        start = self.settings.start_from and adapters.read_adapter(Path(self.settings.start_from).expanduser(), model)
        wrapped = adapters.add_adapter(model, plan, base_name)
        fused.install(wrapped)
        if start:
            adapters.put_weights(wrapped, start)
        return LoRA(wrapped, plan)
