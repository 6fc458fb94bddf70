"""Many starts into one folder at the same moment: one trains, the others are refused and touch nothing."""

from __future__ import annotations

import os
import select
from pathlib import Path

from disturbed.arena import Arena, Findings, Worker
from disturbed.damage import die_with_checkpoints


def start_together(arena: Arena, num_starts: int) -> Findings:
    """Start so many processes into a new folder, and as many into that of a run that died."""
    found = Findings("starts")
    for run in (arena.make(), die_with_checkpoints(arena, 20)):
        (run / ".run.lock").write_text("1\n") if run.is_dir() else None  # as a kill leaves it
        _start_into(arena, run, num_starts, found)
        arena.forget(run)
    return found


def _start_into(arena: Arena, run: Path, num_starts: int, found: Findings) -> None:
    released, release = os.pipe()

    def wait() -> None:
        os.close(release)
        select.select([released], [], [])

    workers: list[Worker] = [arena.start(run, disturbance=wait) for _ in range(num_starts)]
    os.close(release)
    os.close(released)
    ends = [worker.end() for worker in workers]
    trained = [end for end in ends if end.exit_code == 0]
    refused = [end for end in ends if end.exit_code == 2]
    found.num_tried += num_starts
    found.add("trained", len(trained))
    found.add("refused", len(refused))
    found.add("refused by the lock", sum("another run" in end.said for end in refused))
    if len(trained) != 1:
        found.failures.append(f"{len(trained)} of {num_starts} trained")
    others = [end for end in ends if end.exit_code not in (0, 2)]
    found.failures += [str(end) for end in others[:3]]
    if trained and (difference := arena.difference(run)):
        found.failures.append(difference)
