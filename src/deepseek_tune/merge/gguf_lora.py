"""An adapter alone as a GGUF file, which llama.cpp puts beside its base model (``--lora``)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from torch import Tensor

from deepseek.errors import ConfigurationError, UnsupportedModelError
from deepseek.export.gguf_metadata import architecture_name
from deepseek.export.gguf_model import interleaved
from deepseek.hub.gguf_names import place_of
from deepseek.models.registry import parse_config
from deepseek_tune.merge.adapter import LoRAAdapter


def write_gguf_lora(adapter: LoRAAdapter, config: Mapping[str, Any], path: Path, kind: str) -> None:
    """Write ``adapter`` of a base model with this config to ``path``, matrices in ``f32`` or ``f16``.

    llama.cpp divides alpha by the rank; that of rsLoRA is written so that the quotient is its scale.

    Raises ConfigurationError for DoRA, UnsupportedModelError for a model or a layer that llama.cpp does not adapt.
    """
    if adapter.dora:
        raise ConfigurationError("a GGUF adapter cannot hold DoRA's magnitudes: merge it (format='gguf').")
    architecture = architecture_name(parse_config(config))
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, adapter.scale * adapter.rank)
    dtype = np.float32 if kind == "f32" else np.float16
    for name, change in sorted(adapter.changes.items()):
        place = place_of(name, config)
        if place is None or place.expert is not None:
            raise UnsupportedModelError(f"llama.cpp does not adapt {name!r}: merge the adapter (format='gguf').")
        parts: dict[str, Tensor] = {"lora_a": change.down, "lora_b": interleaved(change.up, place.rope_heads)}
        for part, matrix in parts.items():
            writer.add_tensor(f"{place.name}.{part}", matrix.contiguous().numpy().astype(dtype))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
