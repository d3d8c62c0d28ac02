"""Merging: logits of adapter, merged folder and merged GGUF file are the same for every family; and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import peft
import pytest
import torch
import transformers

from deepseek.errors import CheckpointError, ConfigurationError, DiskSpaceError, TokenizerError, UnsupportedModelError
from deepseek.export import gguf_model
from deepseek.hub.open import open_checkpoint
from deepseek.hub.resolve import resolve
from deepseek.quantization import quantize_model
from deepseek.tokenizer.load import load_tokenizer
from deepseek.tokenizer.to_folder import write_tokenizer
from deepseek_tune.adapters import CONFIG, WEIGHTS
from deepseek_tune.merge import MergeResult, merge
from deepseek_tune.merge.check import BOUNDS
from tests.parity import tiny
from tests.tokenizer.tiny import byte_level, sentencepiece

ROWS = 300  # more than the tokenizer has: the rest must become padding
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
FAMILIES = {
    "llama": ALL,
    "llama-tied-linear-rope": ALL,
    "llama-multi-query-yarn": ALL,
    "qwen2-tied": ALL,
    "qwen3": ALL,
    "qwen3-moe": ATTENTION,
    "gemma3": ALL,
}
SCALED = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
SCALED["original_max_position_embeddings"] = 128
Made = tuple[Path, Path]


def make(root: Path, family: str, targets: list[str], metadata: dict[str, Any] | None = None, **options: Any) -> Made:
    """A random base model's folder and that of a random adapter as peft saves it."""
    changes = options.pop("changes", {})
    if family.startswith("gemma"):
        changes = {"query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention"] * 2} | changes
    model = tiny.build(family, vocab_size=ROWS, **changes)
    base, adapter = root / "base", root / "adapter"
    model.save_pretrained(base)
    write_tokenizer(metadata or byte_level(), "tiny", base)
    model.name_or_path = str(base)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": targets, "task_type": "CAUSAL_LM"} | options
    wrapped = peft.get_peft_model(model, peft.LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_" in name:
                weight.normal_(1.0 if "magnitude" in name else 0.0, 0.2)
    wrapped.save_pretrained(adapter)
    return base, adapter


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("llama"), "llama", ALL)


def logits(model: Any) -> torch.Tensor:
    ids = torch.tensor([[72, 101, 108, 108, 111, 256, 33, 10]])
    with torch.no_grad():
        return model(input_ids=ids).logits[0]


def exact(result: MergeResult) -> None:
    assert result.check is not None
    assert result.check.relative_difference < 2e-5
    assert result.check.adapter_effect > 0.2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_in_both_formats(family: str, tmp_path: Path) -> None:
    base, adapter = make(tmp_path, family, FAMILIES[family])
    exact(merge(adapter, tmp_path / "merged", dtype="f32"))
    exact(merge(adapter, tmp_path / "merged.gguf", dtype="f32"))
    reference = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(theirs), logits(reference), rtol=1e-4, atol=1e-4)
    tokenizer, original = load_tokenizer(tmp_path / "merged.gguf"), load_tokenizer(base)
    chat = [{"role": "user", "content": "ab 你好!"}]
    assert tokenizer.encode_chat(chat) == original.encode_chat(chat)
    assert tokenizer.eos_token_ids == original.eos_token_ids


@pytest.mark.parametrize("options", [{"use_rslora": True}, {"use_dora": True}, {"use_rslora": True, "use_dora": True}])
def test_kinds_of_adapters(options: dict[str, bool], tmp_path: Path) -> None:
    _, adapter = make(tmp_path, "llama", ALL, **options)
    exact(merge(adapter, tmp_path / "merged", dtype="f32"))


def test_llama_3_scales_its_rotation_by_factors(tmp_path: Path) -> None:
    _, adapter = make(tmp_path, "llama", ALL, changes={"rope_parameters": SCALED})
    exact(merge(adapter, tmp_path / "merged.gguf", dtype="f32"))


