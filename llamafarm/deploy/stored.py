"""Weights in safetensors files, read and written one tensor at a time.

Memory stays near the largest tensor, whatever the size of the model. The format is that of
https://github.com/huggingface/safetensors; reading is the library's, which checks every header.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open

from llamafarm.errors import ModelError
from llamafarm.model.files import INDEX_FILE, check_folder

WEIGHTS_FILE = "model.safetensors"
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """The shape and numbers of a tensor that has not been read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def num_bytes(self) -> int:
        """Return the size of the tensor."""
        return int(torch.Size(self.shape).numel()) * self.dtype.itemsize


class Weights(Protocol):
    """Named tensors that are read one by one."""

    @property
    def entries(self) -> Mapping[str, Entry]:
        """Return what there is, by name."""

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, on the CPU."""


class StoredWeights:
    """The tensors of a folder's safetensors files; a context, which closes them.

    Raises `ModelError` if there are none, if they are damaged or held in fewer than 16 bits, and if an index
    names a file outside the folder.
    """

    def __init__(self, folder: Path, files: Iterable[str] | None = None) -> None:
        self._folder = folder
        self._open = ExitStack()
        self._files: dict[str, Any] = {}
        self.entries: dict[str, Entry] = {}
        check_folder(folder)
        for file in files if files is not None else _weight_files(folder):
            self._enter(file)

    def _enter(self, file: str) -> None:
        try:
            opened = self._open.enter_context(safe_open(self._folder / file, framework="pt"))
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                stored = opened.get_slice(name)
                self.entries[name] = Entry(tuple(stored.get_shape()), self._dtype(stored.get_dtype(), name))
                self._files[name] = opened
        except (OSError, SafetensorError) as error:
            raise _unreadable(self._folder / file, str(error)) from error

    def _dtype(self, name: str, tensor: str) -> torch.dtype:
        if name not in _DTYPES:
            raise ModelError(
                f"{tensor} is held as {name}: weights in fewer than 16 bits cannot be exported again",
                where=str(self._folder),
                remedy="Start from the model that these weights were quantised from.",
            )
        return _DTYPES[name]

    def read(self, name: str) -> torch.Tensor:
        """Return a tensor, on the CPU."""
        try:
            tensor: torch.Tensor = self._files[name].get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise _unreadable(self._folder, str(error)) from error
        return tensor

    def __enter__(self) -> StoredWeights:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def _weight_files(folder: Path) -> list[str]:
    """Return the names of a folder's weight files."""
    if not (index := folder / INDEX_FILE).is_file():
        if (folder / WEIGHTS_FILE).is_file():
            return [WEIGHTS_FILE]
        raise _unreadable(folder, f"there is neither {WEIGHTS_FILE} nor {INDEX_FILE}")
    try:
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _unreadable(index, f"the index is damaged ({error})") from error
    for file in files:
        if not isinstance(file, str) or Path(file).name != file:
            raise _unreadable(index, f"the index names {file!r}, which is not a file of this folder")
    return files


def write_safetensors(folder: Path, weights: Weights, *, most_shard_bytes: int = 5 * 2**30) -> None:
    """Write all of `weights` into `folder`, tensor by tensor, in files of at most `most_shard_bytes`.

    A tensor larger than that has a file of its own. Raises `OSError` if it cannot be written.
    """
    shards: list[list[str]] = [[]]
    filled = 0
    for name, entry in weights.entries.items():
        if shards[-1] and filled + entry.num_bytes > most_shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += entry.num_bytes
    if len(shards) == 1:
        _write_file(folder / WEIGHTS_FILE, weights, shards[0])
        return
    where = {}
    for number, names in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / file, weights, names)
        where.update(dict.fromkeys(names, file))
    total = sum(entry.num_bytes for entry in weights.entries.values())
    index = {"metadata": {"total_size": total}, "weight_map": where}
    (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _write_file(path: Path, weights: Weights, names: list[str]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        entry = weights.entries[name]
        end = offset + entry.num_bytes
        header[name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": entry.shape,
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name in names:
            tensor = weights.read(name)
            assert Entry(tuple(tensor.shape), tensor.dtype) == weights.entries[name], name
            file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _unreadable(path: Path, reason: str) -> ModelError:
    first_line = next(iter(reason.splitlines()), "no reason given")
    return ModelError(
        f"the weights cannot be read: {first_line[:200]}",
        where=str(path),
        remedy="Name a folder with whole .safetensors files.",
    )
