"""Arrays that grow block by block: in the files of a folder, and mapped from there once they are whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SUFFIX = ".bin"


class ColumnWriter:
    """Columns by their names; without a folder they stay in memory.

    Each block adds to the first axis of every column. Writing raises `OSError`.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._blocks: dict[str, list[NDArray[Any]]] = {}
        self._shapes: dict[str, tuple[str, tuple[int, ...]]] = {}

    def append(self, block: Mapping[str, NDArray[Any]]) -> None:
        """Add a block; all blocks have the same columns, each with the same kind of numbers."""
        for name, array in block.items():
            dtype, rest = np.dtype(array.dtype).str, array.shape[1:]
            known_dtype, (length, *known_rest) = self._shapes.setdefault(name, (dtype, (0, *rest)))
            assert (known_dtype, tuple(known_rest)) == (dtype, rest), name
            self._shapes[name] = dtype, (length + len(array), *rest)
            if self._folder is None:
                self._blocks.setdefault(name, []).append(array)
                continue
            if name not in self._files:
                self._files[name] = (self._folder / (name + _SUFFIX)).open("wb")
            self._files[name].write(np.ascontiguousarray(array).data)

    def close(self) -> None:
        """Close the files; what was written is on the disk then."""
        for file in self._files.values():
            file.flush()
            os.fsync(file.fileno())
            file.close()
        self._files = {}

    def finish(self) -> dict[str, NDArray[Any]]:
        """Close the files and return the columns."""
        self.close()
        if self._folder is None:
            return {name: np.concatenate(blocks) for name, blocks in self._blocks.items()}
        return open_columns(self._folder, self._shapes)

    @property
    def shapes(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Return each column's kind of numbers and its shape, for `open_columns`."""
        return dict(self._shapes)


def open_columns(folder: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> dict[str, NDArray[Any]]:
    """Return the columns that lie in a folder, mapped. Raises `OSError`, or `ValueError` for a short file."""
    return {name: _open_column(folder / (name + _SUFFIX), *shapes[name]) for name in shapes}


def _open_column(path: Path, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
    if path.stat().st_size != num_bytes:
        raise ValueError(f"{path} has not {num_bytes} bytes")
    if not num_bytes:  # nothing to map
        return np.zeros(shape, dtype)
    return np.memmap(path, dtype, "r", shape=tuple(shape))
