"""Checkpoints: `checkpoints/step-00000120/`, safetensors and JSON only, whole or not there.

A checkpoint is written to a folder with another name, synced, its manifest of sizes and hashes last, and
then renamed. The best one is read back at the end of a run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from llamafarm.errors import OutputError
from llamafarm.model.weights import Trained, read_weights, write_weights

MANIFEST_FILE = "manifest.json"


@dataclass(frozen=True, slots=True)
class CheckpointRecord:
    """What a checkpoint says of itself beside the weights."""

    step: int
    epoch: float
    best_metric: float | None
    best_step: int


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def write_checkpoint(
    folder: Path, record: CheckpointRecord, model: Trained, tensors: Mapping[str, torch.Tensor]
) -> Path:
    """Write the checkpoint of a step under `folder` and return where it lies.

    Raises `OutputError` if it cannot be written; what was there before is untouched.
    """
    target = checkpoint_folder(folder, record.step)
    unfinished = target.with_name(target.name + ".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        write_weights(unfinished, model, tensors)
        (unfinished / "state.json").write_text(json.dumps(asdict(record), indent=2) + "\n", encoding="utf-8")
        files = sorted(unfinished.iterdir())
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}
        for file in files:
            _sync(file)
        (unfinished / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _sync(unfinished / MANIFEST_FILE)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(unfinished, target)
        _sync(folder)
    except OSError as error:
        raise OutputError(
            f"the checkpoint cannot be written: {error.strerror}",
            where=str(target),
            remedy="Make room on the disk, or choose another training_args.output_dir.",
        ) from error
    return target


def read_checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the trained weights of a step's checkpoint.

    Raises `OutputError` if it is not there or not what was written.
    """
    target = checkpoint_folder(folder, step)
    try:
        manifest = json.loads((target / MANIFEST_FILE).read_text(encoding="utf-8"))
        is_whole = all(_sha256(target / name) == entry["sha256"] for name, entry in manifest.items())
    except (OSError, ValueError, KeyError, TypeError):
        is_whole = False
    if not is_whole:
        raise OutputError(
            "the checkpoint is damaged or gone",
            where=str(target),
            remedy="Train again; the other checkpoints in the folder are untouched.",
        )
    return read_weights(target)


def remove_old_checkpoints(folder: Path, *, keep: int, best_step: int) -> None:
    """Remove all but the newest `keep` checkpoints; that of `best_step` stays as well."""
    steps = sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-" + "[0-9]" * 8))
    for step in steps[:-keep]:
        if step != best_step:
            shutil.rmtree(checkpoint_folder(folder, step))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
