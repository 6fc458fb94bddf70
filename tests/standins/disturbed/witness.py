"""What a training process is doing, seen from outside at any moment: also at that of its death."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from typing import Any

from llamafarm.training import checkpoint, saving
from llamafarm.training.session import Session

LOADING, STEPPING, EVALUATING, SAVING, ENDING = "loading", "stepping", "evaluating", "saving", "ending"
PHASES = (LOADING, STEPPING, EVALUATING, SAVING, ENDING)
_FORM = "iB?"


class Witness:
    """Memory that a process and this one share: its last whole step, its phase, whether it is saving.

    The step is -1 until this process has taken one.
    """

    def __init__(self) -> None:
        self._shared = mmap.mmap(-1, 64)
        self._note(-1, LOADING, False)

    @property
    def step(self) -> int:
        """The last step that the process has taken."""
        step: int = struct.unpack_from(_FORM, self._shared)[0]
        return step

    @property
    def phase(self) -> str:
        """What the process does; saving goes on beside steps."""
        _, phase, is_writing = struct.unpack_from(_FORM, self._shared)
        return SAVING if is_writing else PHASES[phase]

    def watch(self) -> None:
        """Let this process, a copy, say what it does."""
        take_step, evaluate, finish = Session.take_step, Session.evaluate, Session.finish
        write = checkpoint.write_checkpoint

        def step_seen(session: Session, step: int, rows: Any) -> Any:
            self._set(1, PHASES.index(STEPPING))
            result = take_step(session, step, rows)
            self._set(0, step)
            return result

        def evaluation_seen(session: Session) -> Any:
            self._set(1, PHASES.index(EVALUATING))
            found = evaluate(session)
            self._set(1, PHASES.index(STEPPING))
            return found

        def write_seen(*arguments: Any) -> Any:
            self._set(2, True)
            written = write(*arguments)
            self._set(2, False)
            return written

        def finish_seen(session: Session, state: Any) -> Any:
            self._set(1, PHASES.index(ENDING))
            return finish(session, state)

        put(Session, "take_step", step_seen)
        put(Session, "evaluate", evaluation_seen)
        put(Session, "finish", finish_seen)
        put(saving, "write_checkpoint", write_seen)

    def _note(self, step: int, phase: str, is_writing: bool) -> None:
        struct.pack_into(_FORM, self._shared, 0, step, PHASES.index(phase), is_writing)

    def _set(self, place: int, value: Any) -> None:
        # Each at its own place: the thread that writes and the one that steps do not wait for each other.
        form, offset = (("i", 0), ("B", 4), ("?", 5))[place]
        struct.pack_into(form, self._shared, offset, value)


def put(owner: Any, name: str, function: Callable[..., Any]) -> None:
    """Put a function in another's place, in this process, which is a copy that ends soon."""
    setattr(owner, name, function)


def at_step(step: int, act: Callable[[Session], None]) -> Callable[[], None]:
    """Return the disturbance that does something before a step is taken."""

    def disturb() -> None:
        take_step = Session.take_step

        def disturbed(session: Session, number: int, rows: Any) -> Any:
            if number == step:
                act(session)
            return take_step(session, number, rows)

        put(Session, "take_step", disturbed)

    return disturb