@pytest.mark.parametrize("output", ["merged", "merged.gguf"])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "q8_0"])
def test_precisions(llama: Made, output: str, dtype: str, tmp_path: Path) -> None:
    if dtype == "q8_0" and output == "merged":
        pytest.skip("safetensors have none")
    result = merge(llama[1], tmp_path / output, dtype=dtype)
    assert result.check is not None and 1e-5 < result.check.relative_difference < BOUNDS[dtype]
    whole = merge(llama[1], tmp_path / f"whole-{output}", dtype="f32", check=False)
    assert result.size_bytes < 0.9 * whole.size_bytes


def test_sentencepiece_becomes_scores(tmp_path: Path) -> None:
    metadata = sentencepiece() | {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    base, adapter = make(tmp_path, "llama", ALL, metadata)
    merge(adapter, tmp_path / "merged.gguf", dtype="f32")
    tokenizer, original = load_tokenizer(tmp_path / "merged.gguf"), load_tokenizer(base)
    for text in ("hello world", " hello  hell or", "héé 你好", "[TOOL] abc\n"):
        assert tokenizer.encode(text) == original.encode(text)


def test_quantized_and_gguf_bases(llama: Made, tmp_path: Path) -> None:
    base, adapter = llama
    merge(adapter, tmp_path / "base.gguf", dtype="q8_0", check=False)
    exact(merge(adapter, tmp_path / "again", str(tmp_path / "base.gguf"), dtype="f32"))
    result = merge(adapter, tmp_path / "again.gguf", str(tmp_path / "base.gguf"), dtype="f32")
    exact(result)
    first, second = (gguf.GGUFReader(tmp_path / name).fields for name in ("base.gguf", "again.gguf"))
    assert set(first) == set(second)
    changed = {"general.file_type", "GGUF.tensor_count", "GGUF.kv_count", "GGUF.version"}
    for key in set(first) - changed:
        assert first[key].contents() == second[key].contents() and first[key].types == second[key].types, key
    quantize_model(str(base), "int8", tmp_path / "int8")
    exact(merge(adapter, tmp_path / "from-int8", str(tmp_path / "int8"), dtype="f32"))
    assert "quantization_config" not in json.loads((tmp_path / "from-int8" / "config.json").read_text())


def test_blocks_that_no_adapter_touches_are_copied(tmp_path: Path) -> None:
    _, adapter = make(tmp_path, "llama", ["v_proj"], changes={"hidden_size": 64, "intermediate_size": 96})
    merge(adapter, tmp_path / "base.gguf", dtype="q8_0", check=False)
    merge(adapter, tmp_path / "again.gguf", str(tmp_path / "base.gguf"), dtype="q8_0")
    first, second = (
        {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / name).tensors}
        for name in ("base.gguf", "again.gguf")
    )
    for name, tensor in first.items():
        same = np.array_equal(tensor.data, second[name].data)
        assert same != ("attn_v" in name), name


def test_an_adapter_for_llama_cpp(llama: Made, tmp_path: Path) -> None:
    _, adapter = llama
    merge(adapter, tmp_path / "lora.gguf", format="gguf-lora")
    reader = gguf.GGUFReader(tmp_path / "lora.gguf")
    assert reader.fields["general.type"].contents() == "adapter"
    assert reader.fields["adapter.lora.alpha"].contents() == 8.0
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    merge(adapter, tmp_path / "merged.gguf", dtype="f32", check=False)
    merged = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "merged.gguf").tensors}
    plain = tmp_path / "zero"
    shutil.copytree(adapter, plain)
    _change(plain, lambda name, weight: weight * 0 if "lora_B" in name else weight)
    merge(plain, tmp_path / "plain.gguf", dtype="f32", check=False)
    unmerged = {tensor.name: tensor.data for tensor in gguf.GGUFReader(tmp_path / "plain.gguf").tensors}
    assert len(tensors) == 2 * 2 * len(ALL)
    for name, weight in unmerged.items():
        if f"{name}.lora_a" in tensors:
            change = tensors[f"{name}.lora_b"] @ tensors[f"{name}.lora_a"] * (8.0 / 4)
            np.testing.assert_allclose(weight + change, merged[name], rtol=1e-4, atol=1e-5)


