"""Does the merged model compute what the base model computes with the adapter?

The reference is transformers with peft; the merged model is read back and run by our own engine, both in fp32. So a
mistake in either half of the way (the arithmetic, names, order of rows, config, tokenizer) shows.
"""

from __future__ import annotations

import gc
import math
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil

from deepseek.errors import CheckpointError, ConfigurationError
from deepseek_tune.adapters import quiet_peft
from deepseek_tune.base import BaseFiles, load_base

if TYPE_CHECKING:
    from torch import Tensor

PROBE = (
    "Hello! My card was charged twice for order 20250117, and I would like my money back, please.\n"
    "我想退款，订单号是 20250117。注文をキャンセルしたいです。환불은 언제 되나요?\n"
    "def total(items):\n    return sum(item.price * item.count for item in items)\n"
)
MAX_TOKENS = 256

BOUNDS = {"f32": 2e-3, "f16": 1e-2, "bf16": 6e-2, "q8_0": 2.5e-1}
"""How far logits may be off, as a share of their spread (both as root mean squares), by the precision of the weights.
Rounding alone gave a quarter of it or less on the models that were tried (SmolLM2 135M with an adapter of all layers:
0.0004%, 0.19%, 1.3% and 6.2%); another order of rows or a forgotten matrix gives more than 50%."""


class Check(msgspec.Struct, frozen=True):
    """A merged model beside base model and adapter, on one text.

    Attributes:
        tokens: of the text.
        largest_difference: of a logit.
        adapter_effect: the largest change of a logit by the adapter: what the difference is to be seen against.
        relative_difference: of all logits, root mean square, as a share of their spread.
        same_top: the share of places with the same likeliest token.
        trained_base: in what the base model was kept when the adapter was trained, where that was integers.
        trained_difference: the largest difference of a logit from that base with the adapter; else None.
    """

    tokens: int
    largest_difference: float
    adapter_effect: float
    relative_difference: float
    same_top: float
    trained_base: str | None = None
    trained_difference: float | None = None

    def __str__(self) -> str:
        text = (
            f"on {self.tokens} tokens the largest difference of a logit is {self.largest_difference:.4g}, where the "
            f"adapter changes up to {self.adapter_effect:.4g}; the likeliest token is the same at {self.same_top:.1%}"
        )
        if self.trained_difference is None:
            return text
        return (
            f"{text}. From the base model in {self.trained_base}, on which the adapter was trained, it is "
            f"{self.trained_difference:.4g}: the rounding of that base"
        )


def room_for_check(parameters: int) -> bool:
    """Whether an fp32 model of this size fits the memory that is free."""
    return 5 * parameters < int(psutil.virtual_memory().available)


def check_merged(
    base: BaseFiles,
    adapter: Path,
    merged: Path,
    kind: str,
    probe: str | None = None,
    trained_base: str | None = None,
) -> Check:
    """Compare the model at ``merged`` (weights of precision ``kind``) with ``base`` and the adapter in a folder.

    What is merged is the base model as its files hold it, and so that is what must be met. Where the adapter was
    trained on integers (``trained_base``, a base_dtype), the difference from those is told beside it.

    Raises CheckpointError if it computes something else, ConfigurationError for a probe without tokens.
    """
    ids = base.tokenizer.encode(probe or PROBE)[:MAX_TOKENS]
    if len(ids) < 2:
        raise ConfigurationError("the text to check with has fewer than two tokens.")
    wanted, plain = _reference(base, adapter, ids)
    gc.collect()
    trained = None if trained_base is None else _reference(base, adapter, ids, trained_base)[0]
    gc.collect()
    found = _merged(merged, ids, probe or PROBE)
    difference = found - wanted
    spread = float((wanted - wanted.mean(-1, keepdim=True)).square().mean().sqrt())
    check = Check(
        tokens=len(ids),
        largest_difference=float(difference.abs().max()),
        adapter_effect=float((wanted - plain).abs().max()),
        relative_difference=float(difference.square().mean().sqrt()) / max(spread, 1e-12),
        same_top=float((found.argmax(-1) == wanted.argmax(-1)).float().mean()),
        trained_base=trained_base,
        trained_difference=None if trained is None else float((found - trained).abs().max()),
    )
    if not math.isfinite(check.relative_difference) or check.relative_difference > BOUNDS[kind]:
        raise CheckpointError(
            f"the merged model does not compute what base model and adapter do: {check}. Logits are off by "
            f"{check.relative_difference:.2%} of their spread, and {kind} allows {BOUNDS[kind]:.2%}. Nothing was "
            "written; a higher precision (dtype) may help, and check=False writes it all the same."
        )
    return check


def _reference(base: BaseFiles, adapter: Path, ids: list[int], base_dtype: str | None = None) -> tuple[Tensor, Tensor]:
    """Logits fp32 [tokens, vocabulary] with the adapter, and without."""
    import peft
    import torch

    model = load_base(base.files, torch.float32, torch.device("cpu"), base_dtype)
    with quiet_peft():
        wrapped = peft.PeftModel.from_pretrained(model, str(adapter)).eval()
    tokens = torch.tensor([ids])
    with torch.inference_mode():
        wanted = wrapped(input_ids=tokens).logits[0].float()
        with wrapped.disable_adapter():
            plain = wrapped(input_ids=tokens).logits[0].float()
    return wanted, plain


def _merged(path: Path, ids: list[int], probe: str) -> Tensor:
    from deepseek.quality import load_model_of, scoring_config
    from deepseek.quant.windows import forward

    model, tokenizer, _ = load_model_of(scoring_config(str(path), "fp32", offline=True))
    if tokenizer.encode(probe)[:MAX_TOKENS] != ids:
        raise CheckpointError("the merged model's tokenizer cuts text otherwise than the base model's.")
    logits: Tensor = forward(model, [ids]).float()
    return logits.view(len(ids), -1)
