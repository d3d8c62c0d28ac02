"""The header of a GGUF file, read with suspicion: nothing in the file decides how much memory or time we spend.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (versions 2 and 3, little endian).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepseek.errors import CheckpointError

MAX_TENSORS = 1 << 17
MAX_KEYS = 1 << 16
MAX_ELEMENTS = 1 << 24  # of all metadata arrays together
MAX_NAME = 1 << 10
MAX_STRING = 1 << 24
MAX_DIMS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class BlockType:
    """How a tensor type lies in the file: blocks of ``elements`` values in ``size`` bytes."""

    name: str
    elements: int
    size: int


BLOCK_TYPES = {
    0: BlockType("F32", 1, 4),
    1: BlockType("F16", 1, 2),
    2: BlockType("Q4_0", 32, 18),
    3: BlockType("Q4_1", 32, 20),
    6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24),
    8: BlockType("Q8_0", 32, 34),
    10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110),
    12: BlockType("Q4_K", 256, 144),
    13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210),
    30: BlockType("BF16", 1, 2),
}
"""Types this project reads, by their number in the file."""

_OTHER_TYPES = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S",
    22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0",
    35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class GGUFTensor:
    """Where a tensor lies. ``shape`` is row-major (the file's order reversed); ``offset`` is from the file's start."""

    name: str
    type: BlockType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class GGUFFile:
    """A mapped GGUF file whose header has been checked against the file's size.

    Attributes:
        path: the file.
        metadata: key -> int, float, bool, str, or a list of these.
        types: key -> (number of its type in the file, and of a list's elements).
        tensors: name -> :class:`GGUFTensor`; every one lies inside the file and overlaps no other.

    Raises CheckpointError if the file is missing, truncated, malformed, or uses a tensor type that is not supported.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                # A private mapping: torch wants writable memory, and nothing written here may reach the file.
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path} cannot be read as a GGUF file: {error}.") from error
        try:
            header = _Header(self.path, self._map)
        except CheckpointError:
            self._map.close()
            raise
        self.metadata: dict[str, Any] = header.metadata
        self.types: dict[str, tuple[int, int | None]] = header.types
        self.tensors: dict[str, GGUFTensor] = header.tensors

    def data(self, tensor: GGUFTensor) -> memoryview:
        """The tensor's bytes, mapped (a write stays in memory)."""
        return memoryview(self._map)[tensor.offset : tensor.offset + tensor.nbytes]

    def close(self) -> None:
        """Release the mapping; if views of it are alive, it goes when the last of them does."""
        try:
            self._map.close()
        except BufferError:
            return


class _Header:
    """Reads the header front to back; ``position`` never passes the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path = path
        self.data = data
        self.size = len(data)
        self.position = 0
        self.elements_left = MAX_ELEMENTS
        self.types: dict[str, tuple[int, int | None]] = {}
        tensor_count, key_count = self._read_start()
        self.metadata = self._read_metadata(key_count)
        self.tensors = self._read_tensors(tensor_count)

    def _fail(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path} is not a valid GGUF file: {what}. Download or convert it again.")

    def _advance(self, count: int, what: str) -> int:
        """Claim the next ``count`` bytes and return where they begin."""
        start = self.position
        if count > self.size - start:
            raise CheckpointError(
                f"{self.path} is truncated: {what} needs {count} bytes at offset {start}, "
                f"but the file has {self.size}. Download it again."
            )
        self.position = start + count
        return start

    def _u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self._advance(4, what))[0])

    def _u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self._advance(8, what))[0])

    def _string(self, what: str, limit: int) -> str:
        length = self._u64(what)
        if length > limit:
            raise self._fail(f"{what} claims {length} bytes, more than {limit}")
        start = self._advance(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError as error:
            raise self._fail(f"{what} is not UTF-8") from error

    def _read_start(self) -> tuple[int, int]:
        magic = self.data[self._advance(4, "the magic number") : self.position]
        if magic != b"GGUF":
            raise self._fail(f"it begins with {magic!r} instead of b'GGUF'")
        version = self._u32("the version")
        if version not in (2, 3):
            big_endian = version & 0xFFFF == 0
            raise self._fail("it is big endian" if big_endian else f"its version is {version}, supported are 2 and 3")
        tensor_count = self._u64("the tensor count")
        key_count = self._u64("the metadata count")
        if tensor_count > MAX_TENSORS:
            raise self._fail(f"it claims {tensor_count} tensors, more than {MAX_TENSORS}")
        if key_count > MAX_KEYS:
            raise self._fail(f"it claims {key_count} metadata keys, more than {MAX_KEYS}")
        return tensor_count, key_count

    def _read_metadata(self, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for index in range(count):
            key = self._string(f"metadata key {index}", MAX_NAME)
            if key in metadata:
                raise self._fail(f"metadata key {key!r} appears twice")
            metadata[key] = self._value(self._u32(f"the type of {key!r}"), key)
        return metadata

    def _value(self, kind: int, key: str) -> Any:
        self.types[key] = (kind, None)
        if kind in _SCALARS:
            layout = struct.Struct("<" + _SCALARS[kind])
            return layout.unpack_from(self.data, self._advance(layout.size, f"the value of {key!r}"))[0]
        if kind == _STRING:
            return self._string(f"the value of {key!r}", MAX_STRING)
        if kind == _ARRAY:
            return self._array(key)
        raise self._fail(f"metadata key {key!r} has the unknown type {kind}")

    def _array(self, key: str) -> list[Any]:
        kind = self._u32(f"the element type of {key!r}")
        self.types[key] = (_ARRAY, kind)
        count = self._u64(f"the length of {key!r}")
        if count > self.elements_left:
            raise self._fail(f"metadata key {key!r} claims {count} elements, too many")
        self.elements_left -= count
        if kind == _STRING:
            return self._strings(key, count)
        if kind not in _SCALARS:
            raise self._fail(f"metadata key {key!r} is an array of the unsupported type {kind}")
        layout = struct.Struct(f"<{count}{_SCALARS[kind]}")
        return list(layout.unpack_from(self.data, self._advance(layout.size, f"the {count} values of {key!r}")))

    def _strings(self, key: str, count: int) -> list[str]:
        """A vocabulary has hundreds of thousands of entries: this loop is what opening a model's file costs."""
        self._advance(8 * count, f"the {count} strings of {key!r}")  # each has at least its length
        data, unpack, size = self.data, _U64.unpack_from, self.size
        position = self.position - 8 * count
        strings: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + unpack(data, position)[0]
                if position > size:
                    raise CheckpointError(
                        f"{self.path} is truncated: string {len(strings)} of {key!r} ends at byte {position}, "
                        f"but the file has {size}. Download it again."
                    )
                strings.append(str(data[start:position], "utf-8"))
        except UnicodeDecodeError as error:
            raise self._fail(f"string {len(strings)} of {key!r} is not UTF-8") from error
        except struct.error as error:
            raise CheckpointError(
                f"{self.path} is truncated: it ends inside {key!r}, at {size} bytes. Download it again."
            ) from error
        self.position = position
        return strings

    def _read_tensors(self, count: int) -> dict[str, GGUFTensor]:
        relative: list[GGUFTensor] = []
        names: set[str] = set()
        for index in range(count):
            tensor = self._tensor_info(index)
            if tensor.name in names:
                raise self._fail(f"tensor {tensor.name!r} appears twice")
            names.add(tensor.name)
            relative.append(tensor)
        alignment = self.metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
            raise self._fail(f"general.alignment is {alignment!r}, not a power of two from 8 to {MAX_ALIGNMENT}")
        start = -(-self.position // alignment) * alignment
        self._check_layout(relative, start, alignment)
        return {
            t.name: GGUFTensor(name=t.name, type=t.type, shape=t.shape, offset=start + t.offset, nbytes=t.nbytes)
            for t in relative
        }

    def _tensor_info(self, index: int) -> GGUFTensor:
        name = self._string(f"the name of tensor {index}", MAX_NAME)
        what = f"the description of tensor {name!r}"
        dims = self._u32(what)
        if not 1 <= dims <= MAX_DIMS:
            raise self._fail(f"tensor {name!r} has {dims} dimensions, supported are 1 to {MAX_DIMS}")
        shape = tuple(self._u64(what) for _ in range(dims))[::-1]
        kind = self._u32(what)
        block = BLOCK_TYPES.get(kind)
        if block is None:
            known = ", ".join(b.name for b in BLOCK_TYPES.values())
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has the type {_OTHER_TYPES.get(kind, 'unknown')} ({kind}), "
                f"which is not supported. Use a file with these types only: {known}."
            )
        elements = 1
        for size in shape:
            elements *= size
        if elements == 0:
            raise self._fail(f"tensor {name!r} of shape {shape} is empty")
        if shape[-1] % block.elements:
            raise self._fail(f"tensor {name!r}: rows of {shape[-1]} are not whole {block.name} blocks")
        return GGUFTensor(name, block, shape, self._u64(what), elements // block.elements * block.size)

    def _check_layout(self, tensors: list[GGUFTensor], start: int, alignment: int) -> None:
        end = 0
        previous = ""
        for tensor in sorted(tensors, key=lambda t: t.offset):
            if tensor.offset % alignment:
                raise self._fail(f"tensor {tensor.name!r} at offset {tensor.offset} is not aligned to {alignment}")
            if tensor.offset < end:
                raise self._fail(f"tensors {previous!r} and {tensor.name!r} overlap")
            end = tensor.offset + tensor.nbytes
            previous = tensor.name
        if start + end > self.size:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: tensor {previous!r} ends at byte {start + end}, "
                f"but the file has {self.size}. Download it again."
            )
