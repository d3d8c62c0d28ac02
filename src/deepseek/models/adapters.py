"""Where the adapters of a decoder go: names of linear layers -> matrices, which may be fused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from deepseek.adapters.adapter import Host, LowRankUpdate, Place, Site
from deepseek.kernels.cpu.extension import native
from deepseek.kernels.low_rank import AdapterRows, LowRankUpdates, Part
from deepseek.kernels.triton.weights import Int4Weight, Int8Weight
from deepseek.layers.attention import Attention
from deepseek.layers.linear import GatedMLP, Linear

if TYPE_CHECKING:
    from deepseek.models.decoder import Decoder, DecoderLayer

_GROUP, _BAND = 32, 16  # columns and rows that native matrices are padded to


@dataclass
class AdapterLayers:
    """What adapters have changed of a model so far: its matrices, by layer and place, and the bytes of each adapter."""

    rows: AdapterRows = field(default_factory=AdapterRows)
    updates: dict[tuple[int, str], LowRankUpdates] = field(default_factory=dict)
    bytes: dict[int, int] = field(default_factory=dict)

    def free_number(self) -> int:
        """The lowest that no adapter has: backends keep tables by number."""
        return next(number for number in range(len(self.bytes) + 1) if number not in self.bytes)


def host_of(decoder: Decoder) -> Host:
    """What ``decoder`` offers: the projections of grouped-query attention and of dense gated MLPs. Latent attention and
    experts take no adapters."""
    sites: dict[str, Site] = {}
    for index, layer in enumerate(decoder.layers):
        sites.update(_sites(index, layer, decoder.hidden_size))
    widths = {spec.heads * spec.key_dim if spec.key_dim == spec.value_dim else None for spec in decoder.cache_specs}
    width = widths.pop() if len(widths) == 1 else None
    return Host(sites, decoder.hidden_size, len(decoder.layers), width)


def _sites(index: int, layer: DecoderLayer, hidden: int) -> Iterator[tuple[str, Site]]:
    prefix = f"model.layers.{index}"
    if isinstance(layer.attention, Attention):
        shape = layer.attention.shape
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        for name, column, outputs in (("q", 0, query), ("k", query, key), ("v", query + key, key)):
            yield f"{prefix}.self_attn.{name}_proj", Site(index, "qkv", column, outputs, hidden)
        yield f"{prefix}.self_attn.o_proj", Site(index, "output", 0, hidden, query)
    if isinstance(mlp := layer.feed_forward, GatedMLP):
        inner = _inputs(mlp.down)
        yield f"{prefix}.mlp.gate_proj", Site(index, "gate_up", 0, inner, hidden)
        yield f"{prefix}.mlp.up_proj", Site(index, "gate_up", inner, inner, hidden)
        yield f"{prefix}.mlp.down_proj", Site(index, "down", 0, hidden, inner)


def _inputs(linear: Linear) -> int:
    weight: Any = linear.weight
    matrix = weight[0] if isinstance(weight, list) else weight
    return int(matrix.shape[1])


def linear_at(layers: Sequence[DecoderLayer], site: Site) -> Linear:
    """The matrix that a site is, or is a part of."""
    layer: Any = layers[site.layer]
    linear: Linear = getattr(layer.attention if site.place in ("qkv", "output") else layer.feed_forward, site.place)
    return linear


def add_torch_adapter(
    decoder: Decoder, layers: AdapterLayers, number: int, updates: Mapping[str, LowRankUpdate]
) -> None:
    """Give the layers of a torch decoder the updates of adapter ``number``, in the decoder's dtype."""
    total = 0
    for name, update in updates.items():
        site = decoder.host.sites[name]
        linear = linear_at(decoder.layers, site)
        if linear.updates is None:
            linear.updates = layers.updates[site.layer, site.place] = LowRankUpdates(layers.rows)
        b, gain = _with_gain(update, linear, site)
        parts = [update.a, b * update.scale, *([] if gain is None else [gain])]
        kept = [part.to(decoder.device, decoder.dtype).contiguous() for part in parts]
        linear.updates.add(number, Part(site.column, kept[0], kept[1], None if gain is None else kept[2]))
        total += sum(part.nbytes for part in kept)
    layers.bytes[number] = total


