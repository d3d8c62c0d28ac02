"""The GGUF header parser: what a good file holds, and that no bad one does anything but raise CheckpointError."""

import struct
import sys
import time
from pathlib import Path

import gguf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deepseek.errors import CheckpointError
from deepseek.hub.gguf_file import BLOCK_TYPES, GGUFFile

U32, U64 = "<I", "<Q"
STRING, ARRAY = 8, 9


def text(value: bytes) -> bytes:
    return struct.pack(U64, len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack(U32, kind) + value


def info(name: bytes = b"t", dims: tuple[int, ...] = (8,), kind: int = 0, offset: int = 0) -> bytes:
    packed = b"".join(struct.pack(U64, dim) for dim in dims)
    return text(name) + struct.pack(U32, len(dims)) + packed + struct.pack(U32, kind) + struct.pack(U64, offset)


def build(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    data: int = 0,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    key_count: int | None = None,
    tensor_count: int | None = None,
) -> bytes:
    """A file from its parts, each of which may lie."""
    counts = (len(tensors) if tensor_count is None else tensor_count, len(keys) if key_count is None else key_count)
    head = magic + struct.pack(U32, version) + struct.pack("<QQ", *counts) + b"".join(keys) + b"".join(tensors)
    return head + b"\0" * (-len(head) % 32) + b"\1" * data


BOMB = (1 << 63) + 12345
BAD = {
    "empty": b"",
    "one byte": b"G",
    "other magic": build(magic=b"GGML"),
    "zip": b"PK\3\4" + b"\0" * 100,
    "version 1": build(version=1),
    "version 4": build(version=4),
    "big endian": build(version=3 << 24),
    "counts cut off": build()[:20],
    "tensor count": build(tensor_count=1 << 62),
    "tensor count one too many": build(tensors=(info(),), data=32, tensor_count=2),
    "key count": build(key_count=1 << 62),
    "key count at the limit, no keys": build(key_count=1 << 16),
    "key length": build(keys=(struct.pack(U64, BOMB),)),
    "key length over the file": build(keys=(struct.pack(U64, 900),)),
    "key not UTF-8": build(keys=(key(b"\xff\xfe", 4, b"\0" * 4),)),
    "key twice": build(keys=(key(b"a", 4, b"\0" * 4),) * 2),
    "value type": build(keys=(key(b"a", 13, b"\0" * 8),)),
    "value type huge": build(keys=(key(b"a", 0xFFFFFFFF, b""),)),
    "string length": build(keys=(key(b"a", STRING, struct.pack(U64, BOMB)),)),
    "string not UTF-8": build(keys=(key(b"a", STRING, text(b"\xc3")),)),
    "array length": build(keys=(key(b"a", ARRAY, struct.pack("<IQ", 4, BOMB)),)),
    "array length over the file": build(keys=(key(b"a", ARRAY, struct.pack("<IQ", 4, 1 << 23)),)),
    "array type": build(keys=(key(b"a", ARRAY, struct.pack("<IQ", 99, 1)),)),
    "array of arrays": build(keys=(key(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) + struct.pack("<IQ", ARRAY, 1)),)),
    "string array count": build(keys=(key(b"a", ARRAY, struct.pack("<IQ", STRING, 1 << 23)),)),
    "string array element length": build(keys=(key(b"a", ARRAY, struct.pack("<IQQ", STRING, 1, BOMB)),)),
    "string array element wraps": build(keys=(key(b"a", ARRAY, struct.pack("<IQQ", STRING, 1, (1 << 64) - 8)),)),
    "string array not UTF-8": build(keys=(key(b"a", ARRAY, struct.pack("<IQ", STRING, 1) + text(b"\xff")),)),
    "alignment 0": build((key(b"general.alignment", 4, struct.pack(U32, 0)),), (info(),), 64),
    "alignment 3": build((key(b"general.alignment", 4, struct.pack(U32, 3)),), (info(),), 64),
    "alignment huge": build((key(b"general.alignment", 4, struct.pack(U32, 1 << 31)),), (info(),), 64),
    "alignment text": build((key(b"general.alignment", STRING, text(b"32")),), (info(),), 64),
    "tensor name length": build(tensors=(struct.pack(U64, BOMB),)),
    "tensor name twice": build(tensors=(info(), info(offset=32)), data=64),
    "no dimensions": build(tensors=(info(dims=()),), data=32),
    "five dimensions": build(tensors=(info(dims=(1,) * 5),), data=32),
    "dimension 0": build(tensors=(info(dims=(8, 0)),), data=32),
    "dimensions overflow": build(tensors=(info(dims=(1 << 32, 1 << 32, 4)),), data=32),
    "dimensions huge": build(tensors=(info(dims=((1 << 64) - 1,) * 4),), data=32),
    "unknown type": build(tensors=(info(kind=77),), data=32),
    "unsupported type": build(tensors=(info(dims=(256,), kind=23),), data=256),
    "broken block": build(tensors=(info(dims=(33,), kind=8),), data=64),
    "offset unaligned": build(tensors=(info(offset=4),), data=64),
    "offset over the file": build(tensors=(info(offset=1 << 40),), data=64),
    "offset wraps": build(tensors=(info(offset=(1 << 64) - 32),), data=64),
    "overlap": build(tensors=(info(b"a", (16,)), info(b"b", (8,), offset=32)), data=64),
    "data cut off": build(tensors=(info(),), data=31),
    "no data": build(tensors=(info(),), data=0),
}