def test_shards(llama: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepseek.hub.shard_writer import ShardWriter

    monkeypatch.setattr(ShardWriter.__init__, "__defaults__", (60_000,))
    exact(merge(llama[1], tmp_path / "merged", dtype="f32"))
    assert len(list((tmp_path / "merged").glob("*.safetensors"))) > 2
    transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")


# What is refused


def _change(adapter: Path, change: Callable[[str, torch.Tensor], torch.Tensor | None]) -> None:
    from safetensors.torch import load_file, save_file

    changed = {name: change(name, weight) for name, weight in load_file(adapter / WEIGHTS).items()}
    save_file({name: weight for name, weight in changed.items() if weight is not None}, adapter / WEIGHTS)


def _configure(adapter: Path, **changes: Any) -> None:
    config = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(config | changes))


@pytest.fixture
def copied(llama: Made, tmp_path: Path) -> Made:
    """A base model, and an adapter that may be damaged."""
    shutil.copytree(llama[1], tmp_path / "adapter")
    return llama[0], tmp_path / "adapter"


def test_a_wrong_result_is_not_written(llama: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf_model, "interleaved", lambda rows, heads: rows)
    with pytest.raises(CheckpointError, match="does not compute what base model and adapter do"):
        merge(llama[1], tmp_path / "merged.gguf", dtype="f32")
    assert list(tmp_path.iterdir()) == []
    merge(llama[1], tmp_path / "merged.gguf", dtype="f32", check=False)


@pytest.mark.parametrize("kind", ["P_TUNING", "PREFIX_TUNING"])
def test_a_prompt_cannot_be_merged(copied: Made, kind: str, tmp_path: Path) -> None:
    _configure(copied[1], peft_type=kind)
    with pytest.raises(ConfigurationError, match="cannot be merged"):
        merge(copied[1], tmp_path / "merged")


def test_all_mismatches_at_once(copied: Made, tmp_path: Path) -> None:
    def change(name: str, weight: torch.Tensor) -> torch.Tensor:
        return weight[:, :-1].contiguous() if "layers.0.self_attn.q_proj.lora_A" in name else weight

    _change(copied[1], change)
    smaller = make(tmp_path / "other", "llama", ALL, changes={"intermediate_size": 64})[0]
    with pytest.raises(CheckpointError) as caught:
        merge(copied[1], tmp_path / "merged", str(smaller))
    text = str(caught.value)
    assert "layers.0.self_attn.q_proj.lora_A.weight: shape [4, 47]" in text
    assert text.count("down_proj.lora_A") == 2 and text.count("up_proj.lora_B") == 2


def test_an_adapter_of_fewer_layers(copied: Made, tmp_path: Path) -> None:
    deeper = make(tmp_path / "other", "llama", ALL, changes={"num_hidden_layers": 3})[0]
    with pytest.raises(CheckpointError, match=r"model.layers.2.self_attn.q_proj: no weights"):
        merge(copied[1], tmp_path / "merged", str(deeper))


def test_half_of_a_pair_is_missing(copied: Made, tmp_path: Path) -> None:
    _change(copied[1], lambda name, weight: None if "layers.1.mlp.up_proj.lora_B" in name else weight)
    with pytest.raises(CheckpointError, match=r"layers.1.mlp.up_proj: no B"):
        merge(copied[1], tmp_path / "merged")


