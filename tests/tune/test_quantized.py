"""A base model of integers: its values, gradients, bytes, and runs on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from typer.testing import CliRunner

from deepseek.errors import ConfigurationError
from deepseek.hub.checkpoint import QuantizedMatrix, RawTensor
from deepseek.hub.open import open_checkpoint
from deepseek.hub.resolve import resolve
from deepseek.quant.schemes import quantize
from deepseek.quantization import quantize_model
from deepseek_cli.tune import tune
from deepseek_tune import LoRATuner, PTuner
from deepseek_tune.base import load_base
from deepseek_tune.data.packing import pack
from deepseek_tune.merge import merge
from deepseek_tune.progress import Silent
from deepseek_tune.quantized import (
    CHUNK,
    Blocks,
    Integers,
    QuantizedLinear,
    frozen_matrix,
    parameter_count,
    resident_bytes,
)
from tests.parity import tiny
from tests.tune.conftest import questions, write_jsonl
from tests.tune.test_lora import CutOff, Stop, curve, run_of

CPU = torch.device("cpu")


@pytest.fixture
def given(tiny_model: Path, tmp_path: Path) -> dict[str, Any]:
    return {
        "base_model": str(tiny_model),
        "train_data": str(write_jsonl(tmp_path / "support.jsonl", questions(40))),
        "cache_dir": str(tmp_path / "cache"),
        "progress": False,
        "report": False,
        "epochs": 2,
        "batch_tokens": 512,
        "dtype": "fp32",
        "learning_rate": 1e-2,
        "validation": 0.1,
    }


@pytest.fixture(scope="module")
def gguf_base(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in Q8_0, through an adapter that changes nothing."""
    import peft

    folder = tmp_path_factory.mktemp("gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_model)
    peft.get_peft_model(model, peft.LoraConfig(r=1, target_modules=["q_proj"])).save_pretrained(folder / "idle")
    merge(folder / "idle", folder / "base.gguf", str(tiny_model), dtype="q8_0", check=False)
    return folder / "base.gguf"


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("rows", [7, 8, 9])
def test_integers_hold_what_was_quantized(bits: int, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deepseek_tune.quantized.CHUNK", 8 * 96)
    matrix = quantize(torch.randn(rows, 96, generator=torch.Generator().manual_seed(rows)), bits)
    kept = Integers(matrix)
    assert torch.equal(kept.dequantize(torch.float32), matrix.dequantize(torch.float32))
    assert torch.equal(kept.dequantize(torch.bfloat16), matrix.dequantize(torch.bfloat16))
    assert kept.scale.dtype == torch.float16 and kept.q.nbytes == rows * 96 * bits // 8


def test_scales_that_16_bits_do_not_hold_stay_wide() -> None:
    q = torch.arange(-16, 16, dtype=torch.int8).repeat(2, 2)
    wide = torch.tensor([[0.1, 0.2], [0.0, 1e-9]])
    for scale, dtype in ((wide, torch.float32), (wide.bfloat16().float(), torch.bfloat16)):
        matrix = QuantizedMatrix(8, 32, q, scale, scale * 3)
        kept = Integers(matrix)
        assert kept.scale.dtype == dtype
        assert torch.allclose(kept.dequantize(torch.float32), matrix.dequantize(torch.float32), rtol=1e-6)
    assert CHUNK % 32 == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 31, 32, 33])
def test_a_layer_is_the_layer_of_its_floats(dtype: torch.dtype, rows: int) -> None:
    random = torch.Generator().manual_seed(rows)
    bias = torch.nn.Parameter(torch.randn(24, generator=random).to(dtype), requires_grad=False)
    layer = QuantizedLinear(Integers(quantize(torch.randn(24, 64, generator=random), 4)), bias, dtype)
    plain = torch.nn.Linear(64, 24, dtype=dtype).requires_grad_(False)
    plain.weight, plain.bias = torch.nn.Parameter(layer.weight, requires_grad=False), bias
    inputs = [torch.randn(2, rows, 64, generator=random).to(dtype).requires_grad_()]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outs = [module(x) for module, x in zip((layer, plain), inputs, strict=True)]
    for out in outs:
        out.float().square().sum().backward()
    assert torch.equal(outs[0], outs[1]) and inputs[0].grad is not None and inputs[1].grad is not None
    assert torch.equal(inputs[0].grad, inputs[1].grad)


