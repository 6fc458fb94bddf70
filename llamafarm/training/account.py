"""What a run has cost so far: seconds by what they went into, tokens, operations."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from llamafarm.findings.speed import Seconds


@dataclass(slots=True)
class Account:
    """Sums over the steps taken. `step_seconds` go from the batch asked for to the update, data included."""

    num_steps: int = 0
    num_tokens: int = 0
    num_supervised_tokens: int = 0
    flops: float = 0.0
    step_seconds: float = 0.0
    data_seconds: float = 0.0
    phase_seconds: dict[str, float] = field(default_factory=dict)
    num_phases: dict[str, int] = field(default_factory=dict)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a phase that is no step: `evaluating` or `saving`."""
        started = time.perf_counter()
        try:
            yield
        finally:
            taken = time.perf_counter() - started
            self.phase_seconds[name] = self.phase_seconds.get(name, 0.0) + taken
            self.num_phases[name] = self.num_phases.get(name, 0) + 1

    @property
    def seconds(self) -> Seconds:
        """Return where the time went."""
        return Seconds(
            steps=self.step_seconds,
            data=self.data_seconds,
            evaluations=self.phase_seconds.get("evaluating", 0.0),
            saves=self.phase_seconds.get("saving", 0.0),
            num_evaluations=self.num_phases.get("evaluating", 0),
            num_saves=self.num_phases.get("saving", 0),
            num_steps=self.num_steps,
        )
