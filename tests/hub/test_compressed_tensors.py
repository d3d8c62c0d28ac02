"""The compressed-tensors layout: read to the bit, refused by name, damage found."""

import json

import pytest
import torch
from safetensors.torch import save_file

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.hub.compressed_tensors import pack_int4, unpack_int4
from deepseek.hub.open import open_checkpoint
from deepseek.models.registry import parse_config

INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
INT4 = {"num_bits": 4, "type": "int", "symmetric": False, "strategy": "group", "group_size": 32, "dynamic": False}
INPUTS = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}


def settings(**changes):
    groups = {
        "a": {"targets": ["x"], "weights": INT8, "input_activations": INPUTS, "format": "int-quantized"},
        "b": {"targets": ["Linear"], "weights": INT4, "format": "pack-quantized"},
    }
    base = {"quant_method": "compressed-tensors", "format": "mixed-precision", "quantization_status": "compressed"}
    return base | {"config_groups": groups, "ignore": ["lm_head"]} | changes


def write(path, tensors, config=None):
    content = {"architectures": ["LlamaForCausalLM"], "quantization_config": config or settings()}
    (path / "config.json").write_text(json.dumps(content))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / "model.safetensors")
    return path


def int8(rows=5, columns=12):
    torch.manual_seed(0)
    q = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
    return {"m.x.weight": q, "m.x.weight_scale": torch.rand(rows, 1).half()}


