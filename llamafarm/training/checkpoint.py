"""Checkpoints: `checkpoints/step-00000120/`, safetensors and JSON only, whole or not there.

One is written to a folder with another name, every file synced, a manifest of sizes and hashes last; then the
folder is renamed, and its parent synced. It holds the trained weights as stock PEFT or transformers reads
them, `training.safetensors` (the optimizer's moments, an adapter's own numbers, random states) and
`state.json`: all that it takes to go on as if nothing had happened.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from llamafarm.errors import OutputError
from llamafarm.model.weights import read_weights

MANIFEST_FILE = "manifest.json"
STATE_FILE = "state.json"
TRAINING_FILE = "training.safetensors"
FORMAT_VERSION = 2
_NAME = re.compile(r"step-(\d{8,})")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A run at one moment, in memory: nothing in it changes when the run goes on.

    `write_weights` writes the trained weights into a folder; `tensors` go into `training.safetensors`,
    `state` into `state.json`.
    """

    step: int
    write_weights: Callable[[Path], None]
    tensors: Mapping[str, torch.Tensor]
    state: Mapping[str, Any]


def checkpoint_folder(folder: Path, step: int) -> Path:
    """Return where the checkpoint of a step lies."""
    return folder / f"step-{step:08d}"


def write_checkpoint(folder: Path, snapshot: Snapshot) -> Path:
    """Write a checkpoint under `folder` and return where it lies.

    Raises `OutputError` if it cannot be written; what was there before is untouched.
    """
    target = checkpoint_folder(folder, snapshot.step)
    unfinished = target.with_name(target.name + ".unfinished")
    try:
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        snapshot.write_weights(unfinished)
        _save_tensors(unfinished / TRAINING_FILE, snapshot.tensors)
        state = {"format_version": FORMAT_VERSION, "step": snapshot.step, **snapshot.state}
        (unfinished / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
        files = sorted(unfinished.iterdir())
        manifest = {file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)} for file in files}
        for file in files:
            _sync(file)
        (unfinished / MANIFEST_FILE).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        _sync(unfinished / MANIFEST_FILE)
        _sync(unfinished)
        # An older one of this step is whole; it stays until the new one has its place.
        replaced = target.with_name(target.name + ".replaced")
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)
            os.replace(target, replaced)
        os.replace(unfinished, target)
        _sync(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise OutputError(
            f"the checkpoint cannot be written: {error.strerror or error}",
            where=str(target),
            remedy="Make room on the disk, or choose another training_args.output_dir. Older checkpoints "
            "are whole.",
        ) from error
    return target


def is_whole(checkpoint: Path) -> bool:
    """Return whether every file of a checkpoint is what its manifest says, and none is missing or added."""
    try:
        # A FIFO among them would be waited for without end.
        if not all(path.is_file() for path in checkpoint.iterdir()):
            return False
        manifest = json.loads((checkpoint / MANIFEST_FILE).read_text(encoding="utf-8"))
        names = {file.name for file in checkpoint.iterdir()} - {MANIFEST_FILE}
        return (
            names == set(manifest)
            and {STATE_FILE, TRAINING_FILE} <= names
            and all(
                (checkpoint / name).stat().st_size == entry["bytes"]
                and _sha256(checkpoint / name) == entry["sha256"]
                for name, entry in manifest.items()
            )
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the checkpoints under `folder`, whole or not, the newest first, by their steps.

    One that had to make way for another of its step, which then did not come, is put back.
    """
    found: dict[int, Path] = {}
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return []
    for path in entries:
        name = path.name.removesuffix(".replaced")
        if (match := _NAME.fullmatch(name)) is None or not path.is_dir() or path.is_symlink():
            continue
        if path.name != name:
            target = path.with_name(name)
            if target.exists():
                continue
            os.replace(path, target)
            path = target
        found[int(match[1])] = path
    return [found[step] for step in sorted(found, reverse=True)]


def is_checkpoint_name(name: str) -> bool:
    """Return whether a folder of this name would be a checkpoint."""
    return _NAME.fullmatch(name) is not None


def step_of(checkpoint: Path) -> int:
    """Return the step of a checkpoint, from its name."""
    match = _NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def read_checkpoint(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return the trained weights of a step's checkpoint.

    Raises `OutputError` if it is not there or not what was written.
    """
    target = checkpoint_folder(folder, step)
    if not is_whole(target):
        raise OutputError(
            "the checkpoint is damaged or gone",
            where=str(target),
            remedy="Train again; the other checkpoints in the folder are untouched.",
        )
    return read_weights(target)


def read_state(checkpoint: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what `state.json` and `training.safetensors` of a whole checkpoint hold.

    Raises `OutputError` for one of another format.
    """
    try:
        state = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
        tensors = load_file(checkpoint / TRAINING_FILE)
    except (OSError, ValueError, RecursionError, SafetensorError) as error:
        raise _unreadable(checkpoint, str(error)) from error
    if not isinstance(state, dict) or state.get("format_version") != FORMAT_VERSION:
        raise _unreadable(checkpoint, "it was written by another version")
    if state.get("step") != step_of(checkpoint):
        raise _unreadable(checkpoint, f"it is of step {state.get('step')}")
    return state, tensors


def best_step_of(checkpoint: Path) -> int:
    """Return the step of the best evaluation until a checkpoint was written; 0 where there was none."""
    if not (checkpoint / STATE_FILE).is_file():
        return 0
    try:
        best_step = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["loop"]["best_step"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return 0
    return best_step if isinstance(best_step, int) else 0


def remove_old_checkpoints(folder: Path, *, keep: int, best_step: int) -> None:
    """Remove all but the newest `keep` checkpoints; that of `best_step` stays as well.

    So does the best one of when the oldest of them was written: whoever goes back to that needs it. It is
    among the others otherwise, as the best of each is the best of the one before, or newer than that.
    """
    found = checkpoints_in(folder)
    staying = {best_step, *map(best_step_of, found[:keep][-1:])}
    for checkpoint in found[keep:]:
        if step_of(checkpoint) not in staying:
            remove_folder(checkpoint)


def remove_checkpoints_after(folder: Path, step: int) -> None:
    """Remove the checkpoints that are newer than `step`, and what ended runs left half written.

    Raises `OSError`.
    """
    for checkpoint in checkpoints_in(folder):
        if step_of(checkpoint) > step:
            remove_folder(checkpoint)
    for name in (".unfinished", ".replaced"):
        for left in folder.glob(f"step-*{name}"):
            shutil.rmtree(left, ignore_errors=True)


def remove_folder(folder: Path) -> None:
    """Remove a folder, renamed first: one that is half removed would look like a damaged one.

    Raises `OSError` where it cannot be renamed.
    """
    leaving = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(leaving, ignore_errors=True)
    os.replace(folder, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _save_tensors(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:  # its word for a full disk
        raise OSError(str(error)) from error


def _unreadable(checkpoint: Path, reason: str) -> OutputError:
    return OutputError(
        f"the run cannot be continued from this checkpoint: {reason.splitlines()[0][:200]}",
        where=str(checkpoint),
        remedy="Start anew with --overwrite, or with another --output-dir.",
    )


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Have a file or a folder on the disk; on Windows folders cannot be synced."""
    if path.is_dir() and os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