def saved_bytes(model: Any, ids: torch.Tensor) -> int:
    """Of the distinct tensors that a forward pass keeps for the backward pass."""
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = model(inputs_embeds=model.get_input_embeddings()(ids).requires_grad_()).logits.sum()
    loss.backward()
    return sum(seen.values())


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_base_model_of_integers(tiny_model: Path, kind: str) -> None:
    """Logits are those of the same values as floats, bytes those of integers; a forward pass keeps no floats."""
    files = resolve(str(tiny_model), offline=True)
    model, plain = (load_base(files, torch.float32, CPU, base_dtype) for base_dtype in (kind, None))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(layers) == 14 and parameter_count(model) == parameter_count(plain)
    weights = sum(layer.out_features * layer.in_features for layer in layers.values())
    integers = sum(resident_bytes(layer) for layer in layers.values())
    assert {"int8": 1.0, "int4": 0.5}[kind] * weights < integers < {"int8": 1.07, "int4": 0.6}[kind] * weights
    assert resident_bytes(plain) - resident_bytes(model) == 4 * weights - integers
    ids = torch.arange(20)[None]
    before = plain(input_ids=ids).logits
    kept = saved_bytes(model, ids), saved_bytes(plain, ids)
    assert kept[1] - kept[0] >= 4 * weights
    for name, layer in layers.items():
        plain.get_submodule(name).weight.copy_(layer.weight)
    after = plain(input_ids=ids).logits
    assert torch.equal(model(input_ids=ids).logits, after) and not torch.equal(before, after)


KINDS = [(LoRATuner, {}), (LoRATuner, {"dora": True}), (PTuner, {}), (PTuner, {"variant": "prefix", "init": "random"})]


@pytest.mark.parametrize(("kind", "options"), KINDS)
def test_gradients_are_those_of_the_same_floats(
    given: dict[str, Any], kind: type[LoRATuner] | type[PTuner], options: dict[str, Any]
) -> None:
    """What is trained, over integers and over their floats: all gradients of one row's loss."""
    ready = []
    for base_dtype in ("int4", None):
        tuner = kind(**given, **options, base_dtype=base_dtype)
        ready.append(tuner._load(tuner._read(Silent()), Silent()))
    quantized, plain = (one.method.module for one in ready)
    for name, module in plain.named_modules():
        if type(module) is torch.nn.Linear and isinstance(quantized.get_submodule(name), QuantizedLinear):
            module.weight.copy_(torch.as_tensor(quantized.get_submodule(name).weight))
    grads = []
    for one in ready:
        torch.manual_seed(1)
        trained = {name: weight for name, weight in one.method.module.named_parameters() if weight.requires_grad}
        for name, weight in trained.items():
            if "lora_B" in name or "magnitude" in name:
                torch.nn.init.normal_(weight, 0.3, 0.1)
        row = pack(one.data.cache, next(one.batches.train.rows(0)))
        one.trainer.backward(row, row.answer_tokens)
        grads.append({name: weight.grad for name, weight in trained.items() if weight.grad is not None})
    assert grads[0].keys() == grads[1].keys() and grads[0]
    for name, grad in grads[0].items():
        assert float(grad.norm()) > 0
        assert torch.allclose(grad, grads[1][name], rtol=1e-5, atol=1e-6), name


@pytest.mark.parametrize(
    "options",
    [
        {"base_dtype": "int8", "dtype": "bf16"},
        {"base_dtype": "int4", "lora_dropout": 0.1},
        {"base_dtype": "int4", "gradient_checkpointing": True},
        {"base_dtype": "int8", "dora": True},
        {"base_dtype": "int4", "target_modules": ["q_proj"]},
    ],
)
def test_a_run_goes_on_with_the_same_losses(given: dict[str, Any], tmp_path: Path, options: dict[str, Any]) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    LoRATuner(**{**given, **options}, output_dir=whole).train()
    with pytest.raises(Stop):
        LoRATuner(**{**given, **options}, output_dir=parts, reporter=CutOff(5), checkpoint_every=2).train()
    LoRATuner(**{**given, **options}, output_dir=parts, checkpoint_every=2).train()
    assert curve(parts) == curve(whole)
    losses = [step["loss"] for step in run_of(whole)["steps"]]
    assert sum(losses[-3:]) < 0.95 * sum(losses[:3])
    with pytest.raises(ConfigurationError, match="differs in base_dtype"):
        LoRATuner(**{**given, **options, "base_dtype": None}, output_dir=whole).train()