def int4(rows=11, columns=64, *, symmetric=False):
    torch.manual_seed(1)
    q = torch.randint(0, 16, (rows, columns), dtype=torch.uint8)
    zero = torch.randint(0, 16, (rows, columns // 32), dtype=torch.uint8)
    scale = torch.rand(rows, columns // 32).bfloat16()
    stored = {
        "m.y.weight_packed": pack_int4(q),
        "m.y.weight_scale": scale,
        "m.y.weight_shape": torch.tensor([rows, columns]),
    }
    if not symmetric:
        stored["m.y.weight_zero_point"] = pack_int4(zero.T).T
    return stored, q, scale.float(), torch.full_like(zero, 8) if symmetric else zero


@pytest.mark.parametrize("columns", [1, 7, 8, 9, 64])
def test_packing_round_trip(columns):
    values = torch.randint(0, 16, (3, columns), dtype=torch.uint8)
    packed = pack_int4(values)
    assert (packed.dtype, packed.shape) == (torch.int32, (3, -(-columns // 8)))
    assert torch.equal(unpack_int4(packed)[:, :columns], values)


def test_the_first_value_is_in_the_lowest_bits():
    assert pack_int4(torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]], dtype=torch.uint8)).item() == -0x789ABCDF
    assert unpack_int4(torch.tensor([[0x76543210]], dtype=torch.int32)).tolist() == [list(range(8))]


def test_int8_values_and_names(tmp_path):
    tensors = int8()
    checkpoint = open_checkpoint(write(tmp_path, tensors | {"m.norm.weight": torch.ones(3).half()}))
    assert checkpoint.shapes == {"m.x.weight": (5, 12), "m.norm.weight": (3,)}
    assert "quantization_config" not in checkpoint.config
    expected = tensors["m.x.weight"].float() * tensors["m.x.weight_scale"].float()
    assert torch.equal(checkpoint.load("m.x.weight", torch.float32), expected)
    assert torch.equal(checkpoint.load("m.x.weight", torch.bfloat16), expected.bfloat16())
    matrix = checkpoint.quantized("m.x.weight")
    assert (matrix.bits, matrix.group, matrix.minimum) == (8, 12, None)
    assert torch.equal(matrix.q, tensors["m.x.weight"])
    assert checkpoint.quantized("m.norm.weight") is None
    for name in ("m.x.weight_scale", "m.z.weight"):
        with pytest.raises(CheckpointError, match="no tensor"):
            checkpoint.quantized(name)


@pytest.mark.parametrize("symmetric", [False, True])
def test_int4_values(tmp_path, symmetric):
    stored, q, scale, zero = int4(symmetric=symmetric)
    checkpoint = open_checkpoint(write(tmp_path, stored))
    assert checkpoint.shapes == {"m.y.weight": (11, 64)}
    matrix = checkpoint.quantized("m.y.weight")
    assert (matrix.bits, matrix.group) == (4, 32)
    assert torch.equal(matrix.q, q)
    steps = (q.float().view(11, 2, 32) - zero.float()[:, :, None]) * scale[:, :, None]
    assert torch.equal(checkpoint.load("m.y.weight", torch.float32), steps.view(11, 64))


def test_int8_with_groups_one_scale_and_zero_points(tmp_path):
    tensors = int8()
    grouped = tensors | {"m.x.weight_scale": torch.rand(5, 3), "m.x.weight_zero_point": torch.ones(5, 3).to(torch.int8)}
    matrix = open_checkpoint(write(tmp_path, grouped)).quantized("m.x.weight")
    assert matrix.group == 4
    assert torch.equal(matrix.minimum, grouped["m.x.weight_scale"])
    single = tensors | {"m.x.weight_scale": torch.tensor([0.5])}
    matrix = open_checkpoint(write(tmp_path, single)).quantized("m.x.weight")
    assert torch.equal(matrix.scale, torch.full((5, 1), 0.5))


def group(**changes):
    return {"config_groups": {"a": {"targets": ["Linear"], "weights": INT8, "format": "int-quantized"} | changes}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"quantization_status": "frozen"}, "quantization_status = 'frozen'"),
        ({"kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparsity_config"),
        ({"transform_config": {"config_groups": {}}}, "transform_config"),
        (group(format="nvfp4-pack-quantized"), "nvfp4-pack-quantized"),
        (group(format="float-quantized"), "float-quantized"),
        (group(format="pack-quantized"), "8 bits are not implemented"),
        (group(weights=INT8 | {"type": "float"}), "float8"),
        (group(weights=INT8 | {"num_bits": 3}), "int3"),
        (group(weights=INT8 | {"strategy": "block"}), "'block'"),
        (group(weights=INT4 | {"actorder": "group"}), "actorder"),
        (group(input_activations=INPUTS | {"dynamic": False}), "only dynamic"),
        (group(input_activations=INPUTS | {"num_bits": 4}), "8-bit integers"),
        (group(output_activations=INPUTS), "output_activations"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, changes, words):
    with pytest.raises(UnsupportedModelError, match=words):
        open_checkpoint(write(tmp_path, int8(), settings(**changes)))


@pytest.mark.parametrize("method", ["gptq", "awq", "bitsandbytes", "fp8"])
def test_other_methods_are_refused_by_the_model(tmp_path, method):
    checkpoint = open_checkpoint(write(tmp_path, {"x": torch.ones(2)}, {"quant_method": method}))
    with pytest.raises(UnsupportedModelError, match=method):
        parse_config(
            {
                **checkpoint.config,
                "hidden_size": 8,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "max_position_embeddings": 8,
                "vocab_size": 8,
                "intermediate_size": 8,
            }
        )


def test_damage_is_found(tmp_path):
    whole, _, _, _ = int4()
    cases = [
        ({"m.y.weight_scale": None}, "no floating weight_scale"),
        ({"m.y.weight_shape": None}, "weight_shape is missing"),
        ({"m.y.weight_scale": torch.rand(10, 2)}, "shape \\[10, 2\\] for 11 rows"),
        ({"m.y.weight_scale": torch.rand(11, 3)}, "3 groups do not divide"),
        ({"m.y.weight_packed": torch.zeros(11, 8)}, "not I32"),
        ({"m.y.weight_packed": torch.zeros(88, dtype=torch.int32)}, "shape \\[88\\]"),
        ({"m.y.weight_shape": torch.tensor([11, 63])}, "says \\[11, 63\\]"),
        ({"m.y.weight_zero_point": torch.zeros(11, 2, dtype=torch.int32)}, "weight_zero_point"),
        ({"m.y.weight_scale": torch.full((11, 2), torch.nan)}, "NaN"),
        ({"m.y.weight_scale": torch.full((11, 2), -1.0)}, "negative"),
    ]
    for changes, words in cases:
        tensors = {name: tensor for name, tensor in (whole | changes).items() if tensor is not None}
        with pytest.raises(CheckpointError, match=words):
            open_checkpoint(write(tmp_path, tensors)).load("m.y.weight", torch.float32)
    with pytest.raises(UnsupportedModelError, match="weight_g_idx"):
        open_checkpoint(write(tmp_path, whole | {"m.y.weight_g_idx": torch.zeros(64, dtype=torch.int32)}))
    with pytest.raises(CheckpointError, match="no config_groups"):
        open_checkpoint(write(tmp_path, whole, settings(config_groups={})))
