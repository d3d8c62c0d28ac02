"""BERT and its multilingual relatives RoBERTa and XLM-R, as encoders of sentences (arXiv:1810.04805, arXiv:1907.11692,
arXiv:1911.02116). Bidirectional: no cache, no logits; texts of a batch are padded to its longest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from deepseek.errors import CheckpointError
from deepseek.hub.checkpoint import Checkpoint
from deepseek.kernels.ops import Ops
from deepseek.layers.linear import Linear
from deepseek.layers.norm import LayerNorm
from deepseek.models.blocks import build_fused, build_linear
from deepseek.models.config import ConfigReader
from deepseek.models.weights import LoadProgress, WeightSource

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
    "relu": F.relu,
}
ROBERTA = ("RobertaModel", "XLMRobertaModel")
ENCODERS = ("BertModel", "BertForMaskedLM", *ROBERTA, "RobertaForMaskedLM", "XLMRobertaForMaskedLM")
MODEL_TYPES: Mapping[str, str] = {"bert": "BertModel", "roberta": "RobertaModel", "xlm-roberta": "XLMRobertaModel"}
# What fine-tuning and pretraining put on top of the encoder, and a buffer of older releases.
_UNUSED = (r".*pooler\..*", r"cls\..*", r"lm_head\..*", r".*embeddings\.position_ids", r".*embeddings\.token_type_ids")


@dataclass(frozen=True, kw_only=True)
class BertConfig:
    """What the encoder computes.

    Attributes:
        first_position: position of a text's first token: RoBERTa counts from behind its padding id.
        positions: rows of the table of positions.
    """

    architecture: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    activation: str
    eps: float
    types: int
    positions: int
    first_position: int

    @property
    def max_context(self) -> int:
        """Tokens of the longest text."""
        return self.positions - self.first_position


def is_encoder(config: Mapping[str, Any]) -> bool:
    """Whether a checkpoint of this config is one of the encoders here."""
    names = config.get("architectures") or ()
    return any(name in ENCODERS for name in names) or (not names and config.get("model_type") in MODEL_TYPES)


def parse_bert(config: Mapping[str, Any]) -> BertConfig:
    """Raises UnsupportedModelError and CheckpointError as :func:`deepseek.models.registry.parse_config`."""
    names = config.get("architectures") or (MODEL_TYPES[config["model_type"]],)
    architecture = next(name for name in names if name in ENCODERS)
    reader = ConfigReader(config)
    hidden, heads = reader.integer("hidden_size"), reader.integer("num_attention_heads")
    if hidden % heads:
        raise CheckpointError(f"config hidden_size {hidden} is no multiple of {heads} attention heads.")
    reader.only("position_embedding_type", "absolute")
    activation = reader.raw("hidden_act", "gelu")
    if activation not in ACTIVATIONS:
        raise reader.unsupported("hidden_act", activation, f"implemented: {', '.join(ACTIVATIONS)}")
    positions = reader.integer("max_position_embeddings")
    first = 0 if architecture.startswith("Bert") else reader.integer("pad_token_id", 1, minimum=0) + 1
    if first >= positions:
        raise CheckpointError(f"config has {positions} positions and counts them from {first}.")
    for key in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "gradient_checkpointing"):
        reader.raw(key, None)  # of training; tie_word_embeddings is of a head that is not used
    reader.raw("tie_word_embeddings", None)
    parsed = BertConfig(
        architecture=architecture,
        vocab_size=reader.integer("vocab_size"),
        hidden=hidden,
        layers=reader.integer("num_hidden_layers"),
        heads=heads,
        intermediate=reader.integer("intermediate_size"),
        activation=activation,
        eps=reader.number("layer_norm_eps", 1e-12),
        types=reader.integer("type_vocab_size", 2),
        positions=positions,
        first_position=first,
    )
    reader.finish()
    return parsed


@dataclass(frozen=True, slots=True)
class EncoderLayer:
    """Attention and MLP, each followed by its addition and norm."""

    heads: int
    qkv: Linear
    output: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    norm: LayerNorm
    activation: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, texts: int, mask: Tensor | None) -> Tensor:
        """``x`` [texts * length, hidden]; ``mask`` bool [texts, 1, 1, length], True where a token is, None if
        everywhere."""
        query, key, value = self.qkv(x).view(texts, -1, 3, self.heads, x.shape[1] // self.heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        attended = attended.transpose(1, 2).reshape(x.shape)
        x = self.attention_norm(x + self.output(attended))
        return self.norm(x + self.down(self.activation(self.up(x))))


class Bert:
    """An encoder of texts.

    Attributes:
        architecture: the Hugging Face class name.
        vocab_size, hidden_size: ids it knows, and the width of a hidden state.
        max_context: tokens of the longest text.
        weights_bytes: memory of the weights.
    """

    def __init__(
        self,
        config: BertConfig,
        *,
        words: Tensor,
        positions: Tensor,
        norm: LayerNorm,
        layers: Sequence[EncoderLayer],
        weights_bytes: int,
    ) -> None:
        self.architecture = config.architecture
        self.vocab_size = config.vocab_size
        self.hidden_size = config.hidden
        self.max_context = config.max_context
        self.weights_bytes = weights_bytes
        self._words = words
        self._positions = positions
        self._norm = norm
        self._layers = tuple(layers)

    def encode(self, texts: Sequence[Sequence[int]]) -> list[Tensor]:
        """The hidden states fp32 [tokens, hidden_size] of each text, none of which is empty or too long."""
        device, lengths = self._words.device, [len(text) for text in texts]
        longest = max(lengths)
        ids = torch.zeros(len(texts), longest, dtype=torch.int64)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        x = F.embedding(ids.to(device), self._words) + self._positions[:longest]
        x = self._norm(x).flatten(0, 1)
        mask = None
        if min(lengths) < longest:
            mask = (torch.arange(longest) < torch.tensor(lengths)[:, None])[:, None, None].to(device)
        for layer in self._layers:
            x = layer(x, len(texts), mask)
        states = x.view(len(texts), longest, -1).float()
        return [row[:length] for row, length in zip(states, lengths, strict=True)]


def load_bert(
    checkpoint: Checkpoint,
    *,
    ops: Ops,
    dtype: torch.dtype,
    device: torch.device | str,
    progress: LoadProgress | None = None,
) -> Bert:
    """Build the checkpoint's encoder. Raises as :func:`deepseek.models.registry.load_model`."""
    config = parse_bert(checkpoint.config)
    source = WeightSource(checkpoint, dtype, torch.device(device), ops.pack_linear, progress)
    # Checkpoints with a head have the encoder under its own name.
    root = next((name for name in ("bert.", "roberta.") if source.has(f"{name}embeddings.word_embeddings.weight")), "")
    names = f"{root}embeddings"
    hidden, eps = config.hidden, config.eps
    words = source.tensor(f"{names}.word_embeddings.weight", (config.vocab_size, hidden))
    positions = source.tensor(f"{names}.position_embeddings.weight", (config.positions, hidden))
    types = source.tensor(f"{names}.token_type_embeddings.weight", (config.types, hidden))
    norm = _norm(source, f"{names}.LayerNorm", hidden, eps)
    layers = [_layer(config, source, ops, f"{root}encoder.layer.{index}") for index in range(config.layers)]
    source.finish(ignore=_UNUSED)
    return Bert(
        config,
        words=words,
        positions=positions[config.first_position :] + types[0],  # all tokens are of the first type
        norm=norm,
        layers=layers,
        weights_bytes=source.bytes,
    )


def _layer(config: BertConfig, source: WeightSource, ops: Ops, prefix: str) -> EncoderLayer:
    hidden, inner = config.hidden, config.intermediate
    names = [f"{prefix}.attention.self.{part}" for part in ("query", "key", "value")]
    return EncoderLayer(
        heads=config.heads,
        qkv=build_fused(source, ops, names, [hidden] * 3, hidden, bias=True),
        output=build_linear(source, ops, f"{prefix}.attention.output.dense", hidden, hidden, bias=True),
        attention_norm=_norm(source, f"{prefix}.attention.output.LayerNorm", hidden, config.eps),
        up=build_linear(source, ops, f"{prefix}.intermediate.dense", inner, hidden, bias=True),
        down=build_linear(source, ops, f"{prefix}.output.dense", hidden, inner, bias=True),
        norm=_norm(source, f"{prefix}.output.LayerNorm", hidden, config.eps),
        activation=ACTIVATIONS[config.activation],
    )


def _norm(source: WeightSource, name: str, dim: int, eps: float) -> LayerNorm:
    return LayerNorm(source.tensor(f"{name}.weight", (dim,)), source.tensor(f"{name}.bias", (dim,)), eps)
