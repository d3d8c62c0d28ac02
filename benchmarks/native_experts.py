"""Speed of a decoder with experts and latent attention: `python -m benchmarks.native_experts --threads 2`.

DeepSeek-V2-Lite's layers (64 experts of 1,408, six per token, two shared) with random integers as weights, next to the
same layers with one dense MLP of as many bytes as a token's experts have: what routing and sorting cost. Forwards of
the two in turn; best and median times, and the rate at which one row reads the weights that it needs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from deepseek.hub.checkpoint import QuantizedMatrix
from deepseek.kernels.paging import PagedLayout
from deepseek.models.base import Batch
from deepseek.models.native import NativeDecoder
from deepseek.models.registry import load_native_model

HIDDEN, INNER, EXPERTS, TOP_K, SHARED, HEADS, VOCAB = 2048, 1408, 64, 6, 2, 16, 1024
NOPE, ROPE, VALUE, RANK = 128, 64, 128, 512
PAGE = 64


class RandomCheckpoint:
    """Weights that nobody trained; ``dense`` layers have one wide MLP."""

    def __init__(self, layers: int, bits: int, *, dense: bool) -> None:
        self._bits = bits
        self._kept: dict[tuple[int, ...], QuantizedMatrix] = {}
        self.config: Mapping[str, Any] = {
            "architectures": ["DeepseekV2ForCausalLM"],
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "num_hidden_layers": layers,
            "num_attention_heads": HEADS,
            "intermediate_size": INNER * (TOP_K + SHARED),
            "moe_intermediate_size": INNER,
            "n_routed_experts": EXPERTS,
            "num_experts_per_tok": TOP_K,
            "n_shared_experts": SHARED,
            "first_k_dense_replace": layers if dense else 0,
            "q_lora_rank": None,
            "kv_lora_rank": RANK,
            "qk_nope_head_dim": NOPE,
            "qk_rope_head_dim": ROPE,
            "v_head_dim": VALUE,
            "max_position_embeddings": 8192,
            "rope_theta": 10000,
            "tie_word_embeddings": True,
        }
        self.shapes: Mapping[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (VOCAB, HIDDEN),
            "model.norm.weight": (HIDDEN,),
        }
        for layer in range(layers):
            self.shapes = {**self.shapes, **self._layer(f"model.layers.{layer}", dense)}

    def _layer(self, prefix: str, dense: bool) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
            "self_attn.q_proj": (HEADS * (NOPE + ROPE), HIDDEN),
            "self_attn.kv_a_proj_with_mqa": (RANK + ROPE, HIDDEN),
            "self_attn.kv_a_layernorm": (RANK,),
            "self_attn.kv_b_proj": (HEADS * (NOPE + VALUE), RANK),
            "self_attn.o_proj": (HIDDEN, HEADS * VALUE),
        }
        widths = {"mlp": INNER * (TOP_K + SHARED)}
        if not dense:
            shapes["mlp.gate"] = (EXPERTS, HIDDEN)
            widths = {"mlp.shared_experts": INNER * SHARED} | {f"mlp.experts.{e}": INNER for e in range(EXPERTS)}
        for name, width in widths.items():
            shapes |= {f"{name}.{part}_proj": (width, HIDDEN) for part in ("gate", "up")}
            shapes[f"{name}.down_proj"] = (HIDDEN, width)
        return {f"{prefix}.{name}.weight": shape for name, shape in shapes.items()}

    def load(self, name: str, dtype: torch.dtype) -> Tensor:
        shape = self.shapes[name]
        return (
            torch.ones(shape, dtype=dtype) if len(shape) == 1 else torch.randn(shape).mul_(shape[1] ** -0.5).to(dtype)
        )

    def quantized(self, name: str) -> QuantizedMatrix | None:
        shape = self.shapes[name]
        if len(shape) == 1 or self._bits == 16:
            return None
        if shape not in self._kept:
            rows, columns = shape
            group = 32 if self._bits == 4 else columns
            scale = torch.full((rows, columns // group), columns**-0.5 / (5 if self._bits == 4 else 74))
            q = torch.randint(0, 2**self._bits, shape, dtype=torch.uint8)
            whole = (q, scale, 7.5 * scale) if self._bits == 4 else (q.view(torch.int8), scale, None)
            self._kept[shape] = QuantizedMatrix(self._bits, group, *whole)
        return self._kept[shape]

    def close(self) -> None:
        pass


def bytes_of_a_row(model: NativeDecoder, layers: int, *, dense: bool) -> float:
    """That one row reads: all weights but those of the experts that it does not choose."""
    if dense:
        return model.weights_bytes
    inner = INNER * 3 * HIDDEN
    rest = HEADS * (NOPE + ROPE) * HIDDEN + (RANK + ROPE) * HIDDEN + HIDDEN * HEADS * VALUE + SHARED * inner
    floats = layers * (2 * HEADS * (NOPE + VALUE) * RANK + 4 * EXPERTS * HIDDEN) + 2 * VOCAB * HIDDEN
    each = (model.weights_bytes - floats) / (layers * (rest + EXPERTS * inner))
    return model.weights_bytes - layers * (EXPERTS - TOP_K) * inner * each


def step(model: NativeDecoder, cache: Any, rows: int, narrow: bool, seed: int) -> float:
    """Seconds of one forward of the first ``rows`` tokens of a sequence."""
    layout = PagedLayout(PAGE, (0, rows), (rows,), (tuple(range(-(-rows // PAGE))),), torch.arange(rows))
    tokens = torch.randint(0, VOCAB, (rows,), generator=torch.Generator().manual_seed(seed))
    batch = Batch(tokens, torch.arange(rows), layout, torch.tensor([rows - 1]), rows if narrow else 0)
    start = time.perf_counter()
    model.forward(batch, cache)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--bits", type=int, default=4, choices=[4, 8, 16])
    parser.add_argument("--rows", type=int, action="append", help="rows of a forward; default 1, 4, 32, 512")
    parser.add_argument("--seconds", type=float, default=3.0, help="per measurement")
    parser.add_argument("--wide", type=int, default=9, help="rows from which all of a forward's are wide")
    parser.add_argument("--isa", default="auto")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {}
    for name in ("experts", "dense"):
        checkpoint = RandomCheckpoint(options.layers, options.bits, dense=name == "dense")
        models[name] = load_native_model(
            checkpoint, scheme="auto", kv_dtype="fp16", threads=options.threads, isa=options.isa
        )
    caches = {name: model.new_cache(8, PAGE) for name, model in models.items()}
    print(f"{'rows':>4} {'layers':8} {'best ms':>9} {'median ms':>9} {'MB':>8} {'GB/s':>6}")
    for rows in options.rows or [1, 4, 32, 512]:
        times: dict[str, list[float]] = {name: [] for name in models}
        while sum(map(sum, times.values())) < options.seconds or len(times["dense"]) < 5:
            for name, model in models.items():
                times[name].append(step(model, caches[name], rows, rows < options.wide, len(times[name])))
        for name, model in models.items():
            best, size = min(times[name]), bytes_of_a_row(model, options.layers, dense=name == "dense")
            rate = f"{size / best / 1e9:6.1f}" if rows == 1 else ""
            median = statistics.median(times[name]) * 1e3
            print(f"{rows:4} {name:8} {best * 1e3:9.2f} {median:9.2f} {size / 1e6:8.1f} {rate}")


if __name__ == "__main__":
    main()
