"""PTuner: learned tokens, or a learned prefix, before a frozen model's input."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_tune.settings import PTuningSettings
from deepseek_tune.tuner import Tuner

if TYPE_CHECKING:
    from deepseek_tune.forward import PackedModel
    from deepseek_tune.progress import Reporter
    from deepseek_tune.prompts import LearnedPrompt


class PTuner(Tuner[PTuningSettings]):
    """Adapts a model with P-Tuning or a prefix.

    >>> PTuner(base_model="deepseek-v2.1", train_data="customer_service.json", virtual_tokens=20).train()

    Args:
        reporter: hears of the run; None draws a progress bar, unless ``progress=False``.
        **settings: the fields of :class:`deepseek_tune.settings.PTuningSettings`.

    Raises ConfigurationError: a setting that is unknown, of the wrong type, or cannot work.
    """

    def __init__(self, *, reporter: Reporter | None = None, **settings: Any) -> None:
        super().__init__(PTuningSettings, settings, reporter)

    def _method(self, model: Any, packed: PackedModel, base_name: str) -> LearnedPrompt:
        import torch

        from deepseek_tune import fused
        from deepseek_tune.prompts import LearnedPrompt

        settings = self.settings
        tokens = None
        if settings.variant == "prefix" and settings.init == "tokens":
            # Before peft is there, which takes a prefix into everything that the model computes.
            count, vocabulary = settings.virtual_tokens, packed.vocab_size
            tokens = packed.prefix_of(torch.randint(vocabulary, (count,), generator=_generator(settings.seed)))
        method = LearnedPrompt(model, settings, base_name)
        if tokens is not None:
            method.start_from(tokens)
        fused.install(model)
        packed.prompt = method.prompt
        return method


def _generator(seed: int) -> Any:
    import torch

    return torch.Generator().manual_seed(seed)