def test_a_gguf_file_keeps_its_blocks(gguf_base: Path, given: dict[str, Any], tmp_path: Path) -> None:
    files = resolve(str(gguf_base), offline=True)
    checkpoint = open_checkpoint(gguf_base)
    stored, same, rounded = (load_base(files, torch.float32, CPU, kind) for kind in ("stored", "int8", "int4"))
    plain = load_base(files, torch.float32, CPU)
    ids = torch.arange(20)[None]
    for model in (stored, same):
        layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear)}
        assert len(layers) == 14 and all(isinstance(layer.matrix, Blocks) for layer in layers.values())
        for name, layer in layers.items():
            assert torch.equal(layer.weight, checkpoint.load(f"{name}.weight", torch.float32)), name
        assert torch.equal(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    assert not torch.equal(rounded(input_ids=ids).logits, plain(input_ids=ids).logits)
    checkpoint.close()
    LoRATuner(**{**given, "base_model": str(gguf_base), "epochs": 1}, base_dtype="stored", output_dir=tmp_path).train()
    assert run_of(tmp_path)["base"] == {"dtype": "stored", "bytes": resident_bytes(stored)}


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_a_quantized_folder_keeps_its_integers(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    quantize_model(str(tiny_model), kind, tmp_path / "small")
    files = resolve(str(tmp_path / "small"), offline=True)
    stored, plain = load_base(files, torch.float32, CPU, "stored"), load_base(files, torch.float32, CPU)
    kept = [module for module in stored.modules() if isinstance(module, QuantizedLinear)]
    assert kept and all(isinstance(layer.matrix, Integers) for layer in kept)
    ids = torch.arange(20)[None]
    assert torch.allclose(stored(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=1e-5, atol=1e-5)


def test_widths_that_4_bits_do_not_divide_get_8() -> None:
    class Odd:
        """A checkpoint with one matrix."""

        def quantized(self, name: str) -> RawTensor | QuantizedMatrix | None:
            return None

        def load(self, name: str, dtype: torch.dtype) -> torch.Tensor:
            return torch.randn(4, 33, dtype=dtype)

    matrix = frozen_matrix(Odd(), "model.layers.0.mlp.up_proj.weight", "int4")  # type: ignore[arg-type]
    assert isinstance(matrix, Integers) and (matrix.bits, matrix.group) == (8, 33)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"base_dtype": "nf4"}, "base_dtype must be one of int8, int4, stored; not 'nf4'"),
        ({"base_dtype": "int4", "dora": True, "lora_dropout": 0.1}, "saves nothing with dora and lora_dropout"),
    ],
)
def test_what_cannot_work_is_refused(given: dict[str, Any], wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        LoRATuner(**given, **wrong)


def test_floats_and_experts_are_refused(given: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"base_dtype='stored', but .* stores floats: take int8 or int4"):
        LoRATuner(**given, base_dtype="stored").train()
    tiny.build("qwen3-moe").save_pretrained(tmp_path / "experts")
    files = resolve(str(tmp_path / "experts"), offline=True)
    with pytest.raises(ConfigurationError, match=r"these hold \d+% of the weights.*experts"):
        load_base(files, torch.float32, CPU, "int4")


def test_the_estimate_and_the_command_know_it(given: dict[str, Any], tmp_path: Path) -> None:
    plain = LoRATuner(**given).estimate()
    small = LoRATuner(**given, base_dtype="int4").estimate()
    assert small.base_bytes < 0.6 * plain.base_bytes and small.parameters == plain.parameters
    assert "of it the base model" in str(small)
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps({**given, "base_dtype": "int8", "epochs": 1, "output_dir": str(tmp_path / "out")}))
    result = CliRunner().invoke(tune, ["lora", "--config", str(config), "--base-dtype", "int4"])
    assert result.exit_code == 0, result.output
    assert run_of(tmp_path / "out")["settings"]["base_dtype"] == "int4"


def test_merging_goes_into_the_floats_and_says_so(given: dict[str, Any], tmp_path: Path) -> None:
    LoRATuner(**given, base_dtype="int4", output_dir=tmp_path / "adapter").train()
    said: list[str] = []
    result = merge(tmp_path / "adapter", tmp_path / "merged", dtype="f32", say=said.append)
    check = result.check
    assert check is not None and check.trained_difference is not None
    assert check.largest_difference < 1e-3 < check.trained_difference
    assert any("trained on this model in int4" in line for line in said)
    assert "in int4, on which the adapter was trained" in str(check)
