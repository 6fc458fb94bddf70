"""What a GGUF file says it holds, read without trust: every length is checked against the file's own.

llama.cpp opens files in a process of its own; this reads their beginning in ours, and nothing in it can make
it take more memory or time than the file's size allows.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from llamafarm.errors import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MOST_DIMENSIONS = 4
_STRING, _ARRAY = 8, 9
# struct's letters for the format's types of numbers.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


@dataclass(frozen=True, slots=True)
class HeldTensor:
    """A tensor of the file: its shape with rows first, and its type."""

    shape: tuple[int, ...]
    type: GGMLQuantizationType


@dataclass(frozen=True, slots=True)
class Header:
    """A file's metadata, of arrays their lengths only, and its tensors."""

    metadata: dict[str, Any]
    array_lengths: dict[str, int]
    tensors: dict[str, HeldTensor]


class _Reader:
    """Reads numbers and texts, and never beyond the end."""

    def __init__(self, file: BinaryIO, num_bytes: int) -> None:
        self._file, self.num_left = file, num_bytes

    def take(self, num_bytes: int) -> bytes:
        if num_bytes > self.num_left:
            raise ValueError("it ends too early")
        self.num_left -= num_bytes
        taken = self._file.read(num_bytes)
        if len(taken) != num_bytes:
            raise ValueError("it ends too early")
        return taken

    def skip(self, num_bytes: int) -> None:
        if num_bytes > self.num_left:
            raise ValueError("it ends too early")
        self.num_left -= num_bytes
        self._file.seek(num_bytes, 1)

    def number(self, letter: str) -> Any:
        return struct.unpack("<" + letter, self.take(struct.calcsize("<" + letter)))[0]

    def text(self) -> str:
        return self.take(self.number("Q")).decode("utf-8")


def read_header(path: Path) -> Header:
    """Return what a GGUF file says it holds. Raises `ModelError` if it is none, or damaged."""
    try:
        with path.open("rb") as file:
            return _read(_Reader(file, path.stat().st_size))
    except (OSError, ValueError, struct.error, OverflowError) as error:
        raise ModelError(
            f"this is not a whole GGUF file: {error}",
            where=str(path),
            remedy="Name a file that `convert` wrote, or convert the model again.",
        ) from error


def _read(reader: _Reader) -> Header:
    if reader.take(4) != _MAGIC:
        raise ValueError("it does not begin with GGUF")
    if (version := reader.number("I")) not in _VERSIONS:
        raise ValueError(f"its version is {version}")
    num_tensors, num_keys = reader.number("Q"), reader.number("Q")
    # Neither a key nor a tensor takes less than these; more of them than bytes cannot be there.
    if 13 * num_keys + 24 * num_tensors > reader.num_left:
        raise ValueError(f"it claims {num_keys} keys and {num_tensors} tensors, more than fit in it")
    metadata: dict[str, Any] = {}
    array_lengths: dict[str, int] = {}
    for _ in range(num_keys):
        name, kind = reader.text(), reader.number("I")
        if kind == _ARRAY:
            array_lengths[name] = _skip_array(reader)
        elif kind == _STRING:
            metadata[name] = reader.text()
        elif kind in _NUMBERS:
            metadata[name] = reader.number(_NUMBERS[kind])
        else:
            raise ValueError(f"{name[:80]!r} is of a type {kind} that there is not")
    tensors: dict[str, HeldTensor] = {}
    num_held = 0
    for _ in range(num_tensors):
        name, tensor, offset = _read_tensor(reader)
        if name in tensors:
            raise ValueError(f"it has two tensors {name[:80]!r}")
        tensors[name] = tensor
        num_held = max(num_held, offset + _num_bytes(tensor))
    if num_held > reader.num_left:
        raise ValueError("its tensors reach beyond its end")
    return Header(metadata, array_lengths, tensors)


def _skip_array(reader: _Reader) -> int:
    kind, length = reader.number("I"), reader.number("Q")
    if kind in _NUMBERS:
        reader.skip(length * struct.calcsize("<" + _NUMBERS[kind]))
    elif kind == _STRING:
        if 8 * length > reader.num_left:
            raise ValueError(f"it claims an array of {length} texts, more than fit in it")
        for _ in range(length):
            reader.skip(reader.number("Q"))
    else:
        raise ValueError(f"it has an array of a type {kind} that there is not")
    return int(length)


def _read_tensor(reader: _Reader) -> tuple[str, HeldTensor, int]:
    name, num_dimensions = reader.text(), reader.number("I")
    if num_dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name[:80]!r} has {num_dimensions} dimensions")
    lengths = [reader.number("Q") for _ in range(num_dimensions)]
    type_ = GGMLQuantizationType(reader.number("I"))
    return name, HeldTensor(tuple(reversed(lengths)), type_), reader.number("Q")


def _num_bytes(tensor: HeldTensor) -> int:
    size, held = GGML_QUANT_SIZES[tensor.type]
    return math.prod(tensor.shape) // int(size) * int(held)
