"""Adapt a model to data of your own.

>>> from deepseek_tune import LoRATuner
>>> LoRATuner(base_model="deepseek-v2.1", train_data="customer_service.json", lora_rank=16, epochs=10).train()
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek_tune.estimate import Estimate
    from deepseek_tune.lora import LoRATuner
    from deepseek_tune.ptuning import PTuner
    from deepseek_tune.settings import LoRASettings, PTuningSettings
    from deepseek_tune.tuner import TuningResult

_EXPORTS = {
    "Estimate": "deepseek_tune.estimate",
    "LoRASettings": "deepseek_tune.settings",
    "LoRATuner": "deepseek_tune.lora",
    "PTuner": "deepseek_tune.ptuning",
    "PTuningSettings": "deepseek_tune.settings",
    "TuningResult": "deepseek_tune.tuner",
}
__all__ = ["Estimate", "LoRASettings", "LoRATuner", "PTuner", "PTuningSettings", "TuningResult"]


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used: importing this package stays cheap and free of torch."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_EXPORTS[name]), name)