@pytest.mark.parametrize("content", BAD.values(), ids=BAD.keys())
def test_bad_files_raise_checkpoint_error_at_once(tmp_path, content):
    path = tmp_path / "bad.gguf"
    path.write_bytes(content)
    started = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"bad\.gguf"):
        GGUFFile(path)
    assert time.perf_counter() - started < 1


def test_the_builder_makes_good_files_too(tmp_path):
    path = tmp_path / "good.gguf"
    path.write_bytes(build((key(b"a", 4, struct.pack(U32, 7)),), (info(b"a"), info(b"b", (4, 2), offset=32)), data=64))
    file = GGUFFile(path)
    assert file.metadata == {"a": 7}
    assert file.tensors["b"].shape == (2, 4)
    assert bytes(file.data(file.tensors["b"])) == b"\1" * 32


def test_messages_name_tensor_type_and_sizes(tmp_path):
    path = tmp_path / "bad.gguf"
    path.write_bytes(BAD["unsupported type"])
    with pytest.raises(CheckpointError, match=r"'t' has the type IQ4_XS \(23\)"):
        GGUFFile(path)
    path.write_bytes(BAD["data cut off"])
    size = len(BAD["data cut off"])
    with pytest.raises(CheckpointError, match=rf"'t' ends at byte {size + 1}, but the file has {size}"):
        GGUFFile(path)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.gguf", tmp_path):
        with pytest.raises(CheckpointError):
            GGUFFile(path)


def test_reads_what_the_reference_reads(small_gguf):
    file = GGUFFile(small_gguf)
    reader = gguf.GGUFReader(small_gguf)
    expected = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert file.metadata == expected
    assert file.metadata["k.text"] == "héllo 世界"
    assert set(file.tensors) == {tensor.name for tensor in reader.tensors}
    for tensor in reader.tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(int(dim) for dim in tensor.shape[::-1])
        assert ours.type.name == tensor.tensor_type.name
        assert bytes(file.data(ours)) == tensor.data.tobytes()


def test_block_table_equals_the_reference():
    for number, block in BLOCK_TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, *gguf.GGML_QUANT_SIZES[kind]) == (block.name, block.elements, block.size)


def test_every_truncation_is_an_error(small_gguf, tmp_path):
    content = small_gguf.read_bytes()
    path = tmp_path / "cut.gguf"
    end = max(t.offset + t.nbytes for t in GGUFFile(small_gguf).tensors.values())
    for length in [*range(0, end, 7), end - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError):
            GGUFFile(path)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_never_do_anything_else(small_gguf: Path, data: st.DataObject):
    content = bytearray(small_gguf.read_bytes())
    header = min(t.offset for t in GGUFFile(small_gguf).tensors.values())
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, header - 8))
        value = data.draw(
            st.sampled_from([b"\xff" * 8, b"\0" * 8, b"\x7f", b"\x80"]) | st.binary(min_size=1, max_size=8)
        )
        content[position : position + len(value)] = value
    path = small_gguf.with_name("damaged.gguf")
    path.write_bytes(content)
    try:
        file = GGUFFile(path)
    except CheckpointError:
        return
    for tensor in file.tensors.values():
        assert tensor.offset + tensor.nbytes <= len(content)
        assert len(file.data(tensor)) == tensor.nbytes


def test_closing_with_live_views_is_safe(small_gguf):
    import torch

    file = GGUFFile(small_gguf)
    tensor = torch.frombuffer(file.data(file.tensors["half"]), dtype=torch.float16)
    before = tensor.clone()
    file.close()
    assert torch.equal(tensor, before)


def test_opening_needs_neither_torch_nor_numpy(small_gguf):
    import subprocess

    code = (
        "import sys; from deepseek.hub.gguf_file import GGUFFile; GGUFFile(sys.argv[1]);"
        "assert not {'torch', 'numpy', 'gguf'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(small_gguf)], check=True)
