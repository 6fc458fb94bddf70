"""Encoded files, kept from run to run: each in a folder whose name says everything that it follows from.

A folder is written under another name and renamed when it is whole. What nobody has used for a month goes.
"""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from llamafarm import __version__, terminal
from llamafarm.caches import cache_folder
from llamafarm.data.columns import ColumnWriter, open_columns
from llamafarm.data.encoding.block import BlockEncoder, EncodedBlock
from llamafarm.data.reading.records import BadRow, DataReader, FileReport
from llamafarm.errors import OutputError
from llamafarm.strict_json import to_json

# Raised whenever the same input gives other arrays.
_FORM = 1
_MANIFEST = "manifest.json"
_UNFINISHED = ".unfinished-"
_DAYS_KEPT, _DAYS_KEPT_UNFINISHED = 30, 1
_SECONDS_OF_A_DAY = 24 * 3600


def default_folder() -> Path:
    """Return where encoded files are kept, unless a strategy says otherwise."""
    return cache_folder("tokens")


class TokenCache:
    """A folder of encoded files. With `scratch`, what is not there yet is written to that one instead.

    Without a folder that can be written to, a temporary one is taken, which goes with the process.
    """

    def __init__(self, folder: Path | None = None, scratch: Path | None = None) -> None:
        self._is_chosen = folder is not None
        self._folder = folder or default_folder()
        self._scratch = scratch

    def key_of(self, reader: DataReader, content_sha256: str, encoder: BlockEncoder) -> str:
        """Return the name of a file's folder, from its kind, its content and what becomes of it."""
        content = [reader.describe_files(), content_sha256]
        described = json.dumps([_FORM, __version__, content, encoder.recipe()], sort_keys=True)
        return sha256(described.encode()).hexdigest()[:32]

    def find(self, key: str, reader: DataReader) -> tuple[FileReport, EncodedBlock] | None:
        """Return a file that is here, as it was read; None if it is not, or no longer whole."""
        folder = self._folder / key
        if not (folder / _MANIFEST).is_file():
            return None
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            block = EncodedBlock.of_columns(open_columns(folder, manifest["shapes"]))
            report = _read_report(manifest["report"], reader)
        except (OSError, ValueError, KeyError, TypeError) as error:
            terminal.warn(f"what is kept of {reader.path} in {folder} is damaged and made anew: {error}")
            shutil.rmtree(folder, ignore_errors=True)
            return None
        with suppress(OSError):  # of somebody else, who keeps it as long as they use it
            os.utime(folder / _MANIFEST)
        terminal.say(f"{reader.path}: {report.num_rows:,} rows, encoded before and kept in {folder}")
        return report, block

    @contextmanager
    def writing(self, key: str | None) -> Iterator[CacheWriter]:
        """Yield what takes an encoded file in; without a key it is not kept. Raises `OutputError`."""
        try:
            place = self._scratch if self._scratch is not None and key is not None else self._folder
            writer = CacheWriter(place, key) if key else CacheWriter(_temporary_folder(), "once")
        except OSError as error:
            if self._is_chosen:
                raise _not_written(self._folder, error) from error
            terminal.warn(
                f"encoded rows cannot be kept in {self._folder} ({error.strerror}), so that the next run "
                "encodes them again; data_preprocessing.cache_dir names another folder"
            )
            writer = CacheWriter(_temporary_folder(), "once")
        try:
            yield writer
        except OSError as error:
            raise _not_written(writer.place, error) from error
        finally:
            writer.discard()
        _remove_old(writer.place)


class CacheWriter:
    """An encoded file that is being written. Raises `OSError`."""

    def __init__(self, place: Path, key: str) -> None:
        self.place = place
        self._target = place / key
        self._unfinished = place / f"{_UNFINISHED}{key}-{os.getpid()}"
        shutil.rmtree(self._unfinished, ignore_errors=True)
        self._unfinished.mkdir(parents=True)
        self._columns = ColumnWriter(self._unfinished)

    def append(self, block: EncodedBlock) -> None:
        """Add a block."""
        self._columns.append(block.columns())

    def finish(self, report: FileReport) -> EncodedBlock:
        """Give the folder its name, and return all of the file."""
        self._columns.close()
        manifest = {"shapes": self._columns.shapes, "report": _write_report(report)}
        with (self._unfinished / _MANIFEST).open("w", encoding="utf-8") as file:
            file.write(to_json(manifest, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.replace(self._unfinished, self._target)
        except OSError:
            # Another run was faster with the same; whatever else it was is raised below.
            if not (self._target / _MANIFEST).is_file():
                raise
        return EncodedBlock.of_columns(open_columns(self._target, self._columns.shapes))

    def discard(self) -> None:
        """Remove what was not finished."""
        self._columns.close()
        shutil.rmtree(self._unfinished, ignore_errors=True)


def _temporary_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="llamafarm-tokens-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _not_written(folder: Path, error: OSError) -> OutputError:
    return OutputError(
        f"the encoded rows cannot be written: {error.strerror or error}",
        where=str(folder),
        remedy="Make room there, or name another folder in data_preprocessing.cache_dir.",
    )


def _remove_old(place: Path) -> None:
    now = time.time()
    for folder in place.iterdir():
        is_unfinished = folder.name.startswith(_UNFINISHED)
        days = _DAYS_KEPT_UNFINISHED if is_unfinished else _DAYS_KEPT
        used = folder if is_unfinished else folder / _MANIFEST
        with suppress(OSError):  # another run removes it, too, or it is none of ours
            if now - used.stat().st_mtime > days * _SECONDS_OF_A_DAY:
                shutil.rmtree(folder, ignore_errors=True)


def _write_report(report: FileReport) -> dict[str, Any]:
    """Return a report without the place of the file, which may have moved when it is read again."""
    record = asdict(report)
    prefix = str(record.pop("path"))
    record["bad_rows"] = [[bad.where.removeprefix(prefix), bad.problem] for bad in report.bad_rows]
    return record


def _read_report(record: dict[str, Any], reader: DataReader) -> FileReport:
    bad_rows = tuple(BadRow(f"{reader.path}{where}", problem) for where, problem in record["bad_rows"])
    return FileReport(**{**record, "path": reader.path, "bad_rows": bad_rows})
