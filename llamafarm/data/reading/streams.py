r"""The bytes of a data file: hashed as they lie on the disk, unpacked, and cut into lines of text.

Only `\n` ends a line, as JSONL has it: U+2028 and the like are text.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from llamafarm.data.reading.bad_row import BadRowError, shorten

# A line with its number from 1, or what is wrong with it.
NumberedLine = tuple[int, str | BadRowError]

_MIB = 2**20
_MOST_BYTES_OF_A_LINE = 64 * _MIB
_BLOCK_BYTES = _MIB

# What a compressed file begins with, and what unpacks it.
_PACKED: dict[bytes, Callable[[Any], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\x00": lzma.open,
}
PACKED_SUFFIXES = (".gz", ".bz2", ".xz")

# What unpacking raises where the bytes are damaged.
DAMAGED = (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error)

_UTF_8_BOM, _UTF_16_BOMS = b"\xef\xbb\xbf", {b"\xff\xfe": "utf-16-le", b"\xfe\xff": "utf-16-be"}


class SeenBytes:
    """What has been read of the files on the disk: how much, and the hash of it."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()

    def update(self, content: bytes | memoryview) -> None:
        """Count and hash what was read."""
        self.num_bytes += len(content)
        self.sha256.update(content)


class _SeenFile(io.RawIOBase):
    """A file whose bytes are told of in passing; it is read from its beginning to its end."""

    def __init__(self, path: Path, seen: SeenBytes) -> None:
        self._file = path.open("rb")
        self._seen = seen

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        num_bytes = self._file.readinto(buffer)
        self._seen.update(buffer[:num_bytes])
        return num_bytes

    def close(self) -> None:
        self._file.close()
        super().close()


def open_stream(path: Path, seen: SeenBytes) -> io.BufferedReader:
    """Return the bytes of a file, unpacked where it is compressed; reading them feeds `seen`.

    Raises `OSError`, or one of `DAMAGED` while it is read.
    """
    raw: io.BufferedReader[Any] = io.BufferedReader(_SeenFile(path, seen), _BLOCK_BYTES)
    beginning = raw.peek(8)
    for magic, unpack in _PACKED.items():
        if beginning.startswith(magic):
            return io.BufferedReader(unpack(raw), _BLOCK_BYTES)
    return raw


def finish(stream: io.BufferedReader) -> None:
    """Read what is left, so that the hash is that of the whole file."""
    while stream.read(_BLOCK_BYTES):
        pass


def iterate_text_lines(stream: io.BufferedReader) -> Iterator[NumberedLine]:
    """Yield each line, blank ones too, with its number from 1, without its end.

    UTF-8, with or without its byte order mark, or UTF-16. A line that is neither is yielded as what is wrong
    with it. Raises `BadRowError` for UTF-16 that breaks off, after which nothing can be read.
    """
    beginning = stream.peek(4)[:4]
    encoding = _UTF_16_BOMS.get(beginning[:2]) or _guess_utf_16(beginning)
    if encoding is not None:
        yield from _iterate_utf_16(stream, encoding)
        return
    if beginning.startswith(_UTF_8_BOM):
        stream.read(len(_UTF_8_BOM))
    line_number = 0
    while line := stream.readline(_MOST_BYTES_OF_A_LINE):
        line_number += 1
        if len(line) == _MOST_BYTES_OF_A_LINE and not line.endswith(b"\n"):
            yield line_number, BadRowError("the line is longer than 64 MiB", "Is this a file of rows?")
            while line and not line.endswith(b"\n"):
                line = stream.readline(_MOST_BYTES_OF_A_LINE)
            continue
        try:
            yield line_number, line.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            shown = shorten(line.decode("utf-8", errors="replace"))
            yield (
                line_number,
                BadRowError(f"the line is not UTF-8 at byte {error.start}: {shown}", "Save as UTF-8."),
            )


def _guess_utf_16(beginning: bytes) -> str | None:
    """Return the encoding where two plain characters lie there as two bytes each."""
    if len(beginning) < 4:
        return None
    if beginning[1] == beginning[3] == 0 and beginning[0] and beginning[2]:
        return "utf-16-le"
    return "utf-16-be" if beginning[0] == beginning[2] == 0 and beginning[1] and beginning[3] else None


def _iterate_utf_16(stream: io.BufferedReader, encoding: str) -> Iterator[tuple[int, str]]:
    text = io.TextIOWrapper(stream, encoding=encoding, newline="\n")
    line_number = 0
    try:
        while line := text.readline(_MOST_BYTES_OF_A_LINE):
            line_number += 1
            yield line_number, line.removeprefix("\ufeff").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise BadRowError(
            f"after line {line_number} the text is not {encoding.upper()}: {error.reason}", "Save as UTF-8."
        ) from None
    finally:
        if not stream.closed:  # whoever stops early has closed it
            text.detach()
