"""SIGKILL at random moments, and signals that ask to stop."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from disturbed.arena import SAVE_STEPS, Arena, End, Findings, outcome_of, record_of
from disturbed.witness import LOADING, STEPPING, Witness
from llamafarm.training.checkpoint import checkpoints_in, is_whole, step_of

_MOST_KILLS_A_RUN = 3


def newest_whole(run: Path) -> int:
    """Return the step of the newest whole checkpoint; 0 without one."""
    found = checkpoints_in(run / "checkpoints")
    return next((step_of(one) for one in found if is_whole(one)), 0)


def kill_at_random(arena: Arena, num_kills: int) -> Findings:
    """Kill runs up to three times each, at moments uniform over the life of a run, then let them end."""
    found = Findings("kills")
    while found.num_tried < num_kills:
        run = arena.make()
        for _ in range(min(_MOST_KILLS_A_RUN, num_kills - found.num_tried)):
            if not _kill_once(arena, run, found):
                break
        _expect_the_same(arena, run, found, f"after kill {found.num_tried}")
        arena.forget(run)
        found.add("runs")
    return found


def _kill_once(arena: Arena, run: Path, found: Findings) -> bool:
    """Kill one process of a run; return whether it was still going."""
    witness = Witness()
    worker = arena.start(run, disturbance=witness.watch)
    if worker.wait(arena.draw.uniform(0.0, arena.seconds)):
        return False
    worker.signal(signal.SIGKILL)
    worker.end()
    found.num_tried += 1
    found.add(f"while {witness.phase}")
    if witness.step >= 0:
        lost = witness.step - newest_whole(run)
        found.figures["most steps lost"] = max(found.figures.get("most steps lost", 0), lost)
        found.add("steps lost", lost)
        if lost > SAVE_STEPS:
            found.failures.append(f"{lost} steps were lost at step {witness.step}")
    return True


def _expect_the_same(arena: Arena, run: Path, found: Findings, when: str) -> None:
    """Let a run end, and note where it is other than the undisturbed one."""
    if "result" not in record_of(run):
        end = arena.finish(run)
        if end.exit_code:
            found.failures.append(f"{when}: {end}")
            return
    difference = arena.difference(run)
    if difference:
        found.failures.append(f"{when}: {difference}")


def signal_at_random(arena: Arena, num_signals: int) -> Findings:
    """Send SIGINT and SIGTERM in turn at random moments, every fourth time a second one after it."""
    found = Findings("signals")
    for index in range(num_signals):
        run = arena.make()
        number = (signal.SIGINT, signal.SIGTERM)[index % 2]
        witness = Witness()
        worker = arena.start(run, disturbance=witness.watch)
        # Not before the program listens: Python and torch take seconds to load, and the fork none.
        worker.wait(arena.draw.uniform(0.02, arena.seconds))
        if worker.has_ended():
            found.add("had ended before")
            arena.forget(run)
            continue
        found.num_tried += 1
        phase = witness.phase
        found.add(f"while {phase}")
        worker.signal(number)
        step = witness.step
        if index % 4 == 3:
            worker.wait(arena.draw.uniform(0.0, 0.03))
            worker.signal(number)
            found.add("twice")
        started = time.monotonic()
        end = worker.end()
        found.figures["most seconds"] = max(
            found.figures.get("most seconds", 0.0), round(time.monotonic() - started, 2)
        )
        problem = _judge(run, end, number, step, witness, is_twice=index % 4 == 3)
        if problem:
            found.failures.append(f"{index}, {phase}, step {step}: {problem}")
        found.add("ended by itself", end.exit_code == 0)
        _expect_the_same(arena, run, found, f"signal {index}, {phase}")
        arena.forget(run)
    return found


def _judge(run: Path, end: End, number: int, step: int, witness: Witness, *, is_twice: bool) -> str | None:
    """Return what is wrong with how a process ended after a signal; None where nothing is."""
    if "hung" in end.said:
        return str(end)
    if end.exit_code == 0:  # the last step was over: what was left was to write the final model
        return None if outcome_of(run) else "no outcome"
    if end.exit_code != 128 + number:
        return str(end)
    if witness.phase == LOADING or witness.step < 0 or is_twice or "result" in record_of(run):
        return None
    saved = newest_whole(run)
    if saved != witness.step or witness.step > max(step, 0) + 1:
        return f"saved {saved}, and {STEPPING} had come to {witness.step}: {end}"
    return None
