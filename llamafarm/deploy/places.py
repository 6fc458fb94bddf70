"""Where an export is written: beside its place until it is whole, where there is room, over nothing else."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from llamafarm.deploy.source import Source, folder_of
from llamafarm.errors import MachineError, OutputError

# Metadata and tokenizer beside the weights, and what a disk should keep free.
_SPARE_BYTES = 64 * 2**20
# Of a name; what a file is besides comes behind it.
_MOST_CHARACTERS = 160


def file_name(name: str) -> str:
    """Return a name as that of a file in a folder."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:_MOST_CHARACTERS] or "model"


def beside(path: Path) -> Path:
    """Return where something is written before it has its name; no link that was there stays there."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    if unfinished.is_symlink():
        unfinished.unlink()
    return unfinished


def check_replaceable(output: Path, source: Source, *, overwrites: bool) -> None:
    """Raise `OutputError` if a folder is taken, or may not be replaced even so.

    What goes with a folder that is replaced is an earlier export and nothing else.
    """
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrites:
        raise taken(output)
    needed = [source.folder.resolve(), folder_of(source.base).resolve()]
    is_export = output.is_dir() and (output / "config.json").is_file()
    if (
        not is_export
        or any(path.is_dir() for path in output.iterdir())
        or any(folder.is_relative_to(output.resolve()) for folder in needed)
    ):
        raise OutputError(
            f"{str(output)!r} is not an earlier export that could be replaced",
            where="convert",
            remedy="Name another output.",
        )


def replace_folder(unfinished: Path, output: Path) -> None:
    """Give a finished folder its name; what had it goes only then."""
    if output.exists():
        old = output.with_name(f".{output.name}.replaced")
        shutil.rmtree(old, ignore_errors=True)
        os.replace(output, old)
        os.replace(unfinished, output)
        shutil.rmtree(old)
    else:
        os.replace(unfinished, output)


def check_space(path: Path, num_bytes: int) -> None:
    """Raise `MachineError` if the disk has no room for so many bytes more."""
    folder = next(parent for parent in (path, *path.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < num_bytes + _SPARE_BYTES:
        raise MachineError(
            f"the export takes {num_bytes / 2**30:.2f} GiB, and {free / 2**30:.2f} GiB are free",
            where=str(folder),
            remedy="Make room, name another output, or choose a smaller quantization such as q4_k_m.",
        )


def taken(path: Path) -> OutputError:
    """Return the error of a place where something stands."""
    return OutputError(
        f"{str(path)!r} is there already",
        where="convert",
        remedy="Name another output, or add --overwrite.",
    )
