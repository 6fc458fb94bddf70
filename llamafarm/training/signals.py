"""Ctrl-C and SIGTERM in a run: the first asks it to save and stop, the second leaves at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from llamafarm import terminal
from llamafarm.errors import LlamaFarmError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopAsked(Exception):  # noqa: N818 - it is no error: it unwinds an evaluation that is not waited for
    """A signal asked the run to stop."""


class RunInterrupted(LlamaFarmError):  # noqa: N818
    """A run was ended by a signal, after it was saved; its exit code is the one that shells give."""

    def __init__(self, problem: str, *, where: str, remedy: str, signal_number: int) -> None:
        super().__init__(problem, where=where, remedy=remedy)
        self.exit_code = 128 + signal_number


class StopSignals:
    """Listens for signals, as a context; on another thread than the main one it hears none."""

    def __init__(self) -> None:
        self.asked: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def check(self) -> None:
        """Raise `StopAsked` if a signal has come."""
        if self.asked is not None:
            raise StopAsked

    def _hear(self, number: int, _: FrameType | None) -> None:
        if self.asked is not None:
            # Whatever is being written has another name until it is whole: nothing older is lost.
            os._exit(128 + number)
        self.asked = number
        name = signal.Signals(number).name
        # Where it came while a message was being written, that stream takes no second one: it goes unsaid.
        with suppress(RuntimeError):
            terminal.warn(
                f"{name}: finishing this step, then saving; once more leaves at once, without saving"
            )