def test_what_is_there_is_kept(llama: Made, tmp_path: Path) -> None:
    base, adapter = llama
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "thesis.txt").write_text("years")
    with pytest.raises(ConfigurationError, match="not empty"):
        merge(adapter, taken)
    with pytest.raises(ConfigurationError, match="something else than a merged model"):
        merge(adapter, taken, overwrite=True)
    with pytest.raises(ConfigurationError, match="is or holds the base model"):
        merge(adapter, base, overwrite=True)
    with pytest.raises(ConfigurationError, match="is or holds"):
        merge(adapter, base.parent, overwrite=True)
    assert (taken / "thesis.txt").read_text() == "years"
    merge(adapter, tmp_path / "merged", dtype="bf16", check=False)
    with pytest.raises(ConfigurationError, match="not empty"):
        merge(adapter, tmp_path / "merged")
    merge(adapter, tmp_path / "merged", dtype="f32", overwrite=True, check=False)
    assert json.loads((tmp_path / "merged" / "config.json").read_text())["dtype"] == "float32"
    merge(adapter, tmp_path / "merged.gguf", check=False)
    with pytest.raises(ConfigurationError, match="exists"):
        merge(adapter, tmp_path / "merged.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["merged", "merged.gguf", "taken"]


@pytest.mark.parametrize("output", ["merged", "merged.gguf"])
def test_no_room(llama: Made, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(DiskSpaceError, match="the weights take"):
        merge(llama[1], tmp_path / output)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "q8_0"}, "dtype for safetensors is"),
        ({"dtype": "int3"}, "dtype for safetensors is"),
        ({"format": "onnx"}, "format is safetensors, gguf, gguf-lora"),
        ({"format": "gguf"}, "ends in .gguf"),
        ({"probe": "a"}, "fewer than two tokens"),
    ],
)
def test_settings_that_cannot_work(llama: Made, options: dict[str, str], words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=words):
        merge(llama[1], tmp_path / "merged", **options)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_what_gguf_cannot_say(tmp_path: Path) -> None:
    _, window = make(tmp_path / "window", "qwen2-window", ALL)
    with pytest.raises(UnsupportedModelError, match="sliding windows"):
        merge(window, tmp_path / "merged.gguf")
    base, plain = make(tmp_path / "plain", "qwen2-tied", ALL)
    file = base / "tokenizer.json"
    data = json.loads(file.read_text())
    data["pre_tokenizer"]["pretokenizers"].insert(0, {"type": "Punctuation", "behavior": "Isolated"})
    file.write_text(json.dumps(data))
    with pytest.raises(TokenizerError, match="has no name in GGUF"):
        merge(plain, tmp_path / "merged.gguf")
    merge(plain, tmp_path / "merged", check=False)


def test_a_base_that_is_gone(copied: Made, tmp_path: Path) -> None:
    _configure(copied[1], base_model_name_or_path=str(tmp_path / "nowhere"))
    with pytest.raises(ConfigurationError, match="Name its base model"):
        merge(copied[1], tmp_path / "merged")
    merge(copied[1], tmp_path / "merged", str(copied[0]), check=False)


@pytest.mark.slow
def test_a_real_model(tmp_path: Path) -> None:
    """SmolLM2 (Q4_1): a random adapter, as large as a trained one."""
    from deepseek_tune.base import find_base, load_base

    base = find_base("smollm2-135m-instruct", offline=True)
    model = load_base(base.files, torch.float32, torch.device("cpu"))
    model.name_or_path = "smollm2-135m-instruct"
    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=ALL))
    with torch.no_grad():
        for name, weight in wrapped.named_parameters():
            if "lora_B" in name:
                weight.normal_(0.0, 0.01)
    wrapped.save_pretrained(tmp_path / "adapter")
    del model, wrapped
    for output, dtype in (("merged", "bf16"), ("merged.gguf", "f16"), ("small.gguf", "q8_0")):
        result = merge(tmp_path / "adapter", tmp_path / output, dtype=dtype, offline=True)
        assert result.check is not None and result.check.adapter_effect > 1.0
    assert resolve(str(tmp_path / "small.gguf")).path.exists()
    checkpoint = open_checkpoint(tmp_path / "merged.gguf")
    assert checkpoint.shapes["model.embed_tokens.weight"] == (49152, 576)
    checkpoint.close()
