"""Data sets of the Hugging Face Hub, fetched by `datasets` and kept as one Parquet file each."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from llamafarm.confined import confined
from llamafarm.errors import DataError, MachineError

_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")


def may_be_hub_id(name: str) -> bool:
    """Return whether a name that is no path here can be a data set's id: `owner/name`."""
    return _ID.fullmatch(name) is not None


def fetch_dataset(name: str, folder: Path, download_dir: Path | None = None) -> Path:
    """Return a Parquet file with the rows of a data set's split `train`, in `folder`.

    `download_dir` is where `datasets` keeps what it downloads; its own place unless given. Raises
    `MachineError` where the library is missing or the Hub cannot be reached, `DataError` for a data set that
    is not there or has no such split.
    """
    try:
        import datasets  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        raise MachineError(
            f"{name!r} is no path here, and taking it from the Hugging Face Hub needs the library datasets",
            where="dataset.train_file",
            remedy="Check the path, or install it: pip install 'llamafarm-finetune[datasets]'.",
        ) from None
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            name, split="train", cache_dir=None if download_dir is None else str(download_dir)
        )
    except (ConnectionError, TimeoutError) as error:
        raise _not_fetched(name, error, MachineError) from error
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        is_away = "offline" in str(error).casefold() or "connect" in str(error).casefold()
        raise _not_fetched(name, error, MachineError if is_away else DataError) from error
    file = confined(folder, f"{name.replace('/', '--')}-{_version_of(rows)}.parquet")
    if not file.is_file():
        unfinished = file.with_name(f"{file.name}.{os.getpid()}.unfinished")
        folder.mkdir(parents=True, exist_ok=True)
        rows.to_parquet(str(unfinished))
        os.replace(unfinished, file)
    return file


def _version_of(rows: Any) -> str:
    """Return what changes with the content."""
    return str(rows._fingerprint)


def _not_fetched(
    name: str, error: Exception, kind: type[MachineError] | type[DataError]
) -> MachineError | DataError:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return kind(
        f"{name!r} is no path here, and cannot be had from the Hugging Face Hub: {reason[:200]}",
        where="dataset.train_file",
        remedy="Check the path or the id, and the network; HF_TOKEN opens data sets that are not public.",
    )