def native_adapter(
    layers: Sequence[DecoderLayer], sites: Mapping[str, Site], updates: Mapping[str, LowRankUpdate]
) -> list[Any]:
    """The extension's description of an adapter: its matrices in fp16, laid out as csrc/model.h says."""
    specs = [native().AdapterLayerSpec() for _ in layers]
    gains: dict[tuple[int, Place], Tensor] = {}
    for name, update in sorted(updates.items(), key=lambda item: sites[item[0]].column):
        site = sites[name]
        linear = linear_at(layers, site)
        b, gain = _with_gain(update, linear, site)
        a, factor_a = _near_one(update.a)
        b, factor_b = _near_one(b)
        gated = site.place == "gate_up"
        column = _GROUP * (site.column > 0) if gated else site.column
        getattr(specs[site.layer], site.place).add(
            _pack_inputs(a), _pack_outputs(b), column, gated, update.scale * factor_a * factor_b
        )
        if gain is not None:
            rows = sum(-(-matrix.shape[0] // _BAND) * _BAND for matrix in linear.weight)
            whole = gains.setdefault((site.layer, site.place), torch.ones(rows))
            whole[_places(site)] = gain
    for (layer, place), whole in gains.items():
        getattr(specs[layer], place).set_gain(whole.tolist())
    return specs


def _places(site: Site) -> Tensor:
    """Where a native matrix has the outputs of a site: gate and up take turns of 32 rows."""
    own = torch.arange(site.outputs)
    if site.place != "gate_up":
        return site.column + own
    return own // _GROUP * 2 * _GROUP + own % _GROUP + _GROUP * (site.column > 0)


def _with_gain(update: LowRankUpdate, linear: Linear, site: Site) -> tuple[Tensor, Tensor | None]:
    """``b``, and what the matrix's own outputs are multiplied with; in DoRA both make up for the changed lengths."""
    if update.magnitude is None:
        return update.b, None
    lengths = (_weight_of(linear, site) + update.scale * (update.b @ update.a)).norm(dim=1)
    gain = torch.where(lengths > 0, update.magnitude / lengths, 1.0)
    return gain[:, None] * update.b, gain


def _weight_of(linear: Linear, site: Site) -> Tensor:
    """fp32 [out, in] of a site, as it is computed with."""
    weight: Any = linear.weight
    if isinstance(weight, Int8Weight | Int4Weight):
        return weight.dequantize()[site.column : site.column + site.outputs].cpu()
    if isinstance(weight, Tensor):
        dense = weight.to_dense() if weight.is_mkldnn else weight
        return dense[site.column : site.column + site.outputs].float().cpu()
    places = _places(site)
    start = 0
    for matrix in weight:
        rows = matrix.shape[0]
        if start <= int(places[0]) < start + rows:
            return torch.from_numpy(matrix.dequantize())[places - start]
        start += -(-rows // _BAND) * _BAND
    raise AssertionError(f"no matrix has the outputs of {site}")


def _near_one(matrix: Tensor) -> tuple[Tensor, float]:
    """``matrix`` in fp16, divided by a power of two so that its largest magnitude is about 1; and that."""
    largest = float(matrix.abs().max())
    factor = 2.0 ** int(torch.frexp(torch.tensor(largest)).exponent) if largest else 1.0
    return (matrix / factor).to(torch.float16), factor


def _pack_inputs(a: Tensor) -> Any:
    """[rank, in] -> fp16 bits [ranks / 16, in padded, 16]."""
    rank, inputs = a.shape
    padded = torch.zeros(-(-rank // _BAND) * _BAND, -(-inputs // _GROUP) * _GROUP, dtype=a.dtype)
    padded[:rank, :inputs] = a
    return _bits(padded.view(-1, _BAND, padded.shape[1]).transpose(1, 2))


def _pack_outputs(b: Tensor) -> Any:
    """[out, rank] -> fp16 bits [bands, rank, 16]."""
    outputs, rank = b.shape
    padded = torch.zeros(-(-outputs // _BAND) * _BAND, rank, dtype=b.dtype)
    padded[:outputs] = b
    return _bits(padded.view(-1, _BAND, rank).transpose(1, 2))


def _bits(values: Tensor) -> Any:
    return values.contiguous().view(torch.int16).numpy().view("uint16")
