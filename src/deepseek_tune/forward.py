"""A transformers model as training needs it: a packed row in, the sum of its answers' losses out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from deepseek.errors import UnsupportedModelError
from deepseek_tune import attention
from deepseek_tune.data.packing import IGNORED, PackedRow
from deepseek_tune.loss import chunked_cross_entropy

_LAYERS = {"full_attention", "sliding_attention"}
_PROBE = (9, 5, 5)
"""Lengths of the examples that a model is verified with."""


@dataclass(frozen=True)
class Prompt:
    """What stands before each example, besides its tokens.

    Attributes:
        count: positions that it takes.
        embeddings: [count, width], the inputs of as many tokens; or None.
        learned: [layers, 2, KV heads, count, width], keys and values (:mod:`deepseek_tune.attention`); or None.
    """

    count: int
    embeddings: Tensor | None = None
    learned: Tensor | None = None


class PackedModel:
    """Computes the loss of packed rows with a causal language model of transformers.

    Args:
        model: in place, its attention becomes the packed one; adapters may be put into it before or after.

    Attributes:
        prompt: makes what stands before each example, for every row anew; None if nothing does.
        vocab_size: of the model.

    Raises UnsupportedModelError if the model computes something that packing or the chunked loss would change.
    """

    def __init__(self, model: Any) -> None:
        attention.register()
        config = model.config.get_text_config()
        name = type(model).__name__
        if not getattr(model, "_supports_attention_backend", False):
            raise UnsupportedModelError(f"{name} has attention of its own, which cannot be kept inside each example.")
        if others := set(getattr(config, "layer_types", None) or ()) - _LAYERS:
            raise UnsupportedModelError(f"{name} has layers that would mix packed examples: {', '.join(others)}.")
        self._head = model.get_output_embeddings()
        if not isinstance(self._head, torch.nn.Linear):
            raise UnsupportedModelError(f"{name} has no plain output matrix.")
        self._model = model
        self._softcap: float | None = getattr(config, "final_logit_softcapping", None)
        self.vocab_size: int = config.vocab_size
        self.prompt: Callable[[], Prompt] | None = None
        self._verify()
        model.set_attn_implementation(attention.NAME)

    @property
    def device(self) -> torch.device:
        device: torch.device = self._head.weight.device
        return device

    def hidden(self, row: PackedRow) -> Tensor:
        """The last hidden states [tokens, width]."""
        prompt = self.prompt() if self.prompt is not None else Prompt(0)
        ids = torch.from_numpy(row.ids)[None].to(self.device)
        positions = torch.from_numpy(row.positions)[None].to(self.device) + prompt.count
        given: dict[str, Any] = {"input_ids": ids}
        before = 0
        if prompt.embeddings is not None:
            before = prompt.count
            given = {"inputs_embeds": torch.cat([prompt.embeddings[None], self._model.get_input_embeddings()(ids)], 1)}
            positions = torch.cat([torch.arange(before, device=self.device)[None], positions], 1)
        output = self._model.get_decoder()(
            **given,
            position_ids=positions,
            packing=attention.Packing(before + row.shared, attention.runs(row.lengths)),
            learned=prompt.learned,
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state[0, before:]
        return hidden

    @torch.no_grad()
    def prefix_of(self, ids: Tensor) -> Tensor:
        """The keys and values [tokens, layers * 2 * KV width] that the model has for a text of these tokens."""
        self._model.set_attn_implementation("sdpa")
        try:
            cache = self._model(input_ids=ids[None].to(self.device), use_cache=True).past_key_values
        finally:
            self._model.set_attn_implementation(attention.NAME)
        both = [part[0].transpose(0, 1).flatten(1) for layer in cache.layers for part in (layer.keys, layer.values)]
        return torch.cat(both, 1)

    def loss(self, row: PackedRow) -> Tensor:
        """The sum of the cross-entropies of the row's answer tokens, a scalar in fp32."""
        targets = torch.from_numpy(row.targets).to(self.device)
        learned = (targets != IGNORED).nonzero()[:, 0]
        hidden = self.hidden(row).index_select(0, learned)
        return chunked_cross_entropy(
            hidden, self._head.weight, targets[learned], bias=self._head.bias, softcap=self._softcap
        )

    @torch.no_grad()
    def _verify(self) -> None:
        """Compare the packed hidden states and the head with the model's own logits, on a few tokens: what a family
        does beyond what is known here (scaled logits, mixing layers) must not pass unnoticed."""
        random = torch.Generator().manual_seed(0)
        examples = [torch.randint(self.vocab_size, (length,), generator=random) for length in _PROBE]
        training = self._model.training
        self._model.eval()
        try:
            self._model.set_attn_implementation("sdpa")
            own = [self._model(input_ids=ids[None].to(self.device), use_cache=False).logits[0] for ids in examples]
            self._model.set_attn_implementation(attention.NAME)
            ids = torch.cat(examples).numpy()
            positions = torch.cat([torch.arange(length) for length in _PROBE]).numpy()
            logits = self._head(self.hidden(PackedRow(ids, positions, ids, _PROBE, (0, 1, 2)))).float()
        finally:
            self._model.train(training)
        if self._softcap is not None:
            logits = torch.tanh(logits / self._softcap) * self._softcap
        expected = torch.cat(own).float()
        error = float((logits - expected).norm() / expected.norm().clamp_min(1e-30))
        bound = 1e-3 if self._head.weight.dtype == torch.float32 else 5e-2
        if not error < bound:
            raise UnsupportedModelError(
                f"{type(self._model).__name__}: packed examples give other logits than single ones (relative error "
                f"{error:.1e}): the model does something that packed training does not know."
            )


def recompute_activations(model: Any) -> None:
    """Keep only the input of each layer, and compute it once more in the backward pass."""
    if hasattr(model, "activation_checkpointing_enable"):  # the older name leaves in transformers 6
        model.activation_checkpointing_enable()
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
