"""What a run survives on the way: too little memory for a pack, and steps without a finite loss or gradient.

A step is a set of rows. How they are cut into packs changes no mathematics, so a step that does not fit the
memory is done again in smaller packs, then with one remedy after the other; what was learnt of the memory
holds for the rest of the run, and where it is gone on with.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from llamafarm import terminal
from llamafarm.data.encoding.pack import Packs
from llamafarm.errors import MachineError, NonFiniteError
from llamafarm.hardware.memory import is_out_of_memory

_T = TypeVar("_T")
# Steps that may be skipped: this many, or one in a hundred of a long run.
_FEWEST_SKIPPED, _SKIPPED_PART = 10, 0.01


@dataclass(frozen=True, slots=True)
class Cut:
    """How work was cut when the memory did not suffice: tokens of its largest pack, rows of its fullest."""

    pack_tokens: int
    pack_rows: int

    @classmethod
    def of(cls, packs: Packs) -> Cut:
        """Return how rows are cut into packs."""
        sizes = packs.sizes()
        return cls(max((size[0] for size in sizes), default=0), max(map(len, packs.groups), default=1))


@dataclass(frozen=True, slots=True)
class Remedy:
    """What saves memory from when it is started on, and changes no mathematics.

    `start` returns whether that is new, and of use here; `name` is what messages and events call it.
    """

    name: str
    start: Callable[[], bool]


class MemoryRecovery:
    """Holds how large packs are, and does work again in smaller ones where the memory does not suffice.

    Once a pack is a single row, the `remedies` are started in their order, each when the ones before it were
    not enough. `events` say what was learnt, as JSON has it.
    """

    def __init__(self, pack_tokens: int, device_kind: str, remedies: Sequence[Remedy]) -> None:
        self.pack_tokens = pack_tokens
        self.events: list[dict[str, Any]] = []
        self._device_kind = device_kind
        self._remedies = remedies
        self._started: list[str] = []

    def restore(self, pack_tokens: int, events: Sequence[Mapping[str, Any]]) -> None:
        """Let what an earlier part of the run learnt hold again, as far as it is of use here."""
        self.pack_tokens = min(self.pack_tokens, pack_tokens)
        self.events = [dict(event) for event in events]
        learnt = {event["how"] for event in events}
        self._started += [one.name for one in self._remedies if one.name in learnt and one.start()]

    def attempt(self, work: Callable[[], _T], cut: Callable[[], Cut], *, step: int, what: str) -> _T:
        """Return what `work` returns. Raises `MachineError` once nothing is left to try.

        `cut` says how `work` is cut now; `what` names it in messages.
        """
        while True:
            try:
                return work()
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                reason = next(iter(str(error).splitlines()), type(error).__name__)[:200]
            # Out here the traceback is gone, and with it every tensor that it held.
            self._let_go()
            self._adapt(cut(), reason, step, what)

    def _adapt(self, cut: Cut, reason: str, step: int, what: str) -> None:
        before = self.pack_tokens
        if cut.pack_rows > 1:
            self.pack_tokens = max(min(cut.pack_tokens, before) // 2, 1)
            how = f"packs of {self.pack_tokens} tokens instead of {min(cut.pack_tokens, before)}"
        elif remedy := next((one for one in self._remedies if one.start()), None):
            how = remedy.name
            self._started.append(how)
        else:
            tried = f", even with {' and '.join(self._started)}" if self._started else ""
            raise MachineError(
                f"out of memory at a single row of {cut.pack_tokens} tokens{tried}: {reason}",
                where=f"{what}, step {step}",
                remedy="Lower data_preprocessing.max_length or method.r, write method.type: qlora, or choose "
                "a smaller base model. Checkpoints are whole: the same command goes on from the last.",
            )
        self.events.append({"step": step, "what": what, "pack_tokens": self.pack_tokens, "how": how})
        terminal.warn(f"{what}, step {step}: out of memory; done again with {how}, on the same rows")

    def _let_go(self) -> None:
        gc.collect()
        if self._device_kind == "cuda":
            torch.cuda.empty_cache()
        elif self._device_kind == "mps":
            torch.mps.empty_cache()


@dataclass(slots=True)
class SkippedSteps:
    """Steps that were not taken, as their loss or gradient was not finite: a few, where that is asked for."""

    may_skip: bool
    num_steps: int
    steps: list[int] = field(default_factory=list)

    def take_in(self, step: int, error: NonFiniteError) -> None:
        """Count a step. Raises the error where it may not be skipped, or where there are too many."""
        if not self.may_skip:
            raise error
        self.steps.append(step)
        most = max(_FEWEST_SKIPPED, int(_SKIPPED_PART * self.num_steps))
        if len(self.steps) > most:
            raise NonFiniteError(
                f"{len(self.steps)} steps had no finite loss or gradient, more than may be skipped ({most})",
                where=error.where,
                remedy=error.remedy,
            )
        terminal.warn(f"{error.where}: {error.problem} (training_args.on_nonfinite: skip)")
