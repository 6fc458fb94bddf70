"""Death before, in the middle of and after everything that a run writes, syncs, renames and removes."""

from __future__ import annotations

import os
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from disturbed.arena import Arena, Disturbance, Findings
from disturbed.witness import at_step, put
from llamafarm.model import adapter
from llamafarm.training import checkpoint
from llamafarm.training.session import Session

DEAD = 99
# Their saves are those of a first checkpoint, of a best one, of one whose elder is removed, of the last.
_STEPS = (2, 10, 15, 20, 39)
_REWRITTEN_STEP = 12

# What is told of each boundary: `before rename checkpoints/step-00000002.unfinished`.
Tell = Callable[[str], None]


def watch_disk(run: Path, tell: Tell) -> None:
    """Have `tell` called at every boundary of what this process, a copy, does to the folder `run`.

    Halves of files are on the disk when `half write` is told.
    """

    def named(path: Any) -> str:
        path = f"/proc/self/fd/{path}" if isinstance(path, int) else path
        return os.path.relpath(Path(path).resolve() if "/proc/" in str(path) else path, run)

    def around(owner: Any, name: str, word: str, place: int, halve: bool = False) -> None:
        function = getattr(owner, name)

        def told(*arguments: Any, **options: Any) -> Any:
            path = named(arguments[place])
            if path.startswith(".."):
                return function(*arguments, **options)
            tell(f"before {word} {path}")
            result = function(*arguments, **options)
            if halve:
                whole = Path(arguments[place]).read_bytes()
                Path(arguments[place]).write_bytes(whole[: len(whole) // 2])
                tell(f"half {word} {path}")
                Path(arguments[place]).write_bytes(whole)
            tell(f"after {word} {path}")
            return result

        put(owner, name, told)

    around(os, "replace", "rename", 0)
    around(os, "fsync", "sync", 0)
    around(shutil, "rmtree", "remove", 0)
    around(Path, "mkdir", "make", 0)
    around(Path, "unlink", "unlink", 0)
    around(Path, "write_text", "write", 0, halve=True)
    around(checkpoint, "save_file", "write", 1, halve=True)
    around(adapter, "save_file", "write", 1, halve=True)
    around(PreTrainedTokenizerBase, "save_pretrained", "save", 1)


def counted(tell: Tell) -> Tell:
    """Return `tell` with the how manieth of its like put behind each boundary."""
    seen: Counter[str] = Counter()
    lock = threading.Lock()

    def tell_counted(boundary: str) -> None:
        with lock:
            seen[boundary] += 1
            number = seen[boundary]
        tell(f"{boundary} #{number}")

    return tell_counted


def die_at(run: Path, boundary: str) -> Disturbance:
    """Return the disturbance that leaves at a boundary, as a kill does: nothing more is run."""

    def tell(now: str) -> None:
        if now == boundary:
            os._exit(DEAD)

    return lambda: watch_disk(run, counted(tell))


def list_boundaries(arena: Arena, run: Path) -> list[str]:
    """Return the boundaries of a run, in order, by letting it end."""
    log = run.with_name("boundaries.txt")
    with log.open("ab", buffering=0) as file:
        listing = lambda: watch_disk(run, counted(lambda now: _append(file.fileno(), now)))  # noqa: E731
        end = arena.start(run, disturbance=listing).end()
    assert end.exit_code == 0, end
    return log.read_text(encoding="utf-8").splitlines()


def die_at_boundaries(arena: Arena, scale: float) -> Findings:
    """Die at the boundaries of a run: at its start, in some of its saves, at its end; and of a save again."""
    found = Findings("boundaries")
    run = arena.make()
    chosen = [name for name in list_boundaries(arena, run) if _is_chosen(name)]
    arena.forget(run)
    for boundary in _part_of(chosen, scale):
        _die_and_go_on(arena, arena.make(), boundary, found)
    interrupted = _interrupt(arena)
    again = f"step-{_REWRITTEN_STEP:08d}"
    run = arena.copy(interrupted)
    chosen = [name for name in list_boundaries(arena, run) if again in name and name.endswith("#1")]
    arena.forget(run)
    for boundary in _part_of(chosen, scale):
        _die_and_go_on(arena, arena.copy(interrupted), boundary, found)
        found.add("of a save again")
    arena.forget(interrupted)
    return found


def _die_and_go_on(arena: Arena, run: Path, boundary: str, found: Findings) -> None:
    """Die once, go on, and compare."""
    end = arena.start(run, disturbance=die_at(run, boundary)).end()
    found.num_tried += 1
    found.add(boundary.split()[0])
    if end.exit_code != DEAD:
        found.failures.append(f"{boundary} was not come to: {end}")
    last = arena.finish(run)
    has_ended = last.exit_code == 2 and "final_model" in last.said and (run / "final_model").is_dir()
    if last.exit_code and not has_ended:
        found.failures.append(f"{boundary}: {last}")
    elif difference := arena.difference(run):
        found.failures.append(f"{boundary}: {difference}")
    arena.forget(run)


def _interrupt(arena: Arena) -> Path:
    """Return a run that a signal has ended in a step after which a checkpoint is due: it is saved twice."""

    def ask(session: Session) -> None:
        session._signals.asked = 15

    run = arena.make()
    end = arena.start(run, disturbance=at_step(_REWRITTEN_STEP, ask)).end()
    assert end.exit_code == 143, end
    return run


def _is_chosen(boundary: str) -> bool:
    """Return whether a boundary is of a chosen save, or of no save: the start and the end of a run."""
    if "checkpoints/step-" in boundary:
        return any(f"step-{step:08d}" in boundary for step in _STEPS)
    return "metrics" not in boundary or boundary.endswith(("#1", "#2", "#20"))


def _part_of(boundaries: list[str], scale: float) -> Iterable[str]:
    """Return so large a part of them, evenly."""
    num_wanted = max(1, min(len(boundaries), round(len(boundaries) * scale)))
    return [boundaries[place * len(boundaries) // num_wanted] for place in range(num_wanted)]


def _append(descriptor: int, line: str) -> None:
    os.write(descriptor, f"{line}\n".encode())
