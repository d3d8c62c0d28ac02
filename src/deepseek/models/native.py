"""A decoder whose steps run in the native extension, all layers in one call."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from deepseek.adapters.adapter import LowRankUpdate, Prefix
from deepseek.attention.policy import SparsePolicy
from deepseek.attention.stats import AttentionStats
from deepseek.config import PAGE_SIZE
from deepseek.errors import ConfigurationError
from deepseek.kernels.cpu.extension import native
from deepseek.kernels.sampling import Choice
from deepseek.layers.attention import Attention
from deepseek.layers.mla import LatentShape
from deepseek.layers.moe import MixtureOfExperts
from deepseek.models.adapters import native_adapter
from deepseek.models.base import WIDE_ROWS, Batch, SpillSpace
from deepseek.models.decoder import Decoder
from deepseek.models.native_layers import ACTIVATIONS, describe_layer

_FIRST_POSITIONS = 4096
_KEPT_LOGITS = 64
_SUMMARIES = 32  # bytes of a page's KeySummary and ValueSummary
_HIDDEN_COLUMNS = 32  # rows of hidden states are padded to a multiple of it
_MAX_HEAD, _MAX_LATENT, _MAX_EXPERTS = 512, 1024, 1024


def native_obstacle(config: Any) -> str | None:
    """Why a model of this (parsed) config cannot run natively, or None."""
    if (experts := getattr(config, "experts", 0)) > _MAX_EXPERTS:
        return f"{experts} experts: native kernels take up to {_MAX_EXPERTS}"
    config = getattr(config, "dense", config)
    if config.activation not in ACTIVATIONS:
        return f"activation {config.activation!r}"
    if isinstance(shape := getattr(config, "attention", None), LatentShape):
        return _latent_obstacle(shape)
    if (head_dim := config.head_dim) % 16 or head_dim > _MAX_HEAD:
        return f"heads of {head_dim} dimensions: native attention takes multiples of 16 up to {_MAX_HEAD}"
    return None


def _latent_obstacle(shape: LatentShape) -> str | None:
    if shape.rank % 16 or shape.rope_dim % 16 or shape.rank + shape.rope_dim > _MAX_LATENT:
        return (
            f"latents of {shape.rank} + {shape.rope_dim} dimensions: native attention takes multiples of 16 up to "
            f"{_MAX_LATENT} in all"
        )
    if shape.value_dim % 16:
        return f"values of {shape.value_dim} dimensions: native attention takes multiples of 16"
    return None


def _rows_per_expert_row(decoder: Decoder) -> int:
    """Rows of a batch for each row that one of its experts gets; 1 without experts."""
    mixtures = [layer.feed_forward for layer in decoder.layers if isinstance(layer.feed_forward, MixtureOfExperts)]
    return max((len(mixture.router) // mixture.routing.top_k for mixture in mixtures), default=1)


def check_cache_dtype(config: Any, kv_dtype: str) -> None:
    """Raises ConfigurationError where a model of this (parsed) config has no cache of ``kv_dtype``."""
    if kv_dtype == "int8" and isinstance(getattr(config, "attention", None), LatentShape):
        raise ConfigurationError(
            "kv_dtype int8: the cache of latent attention (MLA) has no such form; use kv_dtype fp16 or auto."
        )


class NativeDecoder:
    """Runs the layers of ``decoder``, whose weights :class:`deepseek.models.native_weights.NativeWeights` loaded.

    Satisfies :class:`deepseek.models.base.Model`. A row's result does not depend on which other rows are in its batch,
    on how its prompt was cut into chunks, on the number of threads, or on the instruction set.

    Args:
        decoder: the layers.
        threads: of each step.
        kv_dtype: ``fp16`` or ``int8``.
        isa: instruction set.
        indexed: caches have an index, which sparse attention needs.
    """

    row_invariant = True
    pages_together = False
    stream_device: torch.device | None = None

    def __init__(
        self, decoder: Decoder, *, threads: int, kv_dtype: str = "fp16", isa: str = "auto", indexed: bool = False
    ) -> None:
        self.architecture = decoder.architecture
        self.vocab_size = decoder.vocab_size
        self.hidden_size = decoder.hidden_size
        self.max_context = decoder.max_context
        self.cache_specs = decoder.cache_specs
        self.dtype = torch.float32
        self.device = torch.device("cpu")
        self.weights_bytes = decoder.weights_bytes
        self.kv_dtype = kv_dtype
        self.sparse = indexed
        self.host = decoder.host
        self._layers = decoder.layers
        self._windows = [
            layer.attention.shape.window if isinstance(layer.attention, Attention) else None for layer in decoder.layers
        ]
        self._rotaries = decoder.rotaries
        self._positions = 0
        self._logits = torch.empty(0, decoder.vocab_size)
        self._threads = threads
        self.wide_rows = WIDE_ROWS * _rows_per_expert_row(decoder)
        (head,) = decoder.head.weight
        self._model = native().Decoder(
            isa=isa,
            threads=threads,
            hidden=decoder.hidden_size,
            vocab=decoder.vocab_size,
            embedding=decoder.embedding.weight,
            embedding_scale=decoder.embedding.scale,
            head=head,
            norm=decoder.norm.weight.tolist(),
            eps=decoder.norm.eps,
            softcap=decoder.head.softcap or 0.0,
            layers=[describe_layer(layer) for layer in decoder.layers],
        )
        self.isa: str = self._model.isa

    def page_bytes(self, page_size: int) -> int:
        scales = 8 if self.kv_dtype == "int8" else 0
        scales *= page_size * sum(spec.heads for spec in self.cache_specs)
        return self.spill_page_bytes(page_size) + scales + self.index_page_bytes()

    def spill_page_bytes(self, page_size: int) -> int:
        """See :class:`deepseek.models.base.Model`. Scales and index stay in memory: they are read for every page."""
        return page_size * sum(spec.elements for spec in self.cache_specs) * (1 if self.kv_dtype == "int8" else 2)

    def index_page_bytes(self) -> int:
        """Bytes that the index takes per page, over all layers (see ``PageIndex`` in csrc/layout.h)."""
        if not self.sparse:
            return 0
        return sum(
            spec.heads
            * (_SUMMARIES + spec.key_dim + (spec.value_dim or spec.key_dim) + (spec.key_dim // 8 + 1) * PAGE_SIZE)
            for spec, window in zip(self.cache_specs, self._windows, strict=True)
            if window is None
        )

    def new_cache(self, num_pages: int, page_size: int, spill: SpillSpace | None = None) -> Any:
        """Raises ConfigurationError for a page size that is no multiple of 16, or above 256."""
        if self.sparse and page_size != PAGE_SIZE:
            raise ConfigurationError(
                f"page_size must be {PAGE_SIZE} for sparse attention, not {page_size}; or attention dense."
            )
        if page_size % 16 or page_size > 256:
            raise ConfigurationError(
                f"page_size must be a multiple of 16 up to 256 for native kernels, not {page_size}."
            )
        file, resident = (-1, 0) if spill is None else (spill.file, spill.resident)
        return self._model.new_cache(num_pages, page_size, self.kv_dtype == "int8", self.sparse, file, resident)

    def forward(self, batch: Batch, cache: Any) -> Tensor:
        """See :class:`deepseek.models.base.Model`."""
        return self._forward(batch, None, None, cache)

    def forward_with_hidden(self, batch: Batch, hidden_rows: Tensor, cache: Any) -> tuple[Tensor, Tensor]:
        """See :class:`deepseek.models.base.Model`."""
        width = -(-self.hidden_size // _HIDDEN_COLUMNS) * _HIDDEN_COLUMNS
        hidden = torch.empty(len(hidden_rows), width)
        return self._forward(batch, hidden_rows, hidden, cache), hidden[:, : self.hidden_size]

    def _forward(self, batch: Batch, hidden_rows: Tensor | None, hidden: Tensor | None, cache: Any) -> Tensor:
        layout = batch.layout
        self._rotate_up_to(max(layout.context_lens))
        starts, lengths = array("i", layout.query_starts), array("i", layout.context_lens)
        pages, width = _page_table(layout.pages)
        positions = batch.positions.to(torch.int32)
        rows = len(batch.token_ids)
        wanted = batch.logits_rows
        errors, dense_until = _wishes(batch.sparse if self.sparse else ())
        logits = self._room_for_logits(rows if wanted is None else len(wanted))
        self._model.forward(
            cache,
            rows,
            batch.narrow_rows,
            max(batch.narrow_rows, batch.narrow_attention_rows),
            batch.token_ids.data_ptr(),
            positions.data_ptr(),
            layout.num_sequences,
            layout.page_size,
            starts.buffer_info()[0],
            lengths.buffer_info()[0],
            pages.buffer_info()[0],
            width,
            layout.write_slots.data_ptr(),
            len(logits),
            0 if wanted is None else wanted.data_ptr(),
            logits.data_ptr(),
            0 if hidden is None else len(hidden),
            0 if hidden_rows is None else hidden_rows.data_ptr(),
            0 if hidden is None else hidden.data_ptr(),
            errors.buffer_info()[0] if errors else 0,
            dense_until.buffer_info()[0] if errors else 0,
            batch.segments,
            0 if batch.vectors is None else len(batch.vectors),
            0 if batch.vector_rows is None else batch.vector_rows.data_ptr(),
            0 if batch.vectors is None else batch.vectors.data_ptr(),
        )
        return logits

    def add_adapter(self, updates: Mapping[str, LowRankUpdate]) -> int:
        """See :class:`deepseek.models.base.Model`."""
        number: int = self._model.add_adapter(native_adapter(self._layers, self.host.sites, updates))
        return number

    def remove_adapter(self, number: int) -> None:
        """See :class:`deepseek.models.base.Model`."""
        self._model.remove_adapter(number)

    def adapter_bytes(self, number: int) -> int:
        """See :class:`deepseek.models.base.Model`."""
        size: int = self._model.adapter_bytes(number)
        return size

    def write_prefix(self, cache: Any, slots: Sequence[int], prefix: Prefix, first: int) -> None:
        """See :class:`deepseek.models.base.Model`."""
        where = torch.tensor(slots).numpy()
        end = first + len(slots)
        for layer in range(self.host.layers):
            cache.write(layer, where, prefix.keys[layer, first:end].numpy(), prefix.values[layer, first:end].numpy())

    def _room_for_logits(self, rows: int) -> Tensor:
        """Uninitialised fp32 [rows, vocab_size]. Fresh memory costs more than filling it: a decode step's is kept."""
        if rows > _KEPT_LOGITS:
            return torch.empty(rows, self.vocab_size)
        if rows > len(self._logits):
            self._logits = torch.empty(rows, self.vocab_size)
        return self._logits[:rows]

    def attention_stats(self) -> AttentionStats:
        """What sparse attention has read so far, in all caches of this model."""
        found: dict[str, float] = self._model.sparse_stats()
        return AttentionStats(
            outputs=int(found["heads"]),
            context_tokens=int(found["context_tokens"]),
            read_tokens=int(found["read_tokens"]),
            read_bytes=int(found["bytes"]),
            dense_bytes=int(found["dense_bytes"]),
            pieces=int(found["pieces"]),
            dense_pieces=int(found["dense_pieces"]),
            unread_weight=found["tail"],
            estimated_error=found["estimate"],
            error_bound=found["bound"],
            prompt_pages=int(found["prefill_pages"]),
            prompt_pages_read=int(found["prefill_read"]),
            checks=int(found["checks"]),
            checked_error=found["error"],
            violations=int(found["violations"]),
        )

    def choose_tokens(self, logits: Tensor, choices: Sequence[Choice]) -> Tensor:
        """See :class:`deepseek.models.base.Model`."""
        tokens: list[int] = native().choose_tokens(logits.numpy(), choices, self.isa, self._threads)
        return torch.tensor(tokens, dtype=torch.int64)

    def _rotate_up_to(self, positions: int) -> None:
        """Have tables of cos and sin for so many positions."""
        if positions <= self._positions:
            return
        wanted = max(positions, 2 * self._positions, _FIRST_POSITIONS)
        self._positions = max(positions, min(wanted, self.max_context))
        for index, rotary in enumerate(self._rotaries):
            cos, sin = rotary.table(self._positions)
            self._model.set_rotary(index, cos.numpy(), sin.numpy())


def _wishes(policies: Sequence[SparsePolicy | None]) -> tuple[array[float], array[int]]:
    """Per sequence the error that is allowed, 0 for dense, and the length up to which it is dense; empty if all are."""
    if not any(policies):
        return array("f"), array("i")
    errors = array("f", [policy.error if policy else 0.0 for policy in policies])
    return errors, array("i", [policy.dense_until if policy else 0 for policy in policies])


def _page_table(lists: Sequence[Sequence[int]]) -> tuple[array[int], int]:
    """The lists as rows of one int32 table, padded with 0 to the width that is returned too."""
    width = max(map(len, lists))
    table = array("i")
    for pages in lists:
        table.extend(pages)
        table.frombytes(bytes(table.itemsize * (width - len(pages))))
    return table, width
