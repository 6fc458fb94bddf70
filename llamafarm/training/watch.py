"""Looks at a run's figures while it goes on, and says each finding once, when it is first seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from llamafarm.findings.finding import Finding
from llamafarm.findings.history import History, Settings
from llamafarm.findings.learning import find_learning
from llamafarm.findings.overfitting import DRIFT, find_overfitting
from llamafarm.findings.speed import Seconds, find_slowness

# A look goes over all lines so far. One comes when their number has grown by so much, so that all looks
# together cost as much as twenty over the whole run, however long it is.
_GROWTH = 1.05


class Watch:
    """The findings of one run. `say` is told each name once."""

    def __init__(self, settings: Settings, say: Callable[[Finding], None]) -> None:
        self._settings = settings
        self._say = say
        self._said: set[str] = set()
        self._lines: list[Mapping[str, Any]] = []
        self._look_at = 1

    def observe(
        self, line: Mapping[str, Any], seconds: Seconds, utilization: tuple[float | None, int]
    ) -> None:
        """Take a line of metrics in; `utilization` is the GPU's mean and how many samples it is of."""
        self._lines.append(line)
        if line["eval_loss"] is None and len(self._lines) < self._look_at:
            return
        self._look_at = int(len(self._lines) * _GROWTH) + 1
        for finding in self._look(seconds, utilization):
            if finding.name not in self._said:
                self._said.add(finding.name)
                self._say(finding)

    def conclude(self, seconds: Seconds, utilization: tuple[float | None, int]) -> list[Finding]:
        """Return what the whole run shows. What was said on the way and has passed is not among it."""
        return self._look(seconds, utilization)

    def _look(self, seconds: Seconds, utilization: tuple[float | None, int]) -> list[Finding]:
        history = History(self._lines)
        overfitting = find_overfitting(history, self._settings)
        has_drift = any(finding.name == DRIFT for finding in overfitting)
        return [
            *overfitting,
            *find_learning(history, self._settings, trusts_evaluations=not has_drift),
            *find_slowness(seconds, *utilization),
        ]
