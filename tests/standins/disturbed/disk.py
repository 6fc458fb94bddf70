"""A disk that is full at some byte of what a run writes: nothing that was saved is lost, and it is said."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from disturbed.arena import Arena, Disturbance, End, Findings, record_of
from disturbed.boundaries import counted, list_boundaries, watch_disk
from disturbed.kills import newest_whole
from disturbed.witness import at_step, put
from llamafarm.training import saving
from llamafarm.training.checkpoint import checkpoints_in, is_whole
from llamafarm.training.session import Session

_FULL = OSError(errno.ENOSPC, "No space left on device")
_ROOM_OF_A_DISK = 64 * 2**20
# A checkpoint here is 60 KiB, the final model with its tokenizer 700.
_MOST_FREE_BYTES = 800 * 1024


def fill_the_disk(arena: Arena, num_tries: int) -> Findings:
    """Fill the disk at so many places: half by a file on a small disk, half by errors of its calls."""
    found = Findings("disk")
    num_real = num_tries // 2 if can_mount(arena.folder) else 0
    found.figures["on a real disk"] = num_real
    if num_real:
        with small_disk(arena.folder / "disk") as disk:
            for index in range(num_real):
                _fill_for_real(arena, arena.make_at(disk / f"r{index}"), disk / "ballast", index, found)
    run = arena.make()
    places = [name for name in list_boundaries(arena, run) if name.startswith(("half write", "before sync"))]
    arena.forget(run)
    for index in range(num_tries - num_real):
        _fill_by_errors(arena, places[index * len(places) // (num_tries - num_real)], found)
    return found


def _fill_for_real(arena: Arena, run: Path, ballast: Path, index: int, found: Findings) -> None:
    """Leave a few bytes before a step, run until that is noticed, make room, go on."""
    step, num_free = arena.draw.randint(1, 39), arena.draw.randrange(_MOST_FREE_BYTES if index % 3 else 60000)

    def fill(session: Session) -> None:
        session._saver.wait()  # which takes room at this moment
        disk = os.statvfs(ballast.parent)
        with ballast.open("wb") as file:
            file.write(bytes(max(0, disk.f_bavail * disk.f_frsize - num_free)))

    def disturb() -> None:
        if index % 2:  # else a checkpoint that has no room is not begun
            put(saving, "_check_room", lambda *_: None)
        at_step(step, fill)()

    end = arena.start(run, disturbance=disturb).end()
    _judge(arena, run, end, f"{num_free} bytes free before step {step}", found, ballast)


def _fill_by_errors(arena: Arena, place: str, found: Findings) -> None:
    """Let everything fail from one place on, as a full disk does."""
    run = arena.make()
    end = arena.start(run, disturbance=_fail_from(run, place)).end()
    _judge(arena, run, end, place, found)


def _fail_from(run: Path, place: str) -> Disturbance:
    is_full = False

    def tell(now: str) -> None:
        nonlocal is_full
        is_full = is_full or now == place
        if is_full and now.startswith(("half write", "before sync", "before make")):
            raise _FULL

    return lambda: watch_disk(run, counted(tell))


def _judge(
    arena: Arena, run: Path, end: End, what: str, found: Findings, ballast: Path | None = None
) -> None:
    """Look at what a full disk has left, make room, go on, and compare."""
    found.num_tried += 1
    checkpoints = checkpoints_in(run / "checkpoints")
    problem = None
    if not all(map(is_whole, checkpoints)):
        problem = f"a checkpoint is not whole ({[path.name for path in checkpoints]})"
    elif end.exit_code == 0:
        found.add("had ended by then")
    elif end.exit_code not in (2, 3) or "error:" not in end.said or "Traceback" in end.said:
        problem = str(end)
    else:
        found.add("errors with what to try")
    found.figures["newest kept"] = max(found.figures.get("newest kept", 0), newest_whole(run))
    if ballast is not None:
        ballast.unlink(missing_ok=True)
    if "result" not in record_of(run):
        last = arena.finish(run)
        if last.exit_code and problem is None:
            problem = f"after room was made: {last}"
    if problem is None:
        problem = arena.difference(run)
    if problem:
        found.failures.append(f"{what}: {problem}")
    arena.forget(run)


def can_mount(folder: Path) -> bool:
    """Return whether this user may have a small disk of its own, in memory."""
    if os.name == "nt" or os.geteuid() != 0:
        return False
    try:
        with small_disk(folder / "tried"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """Have a disk of 64 MiB at `folder`. Raises `CalledProcessError` where that may not be."""
    folder.mkdir(exist_ok=True)
    size = f"size={_ROOM_OF_A_DISK}"
    command = ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    subprocess.run(command, check=True, capture_output=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)
