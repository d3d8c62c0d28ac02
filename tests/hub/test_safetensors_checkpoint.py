"""Safetensors folders: whole, sharded, and damaged in every way a header can be."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deepseek.errors import CheckpointError, UnsupportedModelError
from deepseek.hub.open import open_checkpoint
from deepseek.hub.safetensors_file import read_header

CONFIG = {"architectures": ["LlamaForCausalLM"]}


def folder(path: Path, config: object = CONFIG) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(json.dumps(config))
    return path


def sharded(path: Path) -> Path:
    folder(path)
    save_file({"a": torch.arange(6.0).view(2, 3)}, path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.ones(4, dtype=torch.bfloat16)}, path / "model-00002-of-00002.safetensors")
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return path


@pytest.mark.parametrize("name", ["model.safetensors", "weights.safetensors"])
def test_single_file(tmp_path, name):
    values = torch.randn(5, 3)
    save_file({"x": values, "y": values.to(torch.float16)}, folder(tmp_path) / name, metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path)
    assert checkpoint.config == CONFIG
    assert checkpoint.shapes == {"x": (5, 3), "y": (5, 3)}
    assert torch.equal(checkpoint.load("x", torch.float32), values)
    assert torch.equal(checkpoint.load("y", torch.float32), values.half().float())
    assert checkpoint.load("x", torch.bfloat16).dtype == torch.bfloat16
    kept = checkpoint.load("x", torch.float32)
    checkpoint.close()
    assert torch.equal(kept, values)
    with pytest.raises(CheckpointError, match="'z'"):
        checkpoint.load("z", torch.float32)


def test_shards(tmp_path):
    checkpoint = open_checkpoint(sharded(tmp_path))
    assert checkpoint.shapes == {"a": (2, 3), "b": (4,)}
    assert checkpoint.load("a", torch.float32).sum() == 15
    assert checkpoint.load("b", torch.float32).sum() == 4


def test_missing_and_truncated_shards(tmp_path):
    shard = sharded(tmp_path) / "model-00002-of-00002.safetensors"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=r"00002-of-00002\.safetensors is truncated: tensor 'b'"):
        open_checkpoint(tmp_path)
    shard.unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "match"),
    [
        ({"weight_map": {"c": "model-00001-of-00002.safetensors"}}, "tensor 'c', but it has not"),
        ({"weight_map": {"a": "../evil.safetensors"}}, "not a file beside it"),
        ({"weight_map": {"a": "/etc/passwd"}}, "not a file beside it"),
        ({"weight_map": {"a": 3}}, "not a file beside it"),
        ({"weight_map": {}}, "no weight_map"),
        ({}, "no weight_map"),
        ([], "JSON list"),
    ],
)
def test_wrong_index(tmp_path, index, match):
    (sharded(tmp_path) / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=match):
        open_checkpoint(tmp_path)


def test_config_must_be_there_and_json(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_checkpoint(tmp_path)
    for content in (b"{", b"\xff", b"[]", b"", b"[" * 100_000, b'{"a": 1, "a": 2}', b'{"a": ' + b"9" * 5000 + b"}"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(CheckpointError, match=r"config\.json"):
            open_checkpoint(tmp_path)


def test_pickled_weights_are_refused_with_advice(tmp_path):
    torch.save({"x": torch.ones(1)}, folder(tmp_path) / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="Convert them to safetensors"):
        open_checkpoint(tmp_path)


def test_no_weights_and_ambiguous_weights(tmp_path):
    with pytest.raises(CheckpointError, match="weights are missing"):
        open_checkpoint(folder(tmp_path))
    for name in ("a", "b"):
        save_file({name: torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match="2 safetensors files"):
        open_checkpoint(tmp_path)


def test_quantized_storage_is_not_read_as_numbers(tmp_path):
    save_file({"x": torch.ones(4, dtype=torch.int8)}, folder(tmp_path) / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    with pytest.raises(UnsupportedModelError, match="'x' is stored as I8"):
        checkpoint.load("x", torch.float32)
    assert checkpoint.load("x", torch.int8).tolist() == [1, 1, 1, 1]


def entry(**changes: object) -> dict[str, object]:
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


def raw(header: object, data: int = 8, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + b"\0" * data


BAD = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "header over the file": raw({"x": entry()}, length=1 << 20),
    "header length huge": raw({"x": entry()}, length=(1 << 64) - 1),
    "header length wraps": raw({"x": entry()}, length=1 << 63),
    "not JSON": raw(b"{x"),
    "not UTF-8": raw(b"\xff\xfe"),
    "deep JSON": raw(b"[" * 100_000),
    "deep object": raw(b'{"a":' * 50_000),
    "list": raw([]),
    "twice": raw(b'{"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"x":{}}'),
    "huge number": raw(b'{"x":{"dtype":"F32","shape":[' + b"9" * 10_000 + b'],"data_offsets":[0,8]}}'),
    "entry is a list": raw({"x": []}),
    "no dtype": raw({"x": {"shape": [2], "data_offsets": [0, 8]}}),
    "unknown dtype": raw({"x": entry(dtype="F31")}),
    "dtype list": raw({"x": entry(dtype=[])}),
    "shape number": raw({"x": entry(shape=2)}),
    "shape negative": raw({"x": entry(shape=[-2])}),
    "shape float": raw({"x": entry(shape=[2.0])}),
    "shape bool": raw({"x": entry(shape=[True, True])}),
    "shape overflow": raw({"x": entry(shape=[1 << 32, 1 << 32])}),
    "shape rank": raw({"x": entry(shape=[1] * 1000)}),
    "shape does not match": raw({"x": entry(shape=[3])}),
    "dtype does not match": raw({"x": entry(dtype="F16")}),
    "offsets one": raw({"x": entry(data_offsets=[0])}),
    "offsets negative": raw({"x": entry(data_offsets=[-8, 0])}),
    "offsets backwards": raw({"x": entry(data_offsets=[8, 0])}),
    "offsets over the file": raw({"x": entry(data_offsets=[1 << 40, (1 << 40) + 8])}),
    "offsets huge": raw({"x": entry(data_offsets=[0, 1 << 64])}),
    "overlap": raw({"x": entry(), "y": entry(data_offsets=[4, 12])}, data=12),
    "same bytes twice": raw({"x": entry(), "y": entry()}),
    "hole": raw({"x": entry(), "y": entry(data_offsets=[16, 24])}, data=24),
    "hole at the start": raw({"x": entry(data_offsets=[8, 16])}, data=16),
    "trailing bytes": raw({"x": entry()}, data=9),
    "truncated": raw({"x": entry()}, data=7),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_bad_headers_raise_checkpoint_error(tmp_path, content):
    path = folder(tmp_path) / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_checkpoint(tmp_path)


def test_the_bad_ones_differ_from_a_good_one(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(
        raw({"x": entry(), "y": entry(data_offsets=[8, 16]), "empty": entry(shape=[0], data_offsets=[8, 8])}, 16)
    )
    assert {name: found.shape for name, found in read_header(path).items()} == {"x": (2,), "y": (2,), "empty": (0,)}


def test_every_truncation_is_an_error(tmp_path):
    path = folder(tmp_path) / "model.safetensors"
    save_file({"x": torch.randn(3, 4), "y": torch.ones(2)}, path)
    content = path.read_bytes()
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            open_checkpoint(tmp_path)
