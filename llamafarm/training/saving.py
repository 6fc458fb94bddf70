"""Writes checkpoints beside the steps: the next step is computed while the disk writes."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

from llamafarm import terminal
from llamafarm.errors import LlamaFarmError, OutputError
from llamafarm.training.checkpoint import Snapshot, remove_old_checkpoints, write_checkpoint

# Of what a snapshot's tensors take, so much more: headers, JSON, the file system's own.
_ROOM = 1.05


class Saver:
    """Writes one checkpoint at a time under `folder`, and removes those that are not to be kept.

    What goes wrong in the background is raised by the next `save` or `wait`.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        self._folder = folder
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._error: LlamaFarmError | None = None
        self.saved_step: int | None = None

    def save(self, snapshot: Snapshot, *, best_step: int, in_background: bool) -> None:
        """Write a snapshot; `in_background` returns at once. Raises `OutputError` if there is no room."""
        self.wait()
        _check_room(self._folder, snapshot)
        self.saved_step = snapshot.step
        if in_background:
            self._thread = threading.Thread(target=self._write, args=(snapshot, best_step))
            self._thread.start()
        else:
            self._write(snapshot, best_step)
            self.wait()

    def wait(self) -> None:
        """Return when all is written. Raises what went wrong, once."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _write(self, snapshot: Snapshot, best_step: int) -> None:
        try:
            folder = write_checkpoint(self._folder, snapshot)
            remove_old_checkpoints(self._folder, keep=self._keep, best_step=best_step)
            terminal.say(f"saved {folder}")
        except LlamaFarmError as error:
            self._error = error
        except Exception as error:
            self._error = OutputError(
                f"the checkpoint cannot be written: {type(error).__name__}: {error}",
                where=str(self._folder),
                remedy="Make room on the disk, or choose another training_args.output_dir.",
            )


def _check_room(folder: Path, snapshot: Snapshot) -> None:
    """Raise `OutputError` if a snapshot will not fit the disk: before anything of it is written."""
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in snapshot.tensors.values())
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    try:
        free_bytes = shutil.disk_usage(existing).free
    except OSError:
        return  # whoever writes there will hear of it
    if free_bytes < num_bytes * _ROOM:
        raise OutputError(
            f"a checkpoint takes {num_bytes * _ROOM / 2**20:,.1f} MiB, and {free_bytes / 2**20:,.1f} MiB are "
            "free",
            where=str(existing),
            remedy="Make room on the disk, then run the same command again: it goes on from the last one.",
        )
