"""Reading adapters: what fits, and everything that does not, at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from deepseek.adapters.adapter import Host
from deepseek.adapters.read import WEIGHTS, read_adapter
from deepseek.adapters.settings import CONFIG, AdapterSettings
from deepseek.errors import AdapterError
from tests.adapters import making
from tests.adapters.test_models import torch_model

Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture(scope="module")
def host() -> Host:
    return torch_model("llama-wide").host


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    making.lora(folder, rank=4, targets=("q_proj", "v_proj"))
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    for name in (CONFIG, WEIGHTS):
        (tmp_path / name).write_bytes((original / name).read_bytes())
    return tmp_path


def configure(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def refused(folder: Path, host: Host) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        read_adapter(folder, host)
    return caught.value


def test_sites_are_the_linear_layers(host: Host) -> None:
    assert len(host.sites) == host.layers * 7
    site = host.sites["model.layers.1.self_attn.v_proj"]
    assert (site.layer, site.place, site.column, site.outputs, site.inputs) == (1, "qkv", 96, 32, 48)


def test_no_adapters_on_latent_attention_and_experts() -> None:
    assert not torch_model("deepseek-v3-wide").host.sites.keys() - {
        f"model.layers.0.mlp.{name}_proj" for name in ("gate", "up", "down")
    }


def test_all_mismatches_are_told_at_once(folder: Path, host: Host) -> None:
    tensors = load_file(folder / WEIGHTS)
    tensors[f"{Q}.lora_A.weight"] = torch.zeros(4, 50)
    tensors["base_model.model.model.layers.7.self_attn.q_proj.lora_A.weight"] = torch.zeros(4, 48)
    tensors["base_model.model.lm_head.weight"] = torch.zeros(97, 48)
    del tensors["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"]
    save_file(tensors, folder / WEIGHTS)
    error = refused(folder, host)
    text = "\n".join(error.problems)
    assert f"{Q}.lora_A.weight: shape [4, 50], and the model needs [4, 48]" in text
    assert "model.layers.7.self_attn.q_proj: no linear layer" in text
    assert "lm_head.weight: not a part of a linear layer's adapter" in text
    assert "model.layers.1.self_attn.v_proj: has no lora_B.weight" in text
    assert all(problem in str(error) for problem in error.problems)


def test_another_base_model(original: Path) -> None:
    error = refused(original, torch_model("qwen3-wide").host)
    assert len(error.problems) == 4  # outputs differ in all four layers; inputs do not
    assert "does not fit this model" in str(error)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bias": "all", "layer_replication": [[0, 2]]}, ["biases", "layer_replication"]),
        ({"modules_to_save": ["lm_head"]}, ["whole layers"]),
        ({"fan_in_fan_out": True, "trainable_token_indices": [3]}, ["fan_in_fan_out", "trainable_token_indices"]),
        ({"r": 0, "lora_alpha": "x"}, ["r must be", "lora_alpha must be"]),
        ({"r": 1025}, ["r must be"]),
        ({"r": True}, ["r must be"]),
        ({"lora_alpha": 1e999}, ["lora_alpha must be"]),
        ({"rank_pattern": {"(": 3}}, ["regular expressions"]),
        ({"rank_pattern": {"q_proj": 0}}, ["rank_pattern"]),
        ({"peft_type": "IA3"}, ["IA3", "LORA"]),
        ({"task_type": "SEQ_CLS"}, ["SEQ_CLS"]),
    ],
)
def test_settings_that_are_not_served(folder: Path, host: Host, changes: dict[str, Any], words: list[str]) -> None:
    configure(folder, **changes)
    message = str(refused(folder, host))
    assert all(word in message for word in words), message


def test_magnitudes_are_not_missing(folder: Path, host: Host) -> None:
    configure(folder, use_dora=True)
    assert len(refused(folder, host).problems) == 4


def test_ranks_that_are_not_those_of_the_settings(folder: Path, host: Host) -> None:
    configure(folder, r=8)
    assert len(refused(folder, host).problems) == 8


@pytest.mark.parametrize(
    ("layer", "rank", "scale"),
    [
        ("model.layers.1.self_attn.q_proj", 2, 4.0),
        ("model.layers.1.self_attn.xq_proj", 4, 2.0),
        ("model.layers.1.mlp.up_proj", 16, 0.5),
        ("model.layers.11.mlp.up_proj", 4, 2.0),
    ],
)
def test_patterns(layer: str, rank: int, scale: float) -> None:
    settings = AdapterSettings("lora", "", 4, 8.0, {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 16}, {})
    assert (settings.rank_of(layer), settings.scale_of(layer)) == (rank, scale)


def test_damaged_files(folder: Path, host: Host) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:-3])
    assert "truncated" in str(refused(folder, host))
    tensors = load_file_from(data, folder)
    tensors[f"{Q}.lora_B.weight"][1, 2] = float("nan")
    save_file(tensors, folder / WEIGHTS)
    assert refused(folder, host).problems == (f"{Q}.lora_B.weight: holds NaN or infinity",)
    save_file({name: tensor.to(torch.int32) for name, tensor in tensors.items()}, folder / WEIGHTS)
    assert "stored as I32" in str(refused(folder, host))
    save_file({}, folder / WEIGHTS)
    assert "holds no tensors" in str(refused(folder, host))
    (folder / WEIGHTS).unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    assert "pickled" in str(refused(folder, host))
    (folder / CONFIG).write_text("{")
    assert "valid JSON" in str(refused(folder, host))
    (folder / CONFIG).unlink()
    assert "has no adapter_config.json" in str(refused(folder, host))


def load_file_from(data: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / WEIGHTS).write_bytes(data)
    return dict(load_file(folder / WEIGHTS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floating_types(folder: Path, host: Host, dtype: torch.dtype) -> None:
    expected = {name: tensor.to(dtype) for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(expected, folder / WEIGHTS)
    update = read_adapter(folder, host).updates["model.layers.0.self_attn.q_proj"]
    assert torch.equal(update.a, expected[f"{Q}.lora_A.weight"].float())


def test_the_digest_is_of_the_contents(folder: Path, original: Path, host: Host) -> None:
    assert read_adapter(folder, host).digest == read_adapter(original, host).digest
    configure(folder, lora_alpha=3)
    assert read_adapter(folder, host).digest != read_adapter(original, host).digest


@pytest.mark.parametrize("kind", ["prompt", "prefix"])
def test_tokens_of_another_model(kind: str, tmp_path: Path, host: Host) -> None:
    making.tokens(tmp_path, kind, "llama-large")
    assert "prompt_embeddings: shape [5," in str(refused(tmp_path, host))
    configure(tmp_path, num_virtual_tokens=6)
    assert "prompt_embeddings: shape [5," in str(refused(tmp_path, host))
    configure(tmp_path, num_virtual_tokens=0)
    assert "num_virtual_tokens" in str(refused(tmp_path, host))


def test_a_prefix_needs_plain_keys_and_values(tmp_path: Path) -> None:
    making.tokens(tmp_path, "prefix")
    assert "no plain keys and values" in str(refused(tmp_path, torch_model("deepseek-v3-wide").host))
