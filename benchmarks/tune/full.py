"""Full fine-tuning in our own loop, which the product does not offer: what adapters are compared with."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from deepseek_tune import fused
from deepseek_tune.forward import PackedModel
from deepseek_tune.progress import Silent
from deepseek_tune.settings import TuningSettings
from deepseek_tune.tuner import Tuner


class FullTuner(Tuner[TuningSettings]):
    """Trains all weights of a folder of safetensors; the result is such a folder. Writes no checkpoints."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(TuningSettings, settings, Silent())

    def _method(self, model: Any, packed: PackedModel, base_name: str) -> AllWeights:
        assert self.settings.learning_rate is not None
        fused.install(model)
        return AllWeights(model, self.settings.learning_rate)

    def _load(self, *arguments: Any) -> Any:
        ready = super()._load(*arguments)
        ready.trainer.save = lambda: None  # type: ignore[method-assign]
        return ready

    def _write(self, output: Path, ready: Any, *arguments: Any) -> None:
        ready.method.module.save_pretrained(output)
        for pattern in ("*token*", "*.jinja"):
            for path in Path(self.settings.base_model).glob(pattern):
                shutil.copy(path, output)


class AllWeights:
    """Implements :class:`deepseek_tune.method.Method`: the model computes in its own precision, and what the optimizer
    changes are fp32 copies of its weights (Micikevicius et al., 2017, arXiv:1710.03740).

    Args:
        model: of any floating dtype.
        learning_rate: the highest of the schedule.
    """

    def __init__(self, model: Any, learning_rate: float) -> None:
        self.module, self.learning_rate = model, learning_rate
        self._weights = list(model.parameters())
        self._masters = [torch.nn.Parameter(weight.detach().float().clone()) for weight in self._weights]
        for weight, master in zip(self._weights, self._masters, strict=True):
            weight.requires_grad_(True)
            weight.register_post_accumulate_grad_hook(_adder(master))
        register_optimizer_step_post_hook(self._publish)

    @torch.no_grad()
    def _publish(self, *_: Any) -> None:
        for weight, master in zip(self._weights, self._masters, strict=True):
            weight.copy_(master)

    def groups(self) -> list[dict[str, Any]]:
        return [{"params": self._masters, "scale": 1.0}]

    def weights(self) -> dict[str, Tensor]:
        return {}  # they are in the model

    def state(self) -> dict[str, Tensor]:
        raise NotImplementedError("full fine-tuning writes no checkpoints")

    def restore(self, state: Mapping[str, Tensor]) -> None:
        raise NotImplementedError("full fine-tuning writes no checkpoints")

    def config(self) -> dict[str, Any]:
        return {}

    def choices(self) -> dict[str, Any]:
        return {"learning_rate": self.learning_rate}


def _adder(master: Tensor) -> Any:
    """Adds a weight's gradient to that of its fp32 copy, row by row, and forgets it."""

    def add(weight: Tensor) -> None:
        assert weight.grad is not None
        grad = weight.grad.float()
        master.grad = grad if master.grad is None else master.grad.add_(grad)
        weight.grad = None

    return add
