"""What a run trains, as the loop sees it: LoRA adapters and learned prompts alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class Method(Protocol):
    """Parameters put into or before a frozen model.

    Attributes:
        module: everything, the base model included; its mode (training or evaluation) is that of the run.
        learning_rate: the highest of the schedule.
    """

    @property
    def module(self) -> torch.nn.Module: ...

    @property
    def learning_rate(self) -> float: ...

    def groups(self) -> list[dict[str, Any]]:
        """Parameters for the optimizer; ``scale`` is the share of the learning rate of each group."""
        ...

    def weights(self) -> dict[str, Tensor]:
        """A copy of what ``adapter_model.safetensors`` holds."""
        ...

    def state(self) -> dict[str, Tensor]:
        """A copy of everything that is trained, for a checkpoint."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over what :meth:`state` gave."""
        ...

    def config(self) -> dict[str, Any]:
        """What ``adapter_config.json`` holds, peft's own objects included."""
        ...

    def choices(self) -> dict[str, Any]:
        """Every choice made, ready for JSON."""
        ...
