"""One run a folder: a lock that the system takes back when its process ends, however it ends."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from llamafarm.errors import OutputError

LOCK_FILE = ".run.lock"


class RunLock:
    """Hold a run's folder, as a context.

    Raises `OutputError` on entering where another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK_FILE
        self._descriptor: int | None = None

    def __enter__(self) -> Self:
        while self._descriptor is None:
            descriptor = self._open()
            try:
                _lock(descriptor)
            except OSError:
                holder = os.read(descriptor, 64).decode(errors="replace").strip()
                os.close(descriptor)
                raise _taken(self._path, holder) from None
            if _is_at(descriptor, self._path):
                self._descriptor = descriptor
            else:  # whoever held it removed the file meanwhile: a lock on that one keeps nobody out
                os.close(descriptor)
        os.ftruncate(self._descriptor, 0)
        os.write(self._descriptor, f"{os.getpid()}\n".encode())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is None:
            return
        with suppress(OSError):  # Windows removes no open file; the folder may be gone
            self._path.unlink()
        os.close(self._descriptor)  # which gives the lock back
        self._descriptor = None

    def check(self) -> None:
        """Raise `OutputError` where the folder is no longer the one that is held: removed, or replaced."""
        if self._descriptor is not None and not _is_at(self._descriptor, self._path):
            raise OutputError(
                "the run's folder, or the lock in it, was removed while the run was going on",
                where=str(self._path.parent),
                remedy="Look whether its disk is still there; then run the same command again.",
            )

    def _open(self) -> int:
        try:
            # A link is not followed: what it leads to would be emptied.
            return os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        except OSError as error:
            raise OutputError(
                f"the output folder cannot be locked: {error.strerror}",
                where=str(self._path),
                remedy="Choose another training_args.output_dir.",
            ) from error


def _is_at(descriptor: int, path: Path) -> bool:
    """Return whether a path still leads to the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False


def refuse_if_locked(folder: Path) -> None:
    """Raise `OutputError` if a run holds `folder` at this moment."""
    if (folder / LOCK_FILE).is_file() and os.access(folder / LOCK_FILE, os.R_OK | os.W_OK):
        with RunLock(folder):
            pass


def _taken(path: Path, holder: str) -> OutputError:
    by = f", process {holder}," if holder.isdigit() else ""
    return OutputError(
        f"another run{by} is training into this folder",
        where=str(path.parent),
        remedy="Wait for it or end it, or choose another training_args.output_dir.",
    )


if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int) -> None:
        # A byte far behind the content, which others may go on reading.
        os.lseek(descriptor, 2**20, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
else:
    import fcntl

    def _lock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
